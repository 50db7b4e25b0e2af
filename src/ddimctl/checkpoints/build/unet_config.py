"""The settings of a stranger's UNet2DModel, checked before a network is made of them."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ddimctl.checkpoints.build.scheduler_config import MAX_TIMESTEPS
from ddimctl.errors import CheckpointError, brief
from ddimctl.files.untrusted.settings import JsonObject

_MAX_BLOCKS: Final = 16
_MAX_LAYERS: Final = 64
_MAX_BLOCKS_IN_ALL: Final = 128  # published networks have about twenty
_MAX_CHANNELS: Final = 2**16


class _Rule(NamedTuple):
    valid: Callable[[Any], bool]
    wanted: str


def _whole(least: int, most: int) -> _Rule:
    return _Rule(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
    )


def _real(least: float, most: float) -> _Rule:
    return _Rule(
        lambda value: (
            type(value) in (int, float) and math.isfinite(value) and least <= value <= most
        ),
        f"a number from {least:g} to {most:g}",
    )


def _one_of(*values: str) -> _Rule:
    return _Rule(lambda value: type(value) is str and value in values, " or ".join(values))


def _or_none(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.valid(value), f"{rule.wanted}, or null")


def _each(rule: _Rule) -> _Rule:
    return _Rule(
        lambda value: (
            isinstance(value, list | tuple)
            and 1 <= len(value) <= _MAX_BLOCKS
            and all(map(rule.valid, value))
        ),
        f"a list of 1 to {_MAX_BLOCKS}, each {rule.wanted}",
    )


_FLAG: Final = _Rule(lambda value: type(value) is bool, "true or false")
_TEXT: Final = _Rule(lambda value: type(value) is str and len(value) <= 100, "a short name")
_CHANNELS: Final = _whole(1, _MAX_CHANNELS)
_SAMPLING: Final = _one_of("conv", "resnet")

_RULES: Final = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "center_input_sample": _FLAG,
    "time_embedding_type": _one_of("positional", "fourier", "learned"),
    "time_embedding_dim": _or_none(_CHANNELS),
    "freq_shift": _real(0, 1),
    "flip_sin_to_cos": _FLAG,
    "down_block_types": _each(_TEXT),
    "mid_block_type": _or_none(_one_of("UNetMidBlock2D")),
    "up_block_types": _each(_TEXT),
    "block_out_channels": _each(_CHANNELS),
    "layers_per_block": _whole(1, _MAX_LAYERS),
    "mid_block_scale_factor": _real(1e-6, 1e6),
    "downsample_padding": _whole(0, 1),
    "downsample_type": _SAMPLING,
    "upsample_type": _SAMPLING,
    "dropout": _real(0, 1),
    "act_fn": _TEXT,
    "attention_head_dim": _or_none(_CHANNELS),
    "norm_num_groups": _CHANNELS,
    "attn_norm_num_groups": _or_none(_CHANNELS),
    "norm_eps": _real(0, 1),
    "resnet_time_scale_shift": _one_of("default", "scale_shift"),
    "add_attention": _FLAG,
    "class_embed_type": _or_none(_TEXT),
    "num_class_embeds": _or_none(_CHANNELS),
    "num_train_timesteps": _or_none(_whole(1, MAX_TIMESTEPS)),
}


def check_unet_config(config: JsonObject, where: str) -> None:
    """Raise CheckpointError for a setting of the wrong type, or of a size that no network has.

    Making one of diffusers' networks takes time by the number of its layers, even without memory
    for its weights. Settings that are not there get diffusers' own values, and are not looked at.
    """
    for name, rule in _RULES.items():
        if name in config and not rule.valid(config[name]):
            raise CheckpointError(
                f"{where}: {name} is {brief(config[name])}, not {rule.wanted}.",
                "Use the config.json that belongs to the weights.",
            )
    _check_layers(config, where)


def _check_layers(config: JsonObject, where: str) -> None:
    count = len(config.get("block_out_channels", ())) * config.get("layers_per_block", 0)
    if count > _MAX_BLOCKS_IN_ALL:
        raise CheckpointError(
            f"{where}: {count} residual blocks on the way down, more than {_MAX_BLOCKS_IN_ALL}.",
            "Use the config.json that belongs to the weights.",
        )
