"""Noise schedules: the paper's alpha (here alpha_bar) for every training timestep, in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.errors import RequestError

CLEAN: Final = -1
"""The level after the last step, where alpha_bar is exactly 1 (the paper's alpha_0)."""

KINDS: Final = ("linear", "scaled_linear", "cosine", "sigmoid")

Level = float | Tensor
"""alpha_bar of all images, or of each: (N, 1, 1, 1), float64."""


def root(value: Level) -> Any:
    """The square root of a level or a variance; 0 where rounding brought that below 0."""
    return value.clamp(min=0).sqrt() if isinstance(value, Tensor) else math.sqrt(max(value, 0.0))


@dataclass(frozen=True, eq=False, repr=False)
class Schedule:
    """alpha_bar for the T training timesteps.

    alpha_bar: (T,), float64, falling, in [0, 1].
    settings:  plain values that name the schedule, for manifests and latents.
    """

    alpha_bar: Tensor
    settings: dict[str, Any]
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        ends = f"{self(0):.4g} ... {self(self.num_train_timesteps - 1):.4g}"
        return (
            f"Schedule({self.settings.get('kind')}, T={self.num_train_timesteps}, alpha_bar {ends})"
        )

    def at(self, t: Tensor) -> Tensor:
        """alpha_bar at training timesteps t (N,), int64: (N,), float64, on their device.

        It keeps a copy there, since each one made would wait for all that the device has to do.
        """
        if t.device not in self._copies:
            with torch.inference_mode(False):
                self._copies[t.device] = self.alpha_bar.to(t.device)
        return self._copies[t.device][t]

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of timesteps that the network was trained with."""
        return len(self.alpha_bar)

    def __call__(self, t: int) -> float:
        """alpha_bar at training timestep t in [0, T); 1.0 at CLEAN."""
        return 1.0 if t == CLEAN else float(self.alpha_bar[t])


def from_betas(betas: Tensor | Sequence[float], settings: dict[str, Any] | None = None) -> Schedule:
    """The schedule of explicit betas, (T,), each in (0, 1]. Raises RequestError outside that range."""
    beta = torch.as_tensor(betas, dtype=torch.float64)
    if beta.ndim != 1 or len(beta) == 0 or not bool(((beta > 0) & (beta <= 1)).all()):
        raise RequestError("the schedule's betas must be a list of numbers in (0, 1].")
    if bool((beta[:-1] == 1).any()):
        raise RequestError("only the last of the schedule's betas may be 1.")
    alpha_bar = torch.cumprod(1 - beta, 0)
    falls = (alpha_bar < torch.cat((beta.new_ones(1), alpha_bar[:-1]))) | (alpha_bar == 0)
    if not bool(falls.all()):  # 1 - beta is 1 in float64
        raise RequestError("the schedule's betas are too small: its alpha_bar does not fall.")
    return Schedule(alpha_bar, settings or {"kind": "betas", "betas": beta.tolist()})


def make_schedule(
    kind: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale_zero_snr: bool = False,
) -> Schedule:
    """One of KINDS with T timesteps.

    linear and scaled_linear: Ho et al. 2020 and its square-root variant, from beta_start to beta_end.
    cosine: Nichol and Dhariwal 2021, eq. 17, betas capped at 0.999 (squaredcos_cap_v2).
    sigmoid: betas along a sigmoid from -6 to 6 (GeoDiff).
    rescale_zero_snr: shift and scale sqrt(alpha_bar) so that the last is 0 (Lin et al. 2023, algorithm 1).

    Raises RequestError for an unknown kind or a T below 1.
    """
    steps = num_train_timesteps
    if steps < 1:
        raise RequestError(f"a schedule needs at least one timestep, not {steps}.")
    if kind == "linear":
        beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
    elif kind == "scaled_linear":
        beta = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
    elif kind == "cosine":
        beta = _cosine_betas(steps)
    elif kind == "sigmoid":
        ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
        beta = ramp * (beta_end - beta_start) + beta_start
    else:
        raise RequestError(f"unknown schedule '{kind}'.", f"Choose one of {', '.join(KINDS)}.")

    settings: dict[str, Any] = {"kind": kind, "num_train_timesteps": steps}
    if kind != "cosine":
        settings |= {"beta_start": beta_start, "beta_end": beta_end}
    schedule = from_betas(beta, settings)
    if not rescale_zero_snr:
        return schedule
    return Schedule(_zero_snr(schedule.alpha_bar), settings | {"rescale_zero_snr": True})


def _cosine_betas(steps: int) -> Tensor:
    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def _zero_snr(alpha_bar: Tensor) -> Tensor:
    root = alpha_bar.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    rescaled: Tensor = ((root - last) * first / (first - last)) ** 2
    return rescaled
