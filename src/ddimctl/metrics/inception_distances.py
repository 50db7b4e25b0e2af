"""FID and KID: two distances between sets of feature vectors, whatever network they are of."""

from typing import Final

import torch
from torch import Tensor

from ddimctl.diffusion.noise import hash_keys
from ddimctl.errors import DataError

SUBSETS: Final = 100
SUBSET_SIZE: Final = 1000
_SEED: Final = 0


def mean_and_covariance(count: int, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) and (D, D), float64, the covariance unbiased, from sums over count vectors f.

    total: the sum of f.  outer: the sum of f f^T. Raises DataError for fewer than two vectors.
    """
    if count < 2:
        raise DataError(f"FID needs at least two images, not {count}.")
    mean = total / count
    return mean, (outer - count * torch.outer(mean, mean)) / (count - 1)


def frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two Gaussians (Heusel et al. 2017, eq. 6).

    In float64. C_a C_b has the eigenvalues of the symmetric R C_b R with R = C_a^(1/2), so that no
    root of a matrix that is not symmetric is taken.
    """
    values, vectors = torch.linalg.eigh(covariance_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = root @ covariance_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * cross
    return float((mean_a - mean_b).square().sum() + spread)


def kernel_distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    """KID: mean and standard deviation of the squared MMD over SUBSETS subsets of both sets.

    first, second: (N, D) and (M, D). The unbiased estimator with the kernel (x.y / D + 1)^3 on
    subsets of SUBSET_SIZE vectors, or of the smaller set (Binkowski et al. 2018, section 4); it
    can be a little below 0. Raises DataError for fewer than two vectors.
    """
    size = min(SUBSET_SIZE, len(first), len(second))
    if size < 2:
        raise DataError(f"KID needs at least two images, not {size}.")
    found = []
    for subset in range(SUBSETS):
        x, y = (
            vectors[_chosen(len(vectors), size, subset, side).to(vectors.device)].double()
            for side, vectors in enumerate((first, second))
        )
        found.append(_squared_mmd(x, y))
    values = torch.stack(found)
    return float(values.mean()), float(values.std(correction=0))


def _squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    n = len(x)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (n * (n - 1))
    return within - 2 * xy.mean()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _chosen(count: int, size: int, subset: int, side: int) -> Tensor:
    """Indices (size,) without repetition, the same each time."""
    return hash_keys(torch.arange(count), _SEED, subset, side).argsort()[:size]
