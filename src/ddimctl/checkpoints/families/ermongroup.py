"""The family of Ho et al. 2020 and ermongroup/ddim: `down.0.block.0.norm1.weight` and its like."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.build.scheduler_config import Diffusion
from ddimctl.checkpoints.families.common import (
    SIZE,
    Converted,
    Flags,
    Names,
    check_settings,
    check_steps,
    read_flags,
    side,
    training_size,
    wrong,
)
from ddimctl.diffusion.schedules import Schedule, from_betas, make_schedule
from ddimctl.errors import RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

NAME: Final = "ermongroup"
PREFIXES: Final = ()
CONFIG: Final = "config.yml"
MARK: Final = "down.0.block.0.norm1.weight"

# Their names -> diffusers', for whole modules of the network ...
_ENDS: Final = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}
# ... and for what residual and attention blocks consist of.
_LEAVES: Final = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_SETTINGS: Final = {
    SIZE: int,
    "num_diffusion_timesteps": int,
    "beta_schedule": str,
    "beta_start": float,
    "beta_end": float,
}
_DEFAULTS: Final = {
    "num_diffusion_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
_FROM_WEIGHTS: Final = {
    "ch": int,
    "num_res_blocks": int,
    "in_channels": int,
    "resamp_with_conv": bool,
}
_SCHEDULES: Final = {"linear": "linear", "quad": "scaled_linear", "sigmoid": "sigmoid"}
_ATTENTION: Final = re.compile(r"(down|up)\.\d+\.attn\.|mid\.attn_1\.")
# Sizes of the published networks, by channels, multipliers, blocks and levels with attention.
_PUBLISHED: Final[dict[tuple[Any, ...], int]] = {
    (128, (1, 2, 2, 2), 2, (1,)): 32,  # CIFAR-10
    (128, (1, 2, 2, 2, 4), 2, (2,)): 64,  # CelebA
    (128, (1, 1, 2, 2, 4, 4), 2, (4,)): 256,  # LSUN, CelebA-HQ
}


class _Shape(NamedTuple):
    """What the weights show of the network; None where one level has no need of it."""

    ch: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[int, ...]
    resamp_with_conv: bool | None
    in_channels: int
    out_ch: int


def convert(weights: Mapping[str, Tensor], flags: Flags) -> Converted:
    """The network in diffusers' terms. Raises CheckpointError, RequestError."""
    shape = _read_shape(weights, flags)
    settings = read_flags(flags, _SETTINGS | _FROM_WEIGHTS, ())
    check_settings(flags, settings, {key: getattr(shape, key) for key in _FROM_WEIGHTS})
    levels = len(shape.widths)
    multipliers = tuple(width / shape.ch for width in shape.widths)
    published = (shape.ch, multipliers, shape.num_res_blocks, shape.attention)
    if SIZE not in settings and flags.size is None and published in _PUBLISHED:
        settings[SIZE] = _PUBLISHED[published]
    notes = ["has a weight logvar, which sampling does not use."] if "logvar" in weights else []
    if "num_diffusion_timesteps" not in settings and "beta_schedule" not in settings:
        notes.append("does not hold its noise schedule: assuming linear, 1e-4 to 0.02, T = 1000.")
    names = _names(shape)
    resolved = _DEFAULTS | settings
    return Converted(
        config=_config(shape, training_size(flags, settings, levels)),
        weights={
            names.of(key): _as_linear(tensor) if _ATTENTION.match(key) else tensor
            for key, tensor in weights.items()
            if key != "logvar"
        },
        diffusion=Diffusion(_schedule(flags, resolved), "eps", {}),
        patches=UNetPatches(
            stem_channels=shape.ch if shape.ch != shape.widths[0] else None,
            time_channels=shape.ch if shape.ch != shape.widths[0] else None,
            resample_conv=shape.resamp_with_conv is not False,
        ),
        notes=tuple(f"{flags.file} {note}" for note in notes),
        settings={key: resolved[key] for key in _SETTINGS if key in resolved},
        source_name=names.inverted().of,
    )


