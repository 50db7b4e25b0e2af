"""Whether a latent looks like what a model starts from: standard normal numbers."""

from typing import Final, NamedTuple

from torch import Tensor

_TOLERATED: Final = 0.1  # of the mean and of the standard deviation, however large the image is
_DEVIATIONS: Final = 4.0  # of chance, beyond that, for small images


class LatentStatistics(NamedTuple):
    """Of each image of a batch: mean and std, (N,), float64; count, the numbers in an image."""

    mean: Tensor
    std: Tensor
    count: int


def latent_statistics(latents: Tensor) -> LatentStatistics:
    """Mean and standard deviation of the numbers of each latent (N, C, H, W)."""
    numbers = latents.detach().flatten(1).double()
    return LatentStatistics(
        numbers.mean(1).cpu(), numbers.std(1, correction=0).cpu(), numbers.shape[1]
    )


def is_atypical(statistics: LatentStatistics) -> Tensor:
    """(N,), bool: whose mean is far from 0 or whose standard deviation is far from 1.

    Far is more than a tenth and four standard errors, which for n normal numbers are 1/sqrt(n) of
    the mean and 1/sqrt(2 n) of the deviation. Latents of seeds pass; an inverted picture that the
    model could not have drawn often does not, and mixes badly with others.
    """
    chance = _DEVIATIONS / statistics.count**0.5
    mean_is_far = statistics.mean.abs() > _TOLERATED + chance
    std_is_far = (statistics.std - 1).abs() > _TOLERATED + chance / 2**0.5
    return mean_is_far | std_is_far
