"""The UNet of lucidrains' denoising-diffusion-pytorch, for inference: every generation of it.

Modules are named as in the package's files, in the generation of 2.x. Weight-standardized
convolutions are plain ones here: their weights are standardized when the file is read.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddimctl.files.untrusted.settings import JsonObject

CLASS_NAME: Final = "LucidrainsUNet"
_EPS: Final = 1e-5


class AttentionSettings(NamedTuple):
    """full: softmax attention, else linear. memory: the number of learned keys and values."""

    full: bool
    heads: int
    head_dim: int
    memory: int


@dataclass(frozen=True)
class LucidrainsConfig:
    """What decides the network; it serves as the `config` of a diffusers network does, too.

    block_out_channels: the widths of the levels, the first convolution's before them in stem_channels.
    down, middle, up: the attention of each level. norm: "rms" or "group" (of `groups`), in residual
    blocks. attention_norm: "rms" or "layer". scale_values: linear attention divides values by the
    number of pixels. unshuffle: levels are halved by pixel-unshuffle, else by a convolution.
    theta: the base of the sinusoidal embedding, of width time_channels.
    """

    in_channels: int
    out_channels: int
    stem_channels: int
    block_out_channels: tuple[int, ...]
    time_channels: int
    down: tuple[AttentionSettings, ...]
    middle: AttentionSettings
    up: tuple[AttentionSettings, ...]
    sample_size: tuple[int, int]
    self_condition: bool = False
    norm: str = "rms"
    groups: int = 8
    attention_norm: str = "rms"
    scale_values: bool = False
    unshuffle: bool = True
    theta: float = 10_000.0

    layers_per_block = 2
    num_class_embeds = None
    class_embed_type = None

    @property
    def down_block_types(self) -> tuple[str, ...]:
        """All levels have attention."""
        return ("AttnDownBlock2D",) * len(self.block_out_channels)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def settings(self) -> JsonObject:
        """Plain values, as config.json has them."""
        return {"_class_name": CLASS_NAME, **asdict(self)}


class LucidrainsUNet(nn.Module):
    """x (N, C, H, W), t (N,) -> (N, out_channels, H, W); H and W multiples of 2^(levels - 1)."""

    def __init__(self, config: LucidrainsConfig) -> None:
        super().__init__()
        self.config = config
        self.dtype = torch.float32
        dims = (config.stem_channels, *config.block_out_channels)
        pairs, width = list(pairwise(dims)), 4 * config.time_channels
        taken = config.in_channels * (2 if config.self_condition else 1)
        self.init_conv = nn.Conv2d(taken, dims[0], 7, padding=3)
        self.time_mlp = nn.Sequential(
            nn.Identity(),  # the sinusoids, which have no weights
            nn.Linear(config.time_channels, width),
            nn.GELU(),
            nn.Linear(width, width),
        )

        def block(entering: int, leaving: int) -> nn.Module:
            return _ResidualBlock(entering, leaving, width, config)

        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for (near, far), attention in zip(pairs, config.down, strict=True):
            last = len(self.downs) == len(pairs) - 1
            resample = _same(near, far) if last else _halve(near, far, config.unshuffle)
            parts = [block(near, near), block(near, near), _Attention(near, attention, config)]
            self.downs.append(nn.ModuleList([*parts, resample]))
        self.mid_block1 = block(dims[-1], dims[-1])
        self.mid_attn = _Attention(dims[-1], config.middle, config)
        self.mid_block2 = block(dims[-1], dims[-1])
        for (near, far), attention in zip(reversed(pairs), config.up, strict=True):
            last = len(self.ups) == len(pairs) - 1
            resample = _same(far, near) if last else _double(far, near)
            parts = [block(near + far, far), block(near + far, far)]
            self.ups.append(nn.ModuleList([*parts, _Attention(far, attention, config), resample]))
        self.final_res_block = block(2 * dims[0], dims[0])
        self.final_conv = nn.Conv2d(dims[0], config.out_channels, 1)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        class_labels: Tensor | None = None,
        return_dict: bool = False,
        x_self_cond: Tensor | None = None,
    ) -> tuple[Tensor]:
        """As a UNet2DModel's, for networks without classes; x_self_cond None: zeros."""
        if self.config.self_condition:
            known = torch.zeros_like(x) if x_self_cond is None else x_self_cond.to(x.dtype)
            x = torch.cat((known, x), dim=1)
        x = stem = self.init_conv(x)
        half = self.config.time_channels // 2
        rates = torch.arange(half, device=x.device) * -(math.log(self.config.theta) / (half - 1))
        angles = t[:, None] * rates.exp()[None]
        time = self.time_mlp(torch.cat((angles.sin(), angles.cos()), dim=1).to(x.dtype))
        kept = []
        for block1, block2, attention, resample in map(_parts, self.downs):
            x = block1(x, time)
            kept.append(x)
            x = attention(block2(x, time))
            kept.append(x)
            x = resample(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time)), time)
        for block1, block2, attention, resample in map(_parts, self.ups):
            x = block1(torch.cat((x, kept.pop()), dim=1), time)
            x = block2(torch.cat((x, kept.pop()), dim=1), time)
            x = resample(attention(x))
        return (self.final_conv(self.final_res_block(torch.cat((x, stem), dim=1), time)),)


