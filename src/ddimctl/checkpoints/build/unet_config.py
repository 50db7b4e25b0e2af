"""The settings of a stranger's UNet, checked before a network is made of them."""

from collections.abc import Mapping
from typing import Any, Final

from ddimctl.checkpoints.build.rules import (
    BELONGS,
    CHANNELS,
    FLAG,
    TEXT,
    check_rules,
    each,
    either,
    one_of,
    or_none,
    real,
    whole,
)
from ddimctl.checkpoints.build.scheduler_config import MAX_TIMESTEPS
from ddimctl.errors import CheckpointError

_MAX_LAYERS: Final = 64
_MAX_BLOCKS_IN_ALL: Final = 128  # published networks have about twenty
_MAX_TRANSFORMERS: Final = 1024  # SDXL has 70
_SAMPLING: Final = one_of("conv", "resnet")

_RULES: Final = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "center_input_sample": FLAG,
    "time_embedding_type": one_of("positional", "fourier", "learned"),
    "time_embedding_dim": or_none(CHANNELS),
    "freq_shift": real(0, 1),
    "flip_sin_to_cos": FLAG,
    "down_block_types": each(TEXT),
    "mid_block_type": or_none(one_of("UNetMidBlock2D")),
    "up_block_types": each(TEXT),
    "block_out_channels": each(CHANNELS),
    "layers_per_block": whole(1, _MAX_LAYERS),
    "mid_block_scale_factor": real(1e-6, 1e6),
    "downsample_padding": whole(0, 1),
    "downsample_type": _SAMPLING,
    "upsample_type": _SAMPLING,
    "dropout": real(0, 1),
    "act_fn": TEXT,
    "attention_head_dim": or_none(CHANNELS),
    "norm_num_groups": CHANNELS,
    "attn_norm_num_groups": or_none(CHANNELS),
    "norm_eps": real(0, 1),
    "resnet_time_scale_shift": one_of("default", "scale_shift"),
    "add_attention": FLAG,
    "class_embed_type": or_none(TEXT),
    "num_class_embeds": or_none(CHANNELS),
    "num_train_timesteps": or_none(whole(1, MAX_TIMESTEPS)),
}


_COUNT: Final = whole(1, _MAX_LAYERS)
_COUNTS: Final = either(_COUNT, each(_COUNT))
_FLAGS: Final = either(FLAG, each(FLAG))
_ACTIVATION: Final = or_none(TEXT)

_CONDITION_RULES: Final = {
    **{
        name: _RULES[name]
        for name in (
            *("in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos"),
            *("freq_shift", "down_block_types", "up_block_types", "block_out_channels"),
            *("mid_block_scale_factor", "downsample_padding", "dropout", "act_fn"),
            *("norm_num_groups", "norm_eps", "resnet_time_scale_shift", "time_embedding_dim"),
        )
    },
    "time_embedding_type": one_of("positional"),
    "mid_block_type": one_of("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
    "layers_per_block": _COUNTS,
    "cross_attention_dim": either(CHANNELS, each(CHANNELS)),
    "transformer_layers_per_block": either(_COUNT, each(_COUNTS)),
    "reverse_transformer_layers_per_block": or_none(each(_COUNTS)),
    "attention_head_dim": either(CHANNELS, each(CHANNELS)),  # the number of heads, in fact
    "only_cross_attention": _FLAGS,
    "mid_block_only_cross_attention": or_none(FLAG),
    "use_linear_projection": FLAG,
    "upcast_attention": FLAG,
    "dual_cross_attention": FLAG,
    "addition_embed_type": or_none(one_of("text_time")),
    "addition_time_embed_dim": or_none(CHANNELS),
    "projection_class_embeddings_input_dim": or_none(CHANNELS),
    "addition_embed_type_num_heads": CHANNELS,
    "resnet_skip_time_act": FLAG,
    "resnet_out_scale_factor": real(1e-6, 1e6),
    "time_embedding_act_fn": _ACTIVATION,
    "timestep_post_act": _ACTIVATION,
    "conv_in_kernel": whole(1, 9),
    "conv_out_kernel": whole(1, 9),
    "attention_type": one_of("default"),
    "class_embeddings_concat": FLAG,
    "cross_attention_norm": or_none(one_of("layer_norm", "group_norm")),
}


def check_unet_config(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for a setting of the wrong type, or of a size that no network has.

    Making one of diffusers' networks takes time by the number of its layers, even without memory
    for its weights. Settings that are not there get diffusers' own values, and are not looked at.
    """
    check_rules(config, _RULES, where)
    _check_layers(config, where)


def check_condition_config(config: Mapping[str, Any], where: str) -> None:
    """The same for a UNet2DConditionModel."""
    check_rules(config, _CONDITION_RULES, where)
    _check_layers(config, where)
    transformers = _most(config.get("transformer_layers_per_block", 1))
    count = _levels(config) * _most(config.get("layers_per_block", 1)) * transformers
    if count > _MAX_TRANSFORMERS:
        raise CheckpointError(
            f"{where}: {count} transformer blocks on the way down, more than {_MAX_TRANSFORMERS}.",
            BELONGS,
        )


def _check_layers(config: Mapping[str, Any], where: str) -> None:
    count = _levels(config) * _most(config.get("layers_per_block", 0))
    if count > _MAX_BLOCKS_IN_ALL:
        raise CheckpointError(
            f"{where}: {count} residual blocks on the way down, more than {_MAX_BLOCKS_IN_ALL}.",
            BELONGS,
        )


def _levels(config: Mapping[str, Any]) -> int:
    return len(config.get("block_out_channels", ()))


def _most(value: Any) -> int:
    """The largest number in a number, or in lists of them."""
    return max(map(_most, value)) if isinstance(value, list | tuple) else int(value)
