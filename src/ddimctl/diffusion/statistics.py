"""Whether a latent looks like what a model starts from: standard normal numbers."""

from typing import Final

import torch
from torch import Tensor

_TOLERATED: Final = 0.1  # of the mean and of the standard deviation, however large the image is
_DEVIATIONS: Final = 4.0  # of chance, beyond that, for small images


def latent_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, std) of the numbers of each latent (N, C, H, W): (N,) each, float64, on the CPU."""
    numbers = latents.detach().flatten(1).double()
    return numbers.mean(1).cpu(), numbers.std(1, correction=0).cpu()


def is_atypical(latents: Tensor) -> Tensor:
    """(N,), bool: whose mean is far from 0 or whose standard deviation is far from 1.

    Far is more than a tenth and four standard errors, which for n normal numbers are 1/sqrt(n) of
    the mean and 1/sqrt(2 n) of the deviation. Latents of seeds pass; those of an inverted image
    that the model could not have drawn often do not, and mix badly with others.
    """
    mean, std = latent_statistics(latents)
    error = torch.tensor(latents[0].numel(), dtype=torch.float64).rsqrt()
    mean_is_far = mean.abs() > _TOLERATED + _DEVIATIONS * error
    std_is_far = (std - 1).abs() > _TOLERATED + _DEVIATIONS * error / 2**0.5
    return mean_is_far | std_is_far
