"""Gaussian noise that depends on what it is for, not on when or where it is drawn.

A counter-based generator in plain tensor operations: splitmix64 (Steele, Lea, Flood 2014) hashes
a key per image and a counter per number, Box-Muller turns 64 bits into two normals. CPU and CUDA
wrap int64 alike, so the bits are equal everywhere; float64 keeps the normals equal within 1e-6.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ddimctl.errors import RequestError

MAX_SEED: Final = 2**63 - 1
_GAMMA: Final = 0x9E3779B97F4A7C15 - 2**64  # as a signed int64
_MULTIPLIERS: Final = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_LOW_32: Final = 0xFFFFFFFF
_X_T: Final = -1  # the "timestep" under which x_T is drawn; training timesteps are >= 0


def seeded_noise(
    seeds: Sequence[int] | Tensor,
    shape: Sequence[int],
    t: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise (N, *shape), float32, one image per seed.

    t: None for x_T, else the training timestep whose step the noise is for. The result for one
    seed and t is the same whatever the other seeds, their order, or the device (within 1e-6).
    Raises RequestError for a seed outside [0, 2^63).
    """
    if not isinstance(seeds, Tensor):
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise RequestError(f"seed {seed} is outside 0 ... 2^63 - 1.")
        seeds = torch.tensor(list(seeds), dtype=torch.int64)
    keys = hash_keys(seeds.to(device, non_blocking=True), _X_T if t is None else t)
    return normal(keys, shape)


def hash_keys(first: Tensor, *parts: Tensor | int) -> Tensor:
    """One 64-bit key per element, int64, from integers that broadcast together; order matters."""
    key = _mix(first + _GAMMA)
    for part in parts:
        key = _mix((key ^ part) + _GAMMA)
    return key


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normals (N, *shape), float32, from N keys."""
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    # 32 bits each for the radius, in (0, 1), and for the angle, in [0, 1)
    radius = (((bits >> 32) & _LOW_32).double() + 0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = (bits & _LOW_32).double().mul_(2 * math.pi * 2.0**-32)
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.flatten(1)[:, :count].float().reshape(len(keys), *shape)


def uniform_integers(keys: Tensor, bound: int) -> Tensor:
    """One integer in [0, bound) per key, int64."""
    return ((_bits(keys, 1)[:, 0] >> 11) & (2**53 - 1)) % bound


def uniform(keys: Tensor) -> Tensor:
    """One number in [0, 1) per key, float64."""
    return ((_bits(keys, 1)[:, 0] >> 11) & (2**53 - 1)).double() * 2.0**-53


def _bits(keys: Tensor, count: int) -> Tensor:
    """(N, count), int64: the splitmix64 stream of each key."""
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    return _mix(keys[:, None] + counter * _GAMMA)


def _mix(z: Tensor) -> Tensor:
    """splitmix64's finaliser; int64 products wrap, and the masks make the shifts logical."""
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _MULTIPLIERS[0]
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _MULTIPLIERS[1]
    return z ^ (z >> 31 & (1 << 33) - 1)
