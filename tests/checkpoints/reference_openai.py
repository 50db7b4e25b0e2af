"""The network of improved- and guided-diffusion, straight from its weights and its scripts' flags.

Slow and plain on purpose: what the conversion to diffusers is compared with.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from peer_weights import Get, attend, conv, linear, listing, norm
from torch import Tensor

EPS = 1e-5

# The defaults of guided-diffusion's scripts, and three settings that these leave to its code.
DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": (1, 2, 3, 4),
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
    "conv_resample": True,
    "in_channels": 3,
    "num_classes": 1000,
}


def network(get: Get, flags: dict[str, Any], x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    """The output (N, C or 2C, H, W) for x (N, C, H, W), t (N,) in [0, T) and labels y (N,)."""
    base, updown = flags["num_channels"], flags["resblock_updown"]
    widths = [int(base * multiple) for multiple in flags["channel_mult"]]
    last = len(widths) - 1
    factors = [
        flags["image_size"] // int(size) for size in flags["attention_resolutions"].split(",")
    ]
    attends = [2**i in factors for i in range(last + 1)]
    heads = flags["num_heads"]
    heads_up = heads if flags["num_heads_upsample"] == -1 else flags["num_heads_upsample"]

    if flags["rescale_timesteps"]:
        t = t.float() * (1000 / flags["diffusion_steps"])
    emb = linear(get, "time_embed.0", _sinusoids(t, base), 4 * base)
    emb = linear(get, "time_embed.2", F.silu(emb), 4 * base)
    if flags["class_cond"]:
        emb = emb + F.embedding(y, get("label_emb.weight", flags["num_classes"], 4 * base))
    emb = F.silu(emb)

    h = conv(get, "input_blocks.0.0", x, widths[0])
    kept = [h]
    for i, width in enumerate(widths):
        for _ in range(flags["num_res_blocks"]):
            name = f"input_blocks.{len(kept)}"
            h = _residual(get, f"{name}.0", h, emb, width, flags)
            if attends[i]:
                h = _attention(get, f"{name}.1", h, heads, flags)
            kept.append(h)
        if i < last:
            name = f"input_blocks.{len(kept)}.0"
            if updown:
                h = _residual(get, name, h, emb, width, flags, resample=_halved)
            elif flags["conv_resample"]:
                h = conv(get, f"{name}.op", h, width, stride=2)
            else:
                h = _halved(h)
            kept.append(h)
    h = _residual(get, "middle_block.0", h, emb, widths[-1], flags)
    h = _attention(get, "middle_block.1", h, heads, flags)
    h = _residual(get, "middle_block.2", h, emb, widths[-1], flags)
    n = 0
    for i in range(last, -1, -1):
        for j in range(flags["num_res_blocks"] + 1):
            h = torch.cat((h, kept.pop()), dim=1)
            h = _residual(get, f"output_blocks.{n}.0", h, emb, widths[i], flags)
            if attends[i]:
                h = _attention(get, f"output_blocks.{n}.1", h, heads_up, flags)
            if i > 0 and j == flags["num_res_blocks"]:
                name = f"output_blocks.{n}.{2 if attends[i] else 1}"
                if updown:
                    h = _residual(get, name, h, emb, widths[i], flags, resample=_doubled)
                else:
                    h = _doubled(h)
                    h = conv(get, f"{name}.conv", h, widths[i]) if flags["conv_resample"] else h
            n += 1
    assert not kept
    given = flags["in_channels"] * (2 if flags["learn_sigma"] else 1)
    return conv(get, "out.2", F.silu(norm(get, "out.0", h, EPS)), given)


def names_and_shapes(flags: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that a network of these flags has, on the meta device."""
    size = flags["image_size"]
    x = torch.empty(1, flags["in_channels"], size, size, device="meta")
    t = torch.empty(1, device="meta")
    y = torch.empty(1, device="meta", dtype=torch.int64)
    return listing(lambda get: network(get, flags, x, t, y))


def _sinusoids(t: Tensor, width: int) -> Tensor:
    """(N, width): the cosines first, frequencies from 1 down, 1/10000 not reached."""
    half = width // 2
    falling = torch.arange(half, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * falling)
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _residual(
    get: Get,
    name: str,
    x: Tensor,
    emb: Tensor,
    width: int,
    flags: dict[str, Any],
    resample: Any = lambda x: x,
) -> Tensor:
    h = resample(F.silu(norm(get, f"{name}.in_layers.0", x, EPS)))
    x = resample(x)
    h = conv(get, f"{name}.in_layers.2", h, width)
    if flags["use_scale_shift_norm"]:
        told = linear(get, f"{name}.emb_layers.1", emb, 2 * width)[:, :, None, None]
        h = norm(get, f"{name}.out_layers.0", h, EPS) * (1 + told[:, :width]) + told[:, width:]
    else:
        h = h + linear(get, f"{name}.emb_layers.1", emb, width)[:, :, None, None]
        h = norm(get, f"{name}.out_layers.0", h, EPS)
    h = conv(get, f"{name}.out_layers.3", F.silu(h), width)
    if x.shape[1] != width:
        x = conv(get, f"{name}.skip_connection", x, width, size=1, padding=0)
    return x + h


def _attention(get: Get, name: str, x: Tensor, heads: int, flags: dict[str, Any]) -> Tensor:
    count, width = x.shape[:2]
    if flags["num_head_channels"] != -1:
        heads = width // flags["num_head_channels"]
    h = norm(get, f"{name}.norm", x, EPS).flatten(2)
    h = F.conv1d(
        h, get(f"{name}.qkv.weight", 3 * width, width, 1), get(f"{name}.qkv.bias", 3 * width)
    )
    if flags["use_new_attention_order"]:
        q, k, v = h.reshape(count, 3, heads, width // heads, -1).unbind(1)
    else:
        q, k, v = h.reshape(count, heads, 3, width // heads, -1).unbind(2)
    h = attend(q, k, v).reshape(count, width, -1)
    h = F.conv1d(
        h, get(f"{name}.proj_out.weight", width, width, 1), get(f"{name}.proj_out.bias", width)
    )
    return x + h.reshape(x.shape)
