"""Anderson acceleration of many fixed-point iterations at once, each with a history of its own.

Type II (Walker and Ni 2011): the next iterate is where the differences of the last residuals,
combined by least squares, cancel the present one.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

# Differences kept. With 8, steps that the network can hardly be inverted in stagnated at over twice
# the residual.
MEMORY: Final = 3
LIMIT: Final = 100  # evaluations for one equation
PATIENCE: Final = 10  # evaluations without a new best iterate, after which an attempt is over
ATTEMPTS: Final = 3  # each after the first from the best iterate, with an empty history
_TIKHONOV: Final = 1e-10  # of the mean diagonal of the normal equations

Residual = Callable[[Tensor, Tensor], Tensor]
"""(x (n, D), rows (n,), int64) -> y - F(x), (n, D): of the equations with those numbers."""


class Solution(NamedTuple):
    """Of N equations: x (N, D), float64, the best iterate of each; residual (N,), float64, its
    largest |y - F(x)|; evaluations (N,), int64, how often F was asked."""

    x: Tensor
    residual: Tensor
    evaluations: Tensor


def solve(
    residual: Residual, start: Tensor, slope: float, tolerance: float, *, memory: int = MEMORY
) -> Solution:
    """Solve F(x) = y for N independent equations from start (N, D), float64.

    slope: about dF/dx; the plain iteration, which memory = 0 leaves, is x + (y - F(x)) / slope.
    An equation ends when its residual is at most the tolerance, no longer finite, or has not
    fallen for a while in the last attempt; the others go on without it.
    """
    best = start.clone()
    smallest = start.new_full((len(start),), torch.inf)
    evaluations = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    stale, attempts = torch.zeros_like(evaluations), torch.ones_like(evaluations)
    rows = torch.arange(len(start), device=start.device)
    x, last_f = start, None
    moves = changes = start.new_empty(len(start), 0, start.shape[1])
    for _ in range(LIMIT):
        difference = residual(x, rows)
        evaluations[rows] += 1
        size = difference.abs().amax(1).nan_to_num(torch.inf, torch.inf)
        better = size < smallest[rows]
        smallest[rows[better]] = size[better]
        best[rows[better]] = x[better]
        stale[rows] = torch.where(better, 0, stale[rows] + 1)
        over = stale[rows] >= PATIENCE
        last = attempts[rows] == (ATTEMPTS if memory else 1)  # the plain iteration would repeat
        going = (size > tolerance) & size.isfinite() & ~(over & last)
        if not bool(going.any()):
            break
        f = difference / slope
        if memory and last_f is not None:
            changes = torch.cat((changes, (f - last_f)[:, None]), 1)[:, -memory:]
        rows, x, f, moves, changes, over = (
            each[going] for each in (rows, x, f, moves, changes, over)
        )
        move = _accelerated(f, moves, changes) if changes.shape[1] else f
        if bool(over.any()):
            move[over] = best[rows[over]] - x[over]
            moves[over] = changes[over] = 0.0
            stale[rows[over]] = 0
            attempts[rows[over]] += 1
        if memory:
            moves = torch.cat((moves, move[:, None]), 1)[:, -memory:]
        x, last_f = x + move, f
    return Solution(best, smallest, evaluations)


def _accelerated(f: Tensor, moves: Tensor, changes: Tensor) -> Tensor:
    """The move (n, D) from f (n, D), the last moves and the changes of f that they made (n, k, D)."""
    gram = changes @ changes.mT
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(gram.dtype).tiny)
    ridge = _TIKHONOV * scale[:, None, None] * torch.eye(gram.shape[1]).to(gram)
    weights = torch.linalg.solve(gram + ridge, changes @ f[:, :, None])
    move: Tensor = f - ((moves + changes).mT @ weights)[:, :, 0]
    return move
