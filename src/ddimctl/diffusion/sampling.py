"""Trajectories from x_T to x_0."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddimctl.diffusion.multistep import check_solver, make_correction
from ddimctl.diffusion.predictions import Denoiser, Model, make_denoiser
from ddimctl.diffusion.schedules import CLEAN, Schedule
from ddimctl.diffusion.steps import (
    check_variance,
    ddim_step,
    sigma_eta,
    sigma_large,
    sigma_learned,
)
from ddimctl.errors import NumericsError, RequestError

Noise = Callable[[int, Tensor], Tensor]
"""(t, x) -> z: standard normal noise like x for the step that leaves timestep t."""


class Step(NamedTuple):
    """One finished step: from t to t_next, arriving at x, having predicted x_0 at t.

    x, x_0: (N, C, H, W). t_next is CLEAN in the last step, where x is the sample.
    """

    t: int
    t_next: int
    x: Tensor
    x_0: Tensor


def trajectory(
    denoise: Denoiser,
    x_T: Tensor,
    schedule: Schedule,
    timesteps: Sequence[int],
    *,
    eta: float = 0.0,
    variance: str = "eta",
    solver: str = "ddim",
    noise: Noise | None = None,
    labels: Tensor | None = None,
) -> Iterator[Step]:
    """Walk tau down, yielding each step: eq. 12 from tau_S to tau_1 and then to alpha_bar = 1, or a
    multistep solver's higher order of it.

    x_T: (N, C, H, W) at level timesteps[-1]. timesteps: tau, ascending. eta, variance: as
    check_variance allows; noise is needed where they are not eta = 0. solver: one of SOLVERS; other
    than ddim, it allows eta = 0 only. labels: (N,), int64.
    The caller owns progress, storage, and the decision to stop.
    """
    x, correct = x_T, make_correction(solver)
    for t, t_next in pairwise([*reversed(timesteps), CLEAN]):
        found = denoise(x, t, labels)
        level, level_next = schedule(t), schedule(t_next)
        sigma = sigma_eta(level, level_next, eta)
        scale: float | Tensor = sigma
        if t_next == CLEAN:
            scale = 0.0  # no variance adds noise to the finished image
        elif variance == "large":
            scale = sigma_large(level, level_next)
        elif variance == "learned" and found.variance is not None:
            scale = sigma_learned(found.variance, level, level_next)
        drawn = None
        if isinstance(scale, Tensor) or scale > 0:
            if noise is None:
                raise RequestError(f"eta = {eta:g} needs noise.", "Pass noise=, (t, x) -> z.")
            drawn = scale * noise(t, x)
        x = ddim_step(found.x_0, found.eps, level_next, sigma, drawn)
        if correct is not None:
            x = x + correct(found, level, level_next)
        yield Step(t, t_next, x, found.x_0)


def sample(
    model: Model,
    x_T: Tensor,
    *,
    timesteps: Sequence[int],
    eta: float = 0.0,
    variance: str = "eta",
    solver: str = "ddim",
    clip: str = "none",
    labels: Tensor | None = None,
    guidance: float = 1.0,
    guidance_rescale: float = 0.0,
    noise: Noise | None = None,
) -> Tensor:
    """x_0 (N, C, H, W), nominally in [-1, 1], from x_T (N, C, H, W). Settings as trajectory's and
    make_denoiser's.

    Raises RequestError for settings that do not fit the model, NumericsError when the result is
    not finite.
    """
    check_variance(variance, eta, model.learned_variance)
    check_solver(solver, eta, variance)
    denoise = make_denoiser(model, guidance, clip, guidance_rescale)
    x = x_T
    with torch.inference_mode():
        for step in trajectory(
            denoise,
            x_T,
            model.schedule,
            timesteps,
            eta=eta,
            variance=variance,
            solver=solver,
            noise=noise,
            labels=labels,
        ):
            x = step.x
    if not bool(x.isfinite().all()):
        raise NumericsError("the sample has values that are not finite.", "Try precision fp32.")
    return x
