"""The network of Ho et al. 2020 as ermongroup/ddim has it, straight from its weights and config.

Slow and plain on purpose: what the conversion to diffusers is compared with.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peer_weights import Get, attend, conv, linear, listing, norm
from torch import Tensor

EPS = 1e-6

# config.yml's model section and image_size, as for CIFAR-10
CIFAR10: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": (1, 2, 2, 2),
    "num_res_blocks": 2,
    "attn_resolutions": (16,),
    "resamp_with_conv": True,
}


def network(get: Get, config: dict[str, Any], x: Tensor, t: Tensor) -> Tensor:
    """eps (N, C, H, W) for x (N, C, H, W) and t (N,)."""
    ch, blocks, with_conv = config["ch"], config["num_res_blocks"], config["resamp_with_conv"]
    widths = [ch * multiple for multiple in config["ch_mult"]]
    last = len(widths) - 1
    attends = [config["image_size"] // 2**i in config["attn_resolutions"] for i in range(last + 1)]

    emb = linear(get, "temb.dense.0", _sinusoids(t, ch), 4 * ch)
    emb = F.silu(linear(get, "temb.dense.1", F.silu(emb), 4 * ch))
    h = conv(get, "conv_in", x, ch)
    kept = [h]
    for i, width in enumerate(widths):
        for j in range(blocks):
            h = _residual(get, f"down.{i}.block.{j}", h, emb, width)
            if attends[i]:
                h = _attention(get, f"down.{i}.attn.{j}", h)
            kept.append(h)
        if i < last:
            if with_conv:
                h = F.pad(h, (0, 1, 0, 1))
                h = conv(get, f"down.{i}.downsample.conv", h, width, stride=2, padding=0)
            else:
                h = F.avg_pool2d(h, 2)
            kept.append(h)
    h = _residual(get, "mid.block_1", h, emb, widths[-1])
    h = _attention(get, "mid.attn_1", h)
    h = _residual(get, "mid.block_2", h, emb, widths[-1])
    for i in range(last, -1, -1):
        for j in range(blocks + 1):
            h = torch.cat((h, kept.pop()), dim=1)
            h = _residual(get, f"up.{i}.block.{j}", h, emb, widths[i])
            if attends[i]:
                h = _attention(get, f"up.{i}.attn.{j}", h)
        if i > 0:
            h = F.interpolate(h, scale_factor=2, mode="nearest")
            if with_conv:
                h = conv(get, f"up.{i}.upsample.conv", h, widths[i])
    assert not kept
    return conv(get, "conv_out", F.silu(norm(get, "norm_out", h, EPS)), config["out_ch"])


def names_and_shapes(config: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a network of this config has, on the meta device."""
    size = config["image_size"]
    x = torch.empty(1, config["in_channels"], size, size, device="meta")
    t = torch.empty(1, device="meta")
    return listing(lambda get: network(get, config, x, t))


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """(N, width): the sines first, frequencies from 1 to 1/10000, both ends reached."""
    half = width // 2
    falling = torch.arange(half, device=t.device) / (half - 1)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * falling)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


def _residual(get: Get, name: str, x: Tensor, emb: Tensor, width: int) -> Tensor:
    h = conv(get, f"{name}.conv1", F.silu(norm(get, f"{name}.norm1", x, EPS)), width)
    h = h + linear(get, f"{name}.temb_proj", emb, width)[:, :, None, None]
    h = conv(get, f"{name}.conv2", F.silu(norm(get, f"{name}.norm2", h, EPS)), width)
    if x.shape[1] != width:
        x = conv(get, f"{name}.nin_shortcut", x, width, size=1, padding=0)
    return x + h


def _attention(get: Get, name: str, x: Tensor) -> Tensor:
    width = x.shape[1]
    h = norm(get, f"{name}.norm", x, EPS)
    q, k, v = (
        conv(get, f"{name}.{part}", h, width, size=1, padding=0).flatten(2)[:, None]
        for part in ("q", "k", "v")
    )
    h = attend(q, k, v).reshape(x.shape)
    return x + conv(get, f"{name}.proj_out", h, width, size=1, padding=0)
