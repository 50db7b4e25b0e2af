"""Weights under the peers' names, asked for one by one by the reference networks, and their layers."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Get = Callable[..., Tensor]
"""(name, *shape) -> the weight."""


def given(weights: Mapping[str, Tensor]) -> Get:
    """The weights of a file, each of exactly the shape that the network asks for."""

    def get(name: str, *shape: int) -> Tensor:
        assert weights[name].shape == shape, f"{name}: {tuple(weights[name].shape)}, not {shape}"
        return weights[name].float()

    return get


def listing(run: Callable[[Get], Tensor]) -> dict[str, Tensor]:
    """Every weight that a network asks for, on the meta device. run: (get) -> its output."""
    found: dict[str, Tensor] = {}

    def get(name: str, *shape: int) -> Tensor:
        assert name not in found, name
        found[name] = torch.empty(shape, device="meta")
        return found[name]

    run(get)
    return found


def filled(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Random weights of these shapes, none of them small enough to leave a layer without a say."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, empty in weights.items():
        noise = torch.randn(empty.shape, generator=generator)
        if empty.ndim > 1:
            found[name] = noise / math.sqrt(empty[0].numel())
        else:  # biases, and the scales of normalisations
            found[name] = 0.3 * noise + (1.0 if "norm" in name and "weight" in name else 0.0)
    return found


def conv(
    get: Get, name: str, x: Tensor, width: int, size: int = 3, stride: int = 1, padding: int = 1
) -> Tensor:
    weight = get(f"{name}.weight", width, x.shape[1], size, size)
    return F.conv2d(x, weight, get(f"{name}.bias", width), stride, padding)


def linear(get: Get, name: str, x: Tensor, width: int) -> Tensor:
    return F.linear(x, get(f"{name}.weight", width, x.shape[1]), get(f"{name}.bias", width))


def norm(get: Get, name: str, x: Tensor, eps: float) -> Tensor:
    width = x.shape[1]
    return F.group_norm(x, 32, get(f"{name}.weight", width), get(f"{name}.bias", width), eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (N, heads, channels, positions), and so the result."""
    scores = torch.einsum("nhcq,nhck->nhqk", q, k) / math.sqrt(q.shape[2])
    return torch.einsum("nhqk,nhck->nhcq", scores.softmax(-1), v)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())
