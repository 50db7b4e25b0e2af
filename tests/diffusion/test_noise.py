import math

import pytest
import torch

from ddimctl.diffusion.noise import (
    MAX_SEED,
    hash_keys,
    normal,
    seeded_noise,
    uniform,
    uniform_integers,
)
from ddimctl.errors import RequestError

SHAPE = (3, 16, 16)


def test_an_image_s_noise_is_the_same_in_any_batch_and_order():
    together = seeded_noise(range(40), SHAPE)
    for seed in (0, 7, 39):
        assert torch.equal(seeded_noise([seed], SHAPE)[0], together[seed])
    shuffled = seeded_noise([39, 0, 7], SHAPE)
    assert torch.equal(shuffled, together[[39, 0, 7]])


def test_seeds_and_timesteps_and_x_T_have_noise_of_their_own():
    draws = [seeded_noise([seed], SHAPE, t) for seed in (0, 1) for t in (None, 0, 1, 999)]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            correlation = float((a * b).mean())
            assert abs(correlation) < 5 / math.sqrt(a.numel())


def test_seed_and_timestep_are_hashed_not_added():
    assert not torch.equal(seeded_noise([3], SHAPE, 4), seeded_noise([4], SHAPE, 3))
    assert not torch.equal(seeded_noise([3], SHAPE, 4), seeded_noise([2], SHAPE, 5))


def test_noise_is_standard_normal():
    z = seeded_noise(range(400), (3, 32, 32)).double()
    n = z.numel()
    assert abs(float(z.mean())) < 5 / math.sqrt(n)
    assert abs(float(z.square().mean()) - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(z.pow(3).mean())) < 5 * math.sqrt(15 / n)
    assert abs(float(z.pow(4).mean()) - 3) < 5 * math.sqrt(96 / n)
    below = float((z.flatten() < 1.0).double().mean())
    assert abs(below - 0.8413447) < 5 * math.sqrt(0.8413447 * 0.1586553 / n)


def test_neighbouring_pixels_and_channels_are_uncorrelated():
    z = seeded_noise(range(400), (3, 32, 32)).double()
    bound = 5 / math.sqrt(z.numel())
    assert abs(float((z[..., 1:] * z[..., :-1]).mean())) < bound * 1.1
    assert abs(float((z[:, 1:] * z[:, :-1]).mean())) < bound * 1.3


def test_the_generator_is_splitmix64_and_the_normals_are_box_mullers():
    # the published reference sequence for a state of 1234567
    bits = _reference_splitmix64(1234567, 4)
    assert bits[0] == 6457827717110365317
    key = torch.tensor([1234567])
    assert float(uniform(key)) == (bits[0] >> 11) * 2.0**-53
    pairs = []
    for number in bits:
        radius = math.sqrt(-2 * math.log(((number >> 32) + 0.5) * 2.0**-32))
        angle = 2 * math.pi * (number % 2**32) * 2.0**-32
        pairs += [radius * math.cos(angle), radius * math.sin(angle)]
    torch.testing.assert_close(normal(key, (8,))[0], torch.tensor(pairs), rtol=0, atol=1e-6)


def _reference_splitmix64(state, count):
    mask, out = 2**64 - 1, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_odd_sizes_are_cut_from_the_same_stream():
    keys = torch.tensor([5])
    assert torch.equal(normal(keys, (1, 3, 3)).flatten(), normal(keys, (10,)).flatten()[:9])


def test_uniform_numbers_and_integers_fill_their_ranges():
    keys = hash_keys(torch.arange(100_000), 3)
    numbers = uniform(keys)
    assert 0 <= float(numbers.min()) and float(numbers.max()) < 1
    assert abs(float(numbers.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / len(keys))
    counts = torch.bincount(uniform_integers(keys, 10), minlength=10)
    assert len(counts) == 10
    assert (counts - 10_000).abs().max() < 5 * math.sqrt(10_000)


def test_seeds_outside_the_range_are_refused():
    for seed in (-1, MAX_SEED + 1):
        with pytest.raises(RequestError, match=r"outside 0 \.\.\. 2\^63"):
            seeded_noise([seed], SHAPE)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_noise_within_1e_6():
    ours = seeded_noise(range(64), (3, 32, 32), 500)
    theirs = seeded_noise(range(64), (3, 32, 32), 500, "cuda").cpu()
    assert float((ours - theirs).abs().max()) <= 1e-6
