import math

import pytest
import torch

from ddimctl.errors import RequestError
from ddimctl.metrics.sliced import (
    laplacian_pyramid,
    level_sizes,
    patch_histograms,
    sliced_wasserstein,
)


def images(count, seed=0, side=32, channels=3):
    """Smooth random images (N, C, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)


def distance(a, b):
    return sliced_wasserstein(patch_histograms(a), patch_histograms(b))


def mean(values):
    return sum(values) / len(values)


def test_levels_halve_down_to_eight_pixels():
    assert level_sizes(32, 32) == [(32, 32), (16, 16), (8, 8)]
    assert level_sizes(33, 20) == [(33, 20), (17, 10)]
    assert level_sizes(5, 5) == [(5, 5)]
    with pytest.raises(RequestError, match="too small"):
        level_sizes(2, 40)


def enlarged(x, height, width):
    """x at twice its size by Burt and Adelson's filter, cut to (height, width)."""
    taps = torch.tensor([1.0, 4, 6, 4, 1]) / 8
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[:, :, ::2, ::2] = x
    padded = torch.nn.functional.pad(spread, (2, 2, 2, 2), mode="reflect").flatten(0, 1)[:, None]
    blurred = torch.nn.functional.conv2d(padded, torch.outer(taps, taps)[None, None])
    return blurred.view(spread.shape)[:, :, :height, :width]


def test_the_pyramid_adds_up_to_the_image():
    for size in ((32, 32), (33, 20), (16, 41)):
        x = torch.rand(2, 3, *size)
        levels = laplacian_pyramid(x)
        assert [level.shape[2:] for level in levels] == [torch.Size(s) for s in level_sizes(*size)]
        back = levels[-1]
        for level in reversed(levels[:-1]):
            back = level + enlarged(back, *level.shape[2:])
        assert (back - x).abs().max() < 1e-5


def test_a_constant_image_has_nothing_but_its_coarsest_level():
    *fine, coarse = laplacian_pyramid(torch.full((1, 3, 32, 32), 0.3))
    assert max(level.abs().max() for level in fine) < 1e-6
    assert coarse.sub(0.3).abs().max() < 1e-6


def test_equal_sets_are_at_no_distance_in_any_order_and_batches():
    x = images(40)
    whole = patch_histograms(x)
    parts = sum(patch_histograms(part) for part in x.flip(0).split(7))
    assert distance(x, x) == [0, 0, 0]
    assert sliced_wasserstein(whole, patch_histograms(x.repeat(2, 1, 1, 1))) == [0, 0, 0]
    # other batches round otherwise, and a projection on the edge of a bin may change sides
    assert max(sliced_wasserstein(whole, parts)) < 1e-3
    assert torch.equal(whole, patch_histograms(x.clone()))


def test_it_is_symmetric():
    a, b = images(30, 1), images(50, 2) * 0.5
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-12)
    assert min(distance(a, b)) > 0


def test_it_grows_with_noise_and_with_blur():
    x = images(60)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    noisy = [mean(distance(x, x + level * noise)) for level in (0.01, 0.03, 0.1, 0.3)]
    assert noisy == sorted(noisy)
    assert noisy[-1] > 5 * noisy[0]
    blurred = [
        mean(distance(x, torch.nn.functional.avg_pool2d(x, k, 1, k // 2))) for k in (3, 5, 9)
    ]
    assert blurred == sorted(blurred)


def test_a_brighter_set_is_as_far_as_optimal_transport_says():
    """All projections of the coarsest level move by delta times the sum of their direction."""
    from ddimctl.diffusion.noise import hash_keys, normal
    from ddimctl.metrics.sliced import DIRECTIONS

    x, delta = images(60) * 0.8, 0.1
    levels = distance(x, x + delta)
    directions = normal(hash_keys(torch.arange(DIRECTIONS), 0, 2, 3), (27,))
    expected = (directions / directions.norm(dim=1, keepdim=True)).sum(1).abs().mean() * delta
    assert levels[0] == pytest.approx(0, abs=0.05)
    assert levels[1] == pytest.approx(0, abs=0.05)
    assert levels[2] == pytest.approx(float(expected) * 127.5, rel=0.01)


def test_two_gaussians_of_pixels_are_as_far_as_their_standard_deviations():
    """W1 of N(0, s^2) and N(0, r^2) is |s - r| sqrt(2 / pi), whatever the unit direction."""
    g = torch.Generator().manual_seed(0)
    small = torch.randn(400, 1, 8, 8, generator=g) * 0.1
    large = torch.randn(400, 1, 8, 8, generator=g) * 0.3
    (found,) = distance(small, large)
    assert found == pytest.approx(0.2 * math.sqrt(2 / math.pi) * 127.5, rel=0.02)


def test_global_random_numbers_change_nothing():
    x = images(4)
    torch.manual_seed(1)
    first = patch_histograms(x)
    torch.manual_seed(2)
    assert torch.equal(first, patch_histograms(x))
