"""From an image to its latent: the DDIM decoder run backwards (section 4.3), step by step.

The decoder takes x at timestep t to y = F(x) below it. Each step up finds x from y: by Euler
(naive), by a plain iteration, or exactly.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.diffusion.anderson import MEMORY, Iterations, advance, begin
from ddimctl.diffusion.predictions import MixedDenoiser, Model
from ddimctl.diffusion.schedules import Schedule
from ddimctl.diffusion.steps import ddim_step
from ddimctl.errors import RequestError

METHODS: Final = ("exact", "fixed-point", "naive")
TOLERANCE: Final = 1e-6

OnStep = Callable[[int], None]


class Inversion(NamedTuple):
    """latents: x_T (N, C, H, W). residuals: (N, S), float64, the largest |y - F(x)| of each step in
    the order of the timesteps, NaN where the method does not look (naive). evaluations: (N, S),
    int64, of the network."""

    latents: Tensor
    residuals: Tensor
    evaluations: Tensor


def check_inversion(model: Model, timesteps: Sequence[int], method: str, tolerance: float) -> None:
    """Raise RequestError for settings that no image can be inverted with."""
    if model.self_conditioned:
        raise RequestError(
            "a self-conditioned network takes the x_0 that it predicted in the step before, which a "
            "walk from the image up to its noise does not know.",
            "Invert with a network without self-conditioning.",
        )
    schedule = model.schedule
    if method not in METHODS:
        raise RequestError(
            f"unknown inversion method '{method}'.", f"Choose one of {', '.join(METHODS)}."
        )
    if not 0 < tolerance < math.inf:
        raise RequestError(f"--tolerance {tolerance:g} is not above 0.", "1e-6 is the default.")
    if schedule(timesteps[-1]) == 0:
        raise RequestError(
            f"the schedule has no signal at t = {timesteps[-1]} (zero terminal SNR), so images "
            "cannot be inverted.",
            f"Choose timesteps below {timesteps[-1]} with --tau.",
        )


def invert_steps(
    denoise: MixedDenoiser,
    x_0: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    *,
    method: str = "exact",
    tolerance: float = TOLERANCE,
    labels: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Inversion:
    """Walk tau up from alpha_bar = 1, each image at its own pace: the inverse of trajectory with
    eta = 0. The latents are float64 and may not be finite.

    x_0: (N, C, H, W) in [-1, 1] nominal. timesteps: tau, ascending. labels: (N,), int64.
    on_step: called with how many of the N S steps are done. The denoiser must not clip.
    Settings are those that check_inversion lets pass.
    """
    tau = torch.tensor(timesteps, device=x_0.device)
    at_tau = schedule.at(tau)
    levels = torch.cat((torch.ones_like(at_tau[:1]), at_tau))  # (S + 1,), float64, from CLEAN up
    if method == "naive":
        return _invert_by_euler(denoise, x_0, tau, levels, labels, on_step)
    return _invert_by_solving(
        denoise, x_0, tau, levels, labels, on_step, method=method, tolerance=tolerance
    )


def _invert_by_euler(
    denoise: MixedDenoiser,
    x_0: Tensor,
    tau: Tensor,
    levels: Tensor,
    labels: Tensor | None,
    on_step: OnStep | None,
) -> Inversion:
    """Eq. 14 backwards with eps of the level that is left; at alpha_bar = 1, of the first timestep."""
    x, (N, S) = x_0.double(), (len(x_0), len(tau))
    for k in range(S):
        found = denoise(x, tau[max(k - 1, 0)].expand(N), labels)
        x = ddim_step(found.x_0 if k else x, found.eps, levels[k + 1])
        if on_step:
            on_step((k + 1) * N)
    unknown = x.new_full((N, S), math.nan)
    return Inversion(x, unknown, torch.ones(N, S, dtype=torch.int64, device=x.device))


def _invert_by_solving(
    denoise: MixedDenoiser,
    x_0: Tensor,
    tau: Tensor,
    levels: Tensor,
    labels: Tensor | None,
    on_step: OnStep | None,
    *,
    method: str,
    tolerance: float,
) -> Inversion:
    """Each step's x from F(x) = y, by the plain or the accelerated iteration.

    An image that has solved its step begins the next while others are still at theirs: the network's
    batches stay full until the first is at the top.
    """
    below, above = levels[:-1], levels[1:]
    if method == "exact":
        # dF/dx where v is constant: unlike that for constant eps, it stays near 1 at any noise
        slopes, memory = (above * below).sqrt() + ((1 - above) * (1 - below)).sqrt(), MEMORY
    else:
        slopes, memory = (below / above).sqrt(), 0
    N, S = len(x_0), len(tau)
    y = x_0.double().flatten(1)
    latents, residuals = torch.empty_like(y), y.new_empty(N, S)
    evaluations = torch.empty(N, S, dtype=torch.int64, device=y.device)

    rows = torch.arange(N, device=y.device)  # the images on their way,
    k, before = torch.zeros_like(rows), y  # the step that each is at, and the state below y
    state = begin(y, slopes[k], memory)
    while len(rows):
        x = state.x.view(-1, *x_0.shape[1:])
        found = denoise(x, tau[k], None if labels is None else labels[rows])
        reached = ddim_step(found.x_0, found.eps, below[k].view(-1, 1, 1, 1))
        state, over = advance(state, y - reached.flatten(1), tolerance)
        if not bool(over.any()):
            continue
        residuals[rows[over], k[over]] = state.residual[over]
        evaluations[rows[over], k[over]] = state.evaluations[over]
        before, y = (torch.where(over[:, None], *each) for each in ((y, before), (state.best, y)))
        k = k + over
        going = k < S
        latents[rows[~going]] = y[~going]
        rows, k, y, before, over = (each[going] for each in (rows, k, y, before, over))
        state = Iterations(*(each[going] for each in state))
        start = _continued(before[over], y[over], levels, k[over])
        for each, begun in zip(state, begin(start, slopes[k[over]], memory), strict=True):
            each[over] = begun
        if on_step:
            on_step((N - len(rows)) * S + int(k.sum()))
    return Inversion(latents.view(x_0.shape), residuals, evaluations)


def _continued(z: Tensor, y: Tensor, levels: Tensor, k: Tensor) -> Tensor:
    """Eq. 14's Euler step from y (n, D) at levels[k] to the next, with the eps that led from z to y.

    Since y was found exactly, that is eps at y: the straight line of (x_0, eps) through both.
    """
    angles = levels.sqrt().acos()[:, None]
    bottom, middle, top = angles[k - 1], angles[k], angles[k + 1]
    line: Tensor = ((top - bottom).sin() * y - (top - middle).sin() * z) / (middle - bottom).sin()
    return line