def _parts(level: Any) -> tuple[nn.Module, ...]:
    return tuple(level)


class _ChannelNorm(nn.Module):
    """RMS norm, or layer norm without a bias, over the channels of (N, C, H, W)."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.g = nn.Parameter(torch.empty(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            scaled: Tensor = functional.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5
            return scaled
        variance = x.var(dim=1, unbiased=False, keepdim=True)
        return (x - x.mean(dim=1, keepdim=True)) * (variance + _EPS).rsqrt() * self.g


class _Block(nn.Module):
    def __init__(self, entering: int, leaving: int, config: LucidrainsConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(entering, leaving, 3, padding=1)
        grouped = config.norm == "group"
        self.norm = (
            nn.GroupNorm(config.groups, leaving) if grouped else _ChannelNorm(leaving, "rms")
        )

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, ...] = ()) -> Tensor:
        x = self.norm(self.proj(x))
        if scale_shift:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return functional.silu(x)


class _ResidualBlock(nn.Module):
    def __init__(self, entering: int, leaving: int, time: int, config: LucidrainsConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * leaving))
        self.block1 = _Block(entering, leaving, config)
        self.block2 = _Block(leaving, leaving, config)
        same = entering == leaving
        self.res_conv = nn.Identity() if same else nn.Conv2d(entering, leaving, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale_shift = self.mlp(time)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale_shift)) + self.res_conv(x)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Attention over pixels, with a residual connection."""

    def __init__(
        self, channels: int, settings: AttentionSettings, config: LucidrainsConfig
    ) -> None:
        super().__init__()
        full, heads, head_dim, memory = self.settings = AttentionSettings(*settings)
        self.scale_values = config.scale_values
        self.norm = _ChannelNorm(channels, config.attention_norm)
        if memory:
            sizes = (memory, head_dim) if full else (head_dim, memory)
            self.mem_kv = nn.Parameter(torch.empty(2, heads, *sizes))
        hidden = heads * head_dim
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        out = nn.Conv2d(hidden, channels, 1)
        after = _ChannelNorm(channels, config.attention_norm)
        self.to_out = out if full else nn.Sequential(out, after)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        full, heads, head_dim, memory = self.settings
        q, k, v = (
            part.view(n, heads, head_dim, height * width)  # (N, heads, d, pixels)
            for part in self.to_qkv(self.norm(x)).chunk(3, dim=1)
        )
        if memory:
            kept = self.mem_kv.transpose(-1, -2) if full else self.mem_kv  # (2, heads, d, memory)
            keys, values = kept[:, None].expand(-1, n, -1, -1, -1)
            k, v = torch.cat((keys, k), dim=-1), torch.cat((values, v), dim=-1)
        if full:
            q, k, v = (part.transpose(-1, -2) for part in (q, k, v))
            found = functional.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        else:
            if self.scale_values:
                v = v / (height * width)
            context = k.softmax(dim=-1) @ v.transpose(-1, -2)  # (N, heads, d, d)
            found = context.transpose(-1, -2) @ (q.softmax(dim=-2) * head_dim**-0.5)
        return self.to_out(found.reshape(n, -1, height, width)) + x  # type: ignore[no-any-return]


def _same(entering: int, leaving: int) -> nn.Module:
    return nn.Conv2d(entering, leaving, 3, padding=1)


def _halve(entering: int, leaving: int, unshuffle: bool) -> nn.Module:
    if unshuffle:
        return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * entering, leaving, 1))
    return nn.Conv2d(entering, leaving, 4, 2, 1)


def _double(entering: int, leaving: int) -> nn.Module:
    convolution = nn.Conv2d(entering, leaving, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)


def read_config(settings: Mapping[str, Any]) -> LucidrainsConfig:
    """The config that LucidrainsConfig.settings wrote. Raises TypeError, ValueError for any other."""
    values = {key: value for key, value in settings.items() if not key.startswith("_")}
    for key in ("down", "up"):
        values[key] = tuple(AttentionSettings(*entry) for entry in values[key])
    values["middle"] = AttentionSettings(*values["middle"])
    for key in ("block_out_channels", "sample_size"):
        values[key] = tuple(values[key])
    return LucidrainsConfig(**values)
