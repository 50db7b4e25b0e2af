"""From a picture to its latent: the DDIM decoder run backwards (section 4.3), step by step.

The decoder takes x at timestep t to y = F(x) below it. Each step up finds x from y: by Euler
(naive), by a plain iteration, or exactly.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.diffusion.anderson import solve
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.predictions import Denoiser, Model, make_denoiser
from ddimctl.diffusion.schedules import CLEAN, Schedule
from ddimctl.diffusion.steps import ddim_step
from ddimctl.errors import DataError, NumericsError, RequestError

METHODS: Final = ("exact", "fixed-point", "naive")
TOLERANCE: Final = 1e-6


class StepUp(NamedTuple):
    """One finished step, from below to timestep t, arriving at x (N, C, H, W), float64.

    residual: (N,), the largest |y - F(x)|, NaN where the method does not look (naive).
    evaluations: (N,), int64, of the network.
    """

    t: int
    x: Tensor
    residual: Tensor
    evaluations: Tensor


class Inversion(NamedTuple):
    """latents: x_T (N, C, H, W), float32. residuals (N, S), float64, and evaluations (N, S),
    int64: as in StepUp, in the order of the timesteps."""

    latents: Tensor
    residuals: Tensor
    evaluations: Tensor


def check_inversion(
    schedule: Schedule, timesteps: Sequence[int], method: str, tolerance: float
) -> None:
    """Raise RequestError for settings that no picture can be inverted with."""
    if method not in METHODS:
        raise RequestError(
            f"unknown method '{method}' of inversion.", f"Choose one of {', '.join(METHODS)}."
        )
    if not 0 < tolerance < math.inf:
        raise RequestError(f"--tolerance {tolerance:g} is not above 0.", "1e-6 is the default.")
    if schedule(timesteps[-1]) == 0:
        raise RequestError(
            f"the schedule has no signal at t = {timesteps[-1]} (zero terminal SNR), where no "
            "latent leads back to its picture.",
            f"Name timesteps below {timesteps[-1]} with --tau.",
        )


def climb(
    denoise: Denoiser,
    x_0: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    *,
    method: str = "exact",
    tolerance: float = TOLERANCE,
    labels: Tensor | None = None,
) -> Iterator[StepUp]:
    """Walk tau up from alpha_bar = 1, yielding each step: the inverse of trajectory with eta = 0.

    x_0: (N, C, H, W) in [-1, 1] nominal. timesteps: tau, ascending. labels: (N,), int64.
    The denoiser must not clip. Settings are those that check_inversion lets pass.
    """
    x, below, before = x_0.double(), CLEAN, None
    for t in timesteps:
        if method == "naive":
            step = _euler(denoise, x, schedule, below, t, labels)
        else:
            start = x if before is None else _continued(*before, x, schedule, below, t)
            step = _solve(denoise, x, start, schedule, below, t, labels, method, tolerance)
        before, below, x = (x, below), t, step.x
        yield step


def invert(
    model: Model,
    x_0: Tensor,
    *,
    timesteps: Sequence[int],
    method: str = "exact",
    tolerance: float = TOLERANCE,
    labels: Tensor | None = None,
) -> Inversion:
    """The latents from which sample(model, ..., eta=0) with the same timesteps makes x_0.

    x_0: (N, C, H, W). labels: (N,), int64, as sample takes them. tolerance: of each step.
    Raises RequestError for settings that cannot be, DataError when x_0 is not finite,
    NumericsError when a latent is not.
    """
    check_inversion(model.schedule, timesteps, method, tolerance)
    if not bool(x_0.isfinite().all()):
        raise DataError("x_0 has values that are not finite.")
    denoise = make_denoiser(model)
    settings: dict[str, Any] = {"method": method, "tolerance": tolerance, "labels": labels}
    with torch.inference_mode(), ieee_float32():
        found = collect(climb(denoise, x_0, model.schedule, timesteps, **settings))
    if not bool(found.latents.isfinite().all()):
        raise NumericsError(
            "the latents have values that are not finite.", "Try method exact, or more steps."
        )
    return found


def collect(steps: Iterable[StepUp]) -> Inversion:
    """The end of a climb, which may not be finite, and the record of its steps."""
    done = list(steps)
    return Inversion(
        done[-1].x.float(),
        torch.stack([step.residual for step in done], 1),
        torch.stack([step.evaluations for step in done], 1),
    )


def _euler(
    denoise: Denoiser,
    y: Tensor,
    schedule: Schedule,
    below: int,
    t: int,
    labels: Tensor | None,
) -> StepUp:
    """Eq. 14 backwards with eps of y's own level; at alpha_bar = 1, of the first timestep."""
    if below == CLEAN:
        x = ddim_step(y, denoise(y, t, labels).eps, schedule(t))
    else:
        found = denoise(y, below, labels)
        x = ddim_step(found.x_0, found.eps, schedule(t))
    unknown = x.new_full((len(x),), math.nan)
    return StepUp(t, x, unknown, torch.ones(len(x), dtype=torch.int64, device=x.device))


def _solve(
    denoise: Denoiser,
    y: Tensor,
    start: Tensor,
    schedule: Schedule,
    below: int,
    t: int,
    labels: Tensor | None,
    method: str,
    tolerance: float,
) -> StepUp:
    """x with F(x) = y, from a start (N, C, H, W), by the plain or the accelerated iteration."""
    level, level_below = schedule(t), schedule(below)

    def residual(flat: Tensor, rows: Tensor) -> Tensor:
        x = flat.view(-1, *y.shape[1:])
        found = denoise(x, t, None if labels is None else labels[rows])
        return (y[rows] - ddim_step(found.x_0, found.eps, level_below)).flatten(1)

    if method == "exact":
        # dF/dx where v is constant: unlike that for constant eps, it stays near 1 at any noise
        slope = math.sqrt(level * level_below) + math.sqrt((1 - level) * (1 - level_below))
        found = solve(residual, start.flatten(1), slope, tolerance)
    else:
        slope = math.sqrt(level_below / level)
        found = solve(residual, start.flatten(1), slope, tolerance, memory=0)
    return StepUp(t, found.x.view_as(y), found.residual, found.evaluations)


def _continued(z: Tensor, lowest: int, y: Tensor, schedule: Schedule, below: int, t: int) -> Tensor:
    """Eq. 14's Euler step from y at `below` to t, with the eps that led from z at `lowest` to y.

    Since y was found exactly, that is eps at y: the straight line of (x_0, eps) through both.
    """
    bottom, middle, top = (math.acos(math.sqrt(schedule(level))) for level in (lowest, below, t))
    ahead, back = math.sin(top - bottom), math.sin(top - middle)
    return (ahead * y - back * z) / math.sin(middle - bottom)
