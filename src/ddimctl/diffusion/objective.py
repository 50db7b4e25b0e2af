"""The training objective: L_simple (eq. 5 with gamma = 1) for any prediction."""

from typing import Final

import torch
from torch import Tensor

from ddimctl.diffusion.schedules import Schedule

WEIGHTINGS: Final = ("simple", "min-snr")
_MIN_SNR_GAMMA: Final = 5.0


def add_noise(x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps (eq. 4), (N, C, H, W); t (N,), int64."""
    signal, noise = _levels(t, schedule, x_0)
    return signal * x_0 + noise * eps


def training_target(
    x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule, prediction: str
) -> Tensor:
    """What the network should say, (N, C, H, W): eps, x_0, or v (Salimans and Ho 2022)."""
    if prediction == "eps":
        return eps
    if prediction == "x_0":
        return x_0
    signal, noise = _levels(t, schedule, x_0)
    return signal * eps - noise * x_0


def loss_weight(t: Tensor, schedule: Schedule, prediction: str, weighting: str) -> Tensor:
    """The factor (N,), float32, on each image's squared error.

    simple: 1. min-snr: min(SNR, 5) on the error of x_0 (Hang et al. 2023, eq. 9 and appendix),
    expressed for the prediction at hand.
    """
    if weighting == "simple":
        return torch.ones(len(t), device=t.device)
    alpha_bar = schedule.at(t)
    snr = alpha_bar / (1 - alpha_bar)
    of_x_0 = {"x_0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[prediction]
    return (snr.clamp(max=_MIN_SNR_GAMMA) / of_x_0).float()


def _levels(t: Tensor, schedule: Schedule, like: Tensor) -> tuple[Tensor, Tensor]:
    alpha_bar = schedule.at(t).view(-1, *[1] * (like.ndim - 1))
    return alpha_bar.sqrt().to(like.dtype), (1 - alpha_bar).sqrt().to(like.dtype)
