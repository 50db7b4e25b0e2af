"""Anderson acceleration of many fixed-point iterations at once, each with a history of its own.

Type II (Walker and Ni 2011): the next iterate is where the differences of the last residuals,
combined by least squares, cancel the present one.
"""

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


class Iterations(NamedTuple):
    """The states of n equations F(x) = y, which know nothing of each other. Floats are float64.

    x: (n, D), where F is wanted next. slope: (n,), about dF/dx.
    best: (n, D), the best iterate so far; residual: (n,), its largest |y - F(x)|.
    evaluations: (n,), int64, of F. stale: those since the best; attempts: begun, both (n,), int64.
    f: (n, D), the last (y - F(x)) / slope. moves, changes: (n, memory, D), the last moves of x and
    what they changed f by, zero before there were any.
    """

    x: Tensor
    slope: Tensor
    best: Tensor
    residual: Tensor
    evaluations: Tensor
    stale: Tensor
    attempts: Tensor
    f: Tensor
    moves: Tensor
    changes: Tensor


def begin(start: Tensor, slope: Tensor, memory: int) -> Iterations:
    """From start (n, D), float64, with slope (n,). Without memory it is the plain iteration
    x + (y - F(x)) / slope."""
    none = torch.zeros(len(start), dtype=torch.int64, device=start.device)
    history = start.new_zeros(len(start), memory, start.shape[1])
    unknown = torch.full_like(slope, torch.inf)
    return Iterations(
        start, slope, start, unknown, none, none, none + 1, start * 0, history, history
    )


def advance(state: Iterations, difference: Tensor, tolerance: float) -> tuple[Iterations, Tensor]:
    """The states after difference (n, D), y - F(x), and which equations are over, (n,), bool.

    One is over when its residual is at most the tolerance, no longer finite, or has not fallen for
    a while in the last attempt; then its best iterate is the answer.
    """
    memory = state.moves.shape[1]
    size = difference.abs().amax(1).nan_to_num(torch.inf, torch.inf)
    better = size < state.residual
    best = torch.where(better[:, None], state.x, state.best)
    evaluations, stale = state.evaluations + 1, torch.where(better, 0, state.stale + 1)
    spent = stale >= PATIENCE
    last = state.attempts == (ATTEMPTS if memory else 1)  # the plain iteration would repeat itself
    over = (size <= tolerance) | size.isinf() | (spent & last) | (evaluations >= LIMIT)

    f = difference / state.slope[:, None]
    first = (state.evaluations == 0)[:, None]
    change = torch.where(first, 0.0, f - state.f)
    changes = _pushed(state.changes, change)
    move = _accelerated(f, state.moves, changes)
    # another attempt, whose history is the way back to the best iterate
    move = torch.where(spent[:, None], best - state.x, move)
    empty = spent[:, None, None]
    moves, changes = (each.masked_fill(empty, 0.0) for each in (state.moves, changes))
    return (
        Iterations(
            x=state.x + move,
            slope=state.slope,
            best=best,
            residual=torch.minimum(size, state.residual),
            evaluations=evaluations,
            stale=torch.where(spent, 0, stale),
            attempts=state.attempts + spent,
            f=f,
            moves=_pushed(moves, move),
            changes=changes,
        ),
        over,
    )


def _pushed(history: Tensor, newest: Tensor) -> Tensor:
    """history (n, memory, D) without its oldest and with newest (n, D)."""
    if not history.shape[1]:
        return history
    return torch.cat((history[:, 1:], newest[:, None]), 1)


def _accelerated(f: Tensor, moves: Tensor, changes: Tensor) -> Tensor:
    """The move (n, D) from f (n, D), the last moves and the changes of f that they made (n, k, D)."""
    gram = changes @ changes.mT
    diagonal, tiny = gram.diagonal(dim1=1, dim2=2), torch.finfo(gram.dtype).tiny
    known = (diagonal > 0).sum(1).clamp(min=1)  # differences; the others are not made yet
    ridge = (_TIKHONOV * diagonal.sum(1) / known).clamp(min=tiny)
    ridge = ridge[:, None, None] * torch.eye(gram.shape[1]).to(gram)
    # unlike solve, it does not wait for the device
    weights, _ = torch.linalg.solve_ex(gram + ridge, changes @ f[:, :, None])
    move: Tensor = f - (weights.mT @ (moves + changes))[:, 0]
    return move
