"""The UNet of a latent diffusion checkpoint in CompVis' layout, in UNet2DConditionModel's words."""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.families.common import Flags, Names, Network, side, wrong
from ddimctl.checkpoints.families.openai import block_names
from ddimctl.checkpoints.families.openai_shape import MARK, Shape, read_shape
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.untrusted.settings import JsonObject

PREFIX: Final = "model.diffusion_model."

_LEAVES: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    **{name: name for name in ("norm", "proj_in", "proj_out")},
}
_ADDED: Final = {
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_TIME_IDS: Final = 6  # SDXL's original size, crop and target size
_HEADS, _HEAD_CHANNELS, _GROUPS = 8, 64, 32  # of all that were published
_OTHER_INPUTS: Final = {
    9: "an inpainting network, which needs a mask and an image beside the noise",
    8: "an InstructPix2Pix network, which needs an image beside the noise",
    7: "an upscaler, which needs a small image beside the noise",
    5: "a depth-to-image network, which needs a depth map beside the noise",
    6: "a super-resolution network, which needs a small image beside the noise",
}


class _Attention(NamedTuple):
    """depths: transformer blocks by level, 0 without attention. linear: projections are linear
    layers. width: of the text's embeddings."""

    depths: tuple[int, ...]
    mid: int
    linear: bool
    width: int


def undetermined(flags: Flags, *keys: str) -> RequestError:
    """The error for what the weights do not show and no flag gives."""
    return RequestError(
        f"the weights of {flags.file} do not show its {' or '.join(keys)}.",
        "Pass it as --model-flag NAME=VALUE, or pass --model-flag config=FOLDER, a diffusers folder "
        "of the same architecture.",
    )


def convert_unet(
    weights: Mapping[str, Tensor],
    flags: Flags,
    settings: Mapping[str, Any],
    size: tuple[int, int],
    pooled: int | None,
) -> Network:
    """The UNet of weights without PREFIX.

    settings: norm_num_groups, num_heads, num_head_channels, where they are known. size: (H, W) of its
    latents. pooled: the width of the pooled text embedding that it takes, or None. Raises
    CheckpointError where it is none that can run, RequestError where something must be flags.
    """
    taken = side(weights, MARK, 1, flags)
    if taken in _OTHER_INPUTS:
        remedy = "Pass a checkpoint that starts from noise alone."
        raise CheckpointError(f"{flags.file} is {_OTHER_INPUTS[taken]}.", remedy)
    if "time_embed.cond_proj.weight" in weights:
        raise CheckpointError(
            f"{flags.file} is a latent consistency model, which cannot be run.",
            "Pass the checkpoint that it was made from.",
        )
    shape = read_shape(weights, flags)
    attention = _attention(weights, shape, flags)
    names = _names(weights, shape)
    return Network(
        _config(weights, shape, attention, flags, settings, size) | _added(weights, flags, pooled),
        {names.of(key): tensor for key, tensor in weights.items()},
        lambda key: PREFIX + names.inverted().of(key),
    )


def _names(weights: Mapping[str, Tensor], shape: Shape) -> Names:
    return Names(block_names(shape) | _ADDED, _leaves(weights))


def compvis_names(weights: Mapping[str, Tensor]) -> Names:
    """From the names of a UNet2DConditionModel's weights to CompVis'."""
    levels = count(weights, r"down_blocks\.(\d{1,3})\.")
    attention = tuple(
        i for i in range(levels) if f"down_blocks.{i}.attentions.0.norm.weight" in weights
    )
    shape = Shape(
        num_channels=0,
        widths=(0,) * levels,
        num_res_blocks=count(weights, r"down_blocks\.0\.resnets\.(\d{1,3})\."),
        attention=attention,
        use_scale_shift_norm=False,
        resblock_updown=False,
        conv_resample=True,
        in_channels=0,
        learn_sigma=False,
        num_classes=None,
    )
    return _names(weights, shape).inverted()


def _leaves(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The names within blocks; what is in a transformer has the same in both."""
    inside = (re.search(r"\.(transformer_blocks\..+)\.[^.]+$", key) for key in weights)
    return _LEAVES | {found[1]: found[1] for found in inside if found}


def count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the names have at that place."""
    return len({found[1] for key in weights if (found := re.match(pattern, key))})


def _attention(weights: Mapping[str, Tensor], shape: Shape, flags: Flags) -> _Attention:
    each = shape.num_res_blocks + 1
    depths = tuple(
        _depth(weights, f"input_blocks.{1 + i * each}.1.") if i in shape.attention else 0
        for i in range(len(shape.widths))
    )
    mid = _depth(weights, "middle_block.1.")
    if not mid:
        raise CheckpointError(
            f"{flags.file} has no text attention in its UNet (no transformer in its middle block).",
            "Pass a Stable Diffusion checkpoint, or the diffusers folder of this one.",
        )
    first = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    projection = weights.get("middle_block.1.proj_in.weight")
    linear = projection is not None and projection.ndim == 2
    return _Attention(depths, mid, linear, side(weights, first, 1, flags))


def _depth(weights: Mapping[str, Tensor], module: str) -> int:
    """How many transformer blocks an attention module has."""
    return count(weights, re.escape(module) + r"transformer_blocks\.(\d{1,3})\.")


def _config(
    weights: Mapping[str, Tensor],
    shape: Shape,
    attention: _Attention,
    flags: Flags,
    settings: Mapping[str, Any],
    size: tuple[int, int],
) -> JsonObject:
    levels = range(len(shape.widths))
    depths = [max(1, depth) for depth in attention.depths]
    if attention.depths[-1] not in (0, attention.mid):
        raise CheckpointError(
            f"{flags.file}: the middle of its UNet is not as deep as its last level.",
            "Pass the diffusers folder of this checkpoint.",
        )
    depths[-1] = attention.mid
    kinds = ["CrossAttn{}Block2D" if depth else "{}Block2D" for depth in attention.depths]
    heads = _heads(flags, settings, shape, attention)
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": shape.in_channels,
        "out_channels": side(weights, "out.2.weight", 0, flags),
        "block_out_channels": list(shape.widths),
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": [kinds[i].format("Down") for i in levels],
        "up_block_types": [kinds[i].format("Up") for i in reversed(levels)],
        "cross_attention_dim": attention.width,
        "transformer_layers_per_block": depths[0] if len({*depths}) == 1 else depths,
        "attention_head_dim": heads[0] if len({*heads}) == 1 else heads,
        "use_linear_projection": attention.linear,
        "norm_num_groups": groups(flags, settings, "norm_num_groups", shape.widths),
    }


def groups(flags: Flags, settings: Mapping[str, Any], key: str, widths: tuple[int, ...]) -> int:
    """The number of groups of the norms, by the setting of that name, else as all published networks have it."""
    count: int = settings.get(key, _GROUPS)
    if count < 1 or any(width % count for width in widths):
        if key not in settings:
            raise undetermined(flags, key)
        raise wrong(flags, key, f"{widths[0]} channels cannot be split into {count} groups.")
    return count


def _heads(
    flags: Flags, settings: Mapping[str, Any], shape: Shape, attention: _Attention
) -> list[int]:
    """The number of heads by level, which diffusers calls attention_head_dim."""
    used = {shape.widths[i] for i, depth in enumerate(attention.depths) if depth}
    used.add(shape.widths[-1])
    by_channels = "num_head_channels" in settings or (
        "num_heads" not in settings and attention.linear
    )
    key = "num_head_channels" if by_channels else "num_heads"
    value = settings.get(key, _HEAD_CHANNELS if by_channels else _HEADS)
    if value < 1 or any(width % value for width in used):
        if key not in settings:
            raise undetermined(flags, "num_heads", "num_head_channels")
        raise wrong(flags, key, f"{min(used)} channels of attention do not fit {key} {value}.")
    return [max(1, width // value) if by_channels else value for width in shape.widths]


def _added(weights: Mapping[str, Tensor], flags: Flags, pooled: int | None) -> JsonObject:
    """What SDXL adds to the timestep's embedding: the pooled text embedding and six numbers."""
    key = "label_emb.0.0.weight"
    if key not in weights:
        return {}
    width = side(weights, key, 1, flags)
    if pooled is None or width <= pooled or (width - pooled) % _TIME_IDS:
        raise CheckpointError(
            f"{flags.file} takes other embeddings beside the text (unCLIP or its kin).",
            "Pass a checkpoint that works from text alone.",
        )
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // _TIME_IDS,
        "projection_class_embeddings_input_dim": width,
    }