def _read_shape(weights: Mapping[str, Tensor], flags: Flags) -> _Shape:
    def count(pattern: str) -> int:
        return len({match[1] for key in weights if (match := re.match(pattern, key))})

    levels, blocks = count(r"down\.(\d\d?)\.block\."), count(r"down\.0\.block\.(\d\d?)\.")
    return _Shape(
        ch=side(weights, "conv_in.weight", 0, flags),
        widths=tuple(
            side(weights, f"down.{i}.block.0.conv1.weight", 0, flags) for i in range(levels)
        ),
        num_res_blocks=blocks,
        attention=tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in weights),
        resamp_with_conv="down.0.downsample.conv.weight" in weights if levels > 1 else None,
        in_channels=side(weights, "conv_in.weight", 1, flags),
        out_ch=side(weights, "conv_out.weight", 0, flags),
    )


def _config(shape: _Shape, size: tuple[int, int]) -> JsonObject:
    levels = range(len(shape.widths))
    attention = ["Attn" if i in shape.attention else "" for i in levels]
    return {
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_ch,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": [f"{attention[i]}DownBlock2D" for i in levels],
        "up_block_types": [f"{attention[i]}UpBlock2D" for i in reversed(levels)],
        "attention_head_dim": None,  # one head
        "time_embedding_dim": 4 * shape.ch,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,  # the padding is at the right and the bottom only
        "norm_eps": 1e-6,
    }


def _names(shape: _Shape) -> Names:
    blocks = dict(_ENDS)
    top = len(shape.widths) - 1
    for i in range(top + 1):
        for j in range(shape.num_res_blocks + 1):
            blocks[f"down.{i}.block.{j}"] = f"down_blocks.{i}.resnets.{j}"
            blocks[f"down.{i}.attn.{j}"] = f"down_blocks.{i}.attentions.{j}"
            blocks[f"up.{i}.block.{j}"] = f"up_blocks.{top - i}.resnets.{j}"
            blocks[f"up.{i}.attn.{j}"] = f"up_blocks.{top - i}.attentions.{j}"
        blocks[f"down.{i}.downsample.conv"] = f"down_blocks.{i}.downsamplers.0.conv"
        blocks[f"up.{i}.upsample.conv"] = f"up_blocks.{top - i}.upsamplers.0.conv"
    return Names(blocks, _LEAVES)


def _as_linear(tensor: Tensor) -> Tensor:
    """The weight of a 1 x 1 convolution, which diffusers has as a linear layer's."""
    return tensor[:, :, 0, 0] if tensor.shape[2:] == (1, 1) else tensor


def _schedule(flags: Flags, settings: Mapping[str, Any]) -> Schedule:
    steps, kind = settings["num_diffusion_timesteps"], settings["beta_schedule"]
    start, end = settings["beta_start"], settings["beta_end"]
    check_steps(flags, "num_diffusion_timesteps", steps)
    known = (*_SCHEDULES, "const", "jsd")
    if kind not in known:
        remedy = f"Choose one of {', '.join(known)}."
        raise wrong(flags, "beta_schedule", f"beta_schedule is {brief(kind)}.", remedy)
    try:
        if kind == "const":
            return from_betas([end] * steps)
        if kind == "jsd":
            return from_betas(1 / torch.linspace(steps, 1, steps, dtype=torch.float64))
        if not (0 < start <= 1 and 0 < end <= 1):
            raise RequestError(f"beta_start {start:g} and beta_end {end:g} must be in (0, 1].")
        return make_schedule(_SCHEDULES[kind], steps, start, end)
    except RequestError as error:
        key = next((key for key in _SETTINGS if key != SIZE and key in flags.given), "")
        raise wrong(flags, key, error.cause, error.remedy) from error
