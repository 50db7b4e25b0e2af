"""Sliced Wasserstein distance between the patches of two sets of images: no network needed.

After Karras et al. 2018 (arXiv 1710.10196, section 5): images are taken apart into a Laplacian
pyramid, patches of each level are projected on fixed random directions, and the projections of
the two sets are compared as distributions. Here each projection is counted into a histogram, of
which the distance follows exactly but for the width of a bin, so that any number of images takes
the same memory, order and batches do not matter, and sets of different size can be compared.

Two things differ from theirs. Patches are 3 x 3, not 7 x 7: projections of larger ones are nearly
Gaussian, so that noise of the right strength passes for detail. And they are not normalised by
the statistics of their own set, which would hide wrong colours and contrasts.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.noise import hash_keys, normal
from ddimctl.errors import RequestError
from ddimctl.files.untrusted.settings import JsonObject

PATCH: Final = 3
PATCHES: Final = 128  # at most so many of each image and level
DIRECTIONS: Final = 128
BINS: Final = 2048
_RANGE: Final = 5.25  # projections of images in [-1, 1]; what is beyond is counted at the ends
_SMALLEST: Final = 8  # side of the coarsest level, in pixels
_SEED: Final = 0

SETTINGS: Final[JsonObject] = {
    "patch": PATCH,
    "patches": PATCHES,
    "directions": DIRECTIONS,
    "bins": BINS,
    "range": _RANGE,
    "smallest_level": _SMALLEST,
    "seed": _SEED,
}
"""What two sets of histograms must share to be compared."""


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(H, W) of the pyramid's levels, the finest first: 32, 16, 8 for images of 32 pixels.

    Raises RequestError for images that are smaller than a patch.
    """
    if min(height, width) < PATCH:
        raise RequestError(
            f"images of {height}x{width} are too small for patches of {PATCH} pixels.",
            "Pass a larger --size.",
        )
    sizes = [(height, width)]
    while min(sizes[-1]) >= 2 * _SMALLEST:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def laplacian_pyramid(x: Tensor) -> list[Tensor]:
    """Levels (N, C, h, w) of x (N, C, H, W): what each adds to the next, and the coarsest itself."""
    levels: list[Tensor] = []
    for _ in level_sizes(x.shape[2], x.shape[3])[1:]:
        coarse = _blur(x)[:, :, ::2, ::2]
        levels.append(x - _enlarge(coarse, x.shape[2], x.shape[3]))
        x = coarse
    return [*levels, x]


def patch_histograms(x: Tensor) -> Tensor:
    """Counts (levels, DIRECTIONS, BINS), int64, of the projected patches of x (N, C, H, W) in [-1, 1].

    Those of a set of images are the sum of those of its parts. The places of the patches and the
    directions depend on the image's shape alone.
    """
    with ieee_float32():
        return torch.stack(
            [_count(level, at) for at, level in enumerate(laplacian_pyramid(x.float()))]
        )


def sliced_wasserstein(first: Tensor, second: Tensor) -> list[float]:
    """The distance of each level, from the histograms of two sets, in levels of 255.

    Of each level: the mean over directions of the 1-Wasserstein distance between the projections,
    which is 0 for equal sets and symmetric.
    """
    shares = [counts.double() / counts.sum(-1, keepdim=True) for counts in (first, second)]
    # in one dimension the distance is the area between the two distribution functions
    area = (shares[0].cumsum(-1) - shares[1].cumsum(-1)).abs().sum(-1) * (2 * _RANGE / BINS)
    return [float(found) * 127.5 for found in area.mean(-1)]


def _count(level: Tensor, at: int) -> Tensor:
    """Counts (DIRECTIONS, BINS) of one level (N, C, h, w)."""
    channels, height, width = level.shape[1:]
    side = min(PATCH, height, width)
    rows, columns = height - side + 1, width - side + 1
    order = hash_keys(torch.arange(rows * columns), _SEED, at).argsort()
    places = order[:PATCHES].to(level.device)
    patches = level.unfold(2, side, 1).unfold(3, side, 1)  # a view: (N, C, rows, columns, ...)
    chosen = patches[:, :, places // columns, places % columns].movedim(1, 2).flatten(2)
    keys = hash_keys(torch.arange(DIRECTIONS), _SEED, at, channels)
    directions = functional.normalize(normal(keys, (channels * side * side,)), dim=1).to(
        level.device
    )
    projected = chosen.flatten(0, 1) @ directions.T  # (N * places, DIRECTIONS)
    bins = ((projected + _RANGE) * (BINS / (2 * _RANGE))).long().clamp_(0, BINS - 1)
    bins += BINS * torch.arange(DIRECTIONS, device=level.device)
    return torch.bincount(bins.flatten(), minlength=DIRECTIONS * BINS).view(DIRECTIONS, BINS)


def _blur(x: Tensor) -> Tensor:
    """x (N, C, H, W) with the binomial kernel 1 4 6 4 1 of Burt and Adelson along both axes."""
    kernel = torch.tensor([1.0, 4, 6, 4, 1], device=x.device) / 16
    channels = x.shape[1]
    x = functional.pad(x, (2, 2, 2, 2), mode="reflect")
    x = functional.conv2d(x, kernel.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)
    return functional.conv2d(x, kernel.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)


def _enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """x at twice its size, cut to (height, width)."""
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    return 4 * _blur(spread)[:, :, :height, :width]
