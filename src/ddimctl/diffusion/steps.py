"""One step of the generalised sampler: eq. 12 with sigma of eq. 16, and the two other variances."""

import math
from typing import Final

import torch
from torch import Tensor

from ddimctl.diffusion.schedules import Level, root
from ddimctl.errors import RequestError

VARIANCES: Final = ("eta", "large", "learned")


def sigma_eta(alpha_bar_from: float, alpha_bar_to: float, eta: float) -> float:
    """Eq. 16: eta = 0 is DDIM, eta = 1 the DDPM posterior's standard deviation."""
    ratio = (1 - alpha_bar_to) / (1 - alpha_bar_from)
    return eta * math.sqrt(ratio * (1 - alpha_bar_from / alpha_bar_to))


def sigma_large(alpha_bar_from: float, alpha_bar_to: float) -> float:
    """sigma-hat of section 5, the square root of beta; only a noise coefficient, never in the mean."""
    return math.sqrt(1 - alpha_bar_from / alpha_bar_to)


def sigma_learned(variance: Tensor, alpha_bar_from: float, alpha_bar_to: float) -> Tensor:
    """The network's standard deviation, from its variance output in [-1, 1] (N, C, H, W).

    log sigma^2 = f log beta' + (1 - f) log beta~', f = (v + 1) / 2 (Nichol and Dhariwal 2021, eq. 15),
    between sigma_large^2 and the posterior variance of this step. Not for the step to alpha_bar = 1.
    """
    fraction = (variance + 1) / 2
    upper = math.log(sigma_large(alpha_bar_from, alpha_bar_to))
    lower = math.log(sigma_eta(alpha_bar_from, alpha_bar_to, 1.0))
    return torch.exp(fraction * upper + (1 - fraction) * lower)


def ddim_step(
    x_0: Tensor,
    eps: Tensor,
    alpha_bar_to: Level,
    sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Eq. 12: the predicted x_0 and the direction pointing to x_t, plus noise already scaled.

    x_0, eps, noise: (N, C, H, W). The same formula walks down (sampling) and up (inversion).
    """
    x: Tensor = root(alpha_bar_to) * x_0 + root(1 - alpha_bar_to - sigma**2) * eps
    return x if noise is None else x + noise


def check_variance(variance: str, eta: float, learned_variance: bool) -> None:
    """Refuse (RequestError) an eta outside [0, 1] and variances that the request cannot have."""
    if not 0 <= eta <= 1:
        raise RequestError(f"--eta must be between 0 and 1, not {eta:g}.", "0 is DDIM, 1 is DDPM.")
    if variance not in VARIANCES:
        raise RequestError(
            f"unknown variance '{variance}'.", f"Choose one of {', '.join(VARIANCES)}."
        )
    if variance != "eta" and eta != 1:
        raise RequestError(
            f"--variance {variance} requires eta = 1, not eta = {eta:g}.",
            "Leave --eta out.",
        )
    if variance == "learned" and not learned_variance:
        raise RequestError(
            "this checkpoint has no learned variance.", "Use --eta 1 or --variance large."
        )
