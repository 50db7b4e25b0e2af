"""The family of OpenAI's improved-diffusion and guided-diffusion: `input_blocks.0.0.weight` and its like."""

from collections.abc import Callable, Mapping
from typing import Any, Final

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
from ddimctl.checkpoints.families.openai_published import PUBLISHED
from ddimctl.checkpoints.families.openai_shape import MARK, Shape, read_shape
from ddimctl.diffusion.schedules import Schedule, make_schedule
from ddimctl.errors import CheckpointError, RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

NAME: Final = "openai"
PREFIXES: Final = ()
CONFIG: Final = "flags.json"
__all__ = ["CONFIG", "MARK", "NAME", "PREFIXES", "convert"]

# Their names -> diffusers', for the ends of the network, its residual blocks and its attention.
_ENDS: Final = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_LEAVES: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "qkv": "qkv",  # taken apart afterwards
    "proj_out": "to_out.0",
}
_PARTS: Final = ("to_q", "to_k", "to_v")
_HEADS: Final = {"num_heads", "num_head_channels", "num_heads_upsample"}
# By the names of their scripts: these must be known of a network, ...
_SETTINGS: Final = {
    SIZE: int,
    "num_heads": int,
    "num_head_channels": int,
    "num_heads_upsample": int,
    "use_new_attention_order": bool,
    "noise_schedule": str,
    "diffusion_steps": int,
    "rescale_timesteps": bool,
    "predict_xstart": bool,
}
# ... of which these have a default; ...
_DEFAULTS: Final = {
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "rescale_timesteps": False,
    "predict_xstart": False,
}
# ... the weights show these, ...
_FROM_WEIGHTS: Final = {
    "num_channels": int,
    "num_res_blocks": int,
    "learn_sigma": bool,
    "class_cond": bool,
    "use_scale_shift_norm": bool,
    "resblock_updown": bool,
}
# ... and these change nothing here.
_IGNORED: Final = (
    *("use_fp16", "use_checkpoint", "dropout", "sigma_small", "use_kl", "rescale_learned_sigmas"),
    *("timestep_respacing", "channel_mult", "attention_resolutions"),
)


def convert(weights: Mapping[str, Tensor], flags: Flags) -> Converted:
    """The network in diffusers' terms. Raises CheckpointError, RequestError."""
    shape = read_shape(weights, flags)
    if "steps" in flags.beside:  # what their code calls diffusion_steps
        flags = flags._replace(beside={"diffusion_steps": flags.beside["steps"], **flags.beside})
    settings = read_flags(flags, _SETTINGS | _FROM_WEIGHTS, _IGNORED)
    check_settings(flags, settings, {key: getattr(shape, key) for key in _FROM_WEIGHTS})
    settings, published = _with_published(flags, settings, shape)
    _check_complete(flags, settings)
    size = training_size(flags, settings, len(shape.widths))
    steps = settings["diffusion_steps"]
    head_channels, heads, heads_up = _heads(flags, settings, shape)
    names = Names(block_names(shape), _LEAVES)
    first, resolved = shape.widths[0], _DEFAULTS | settings
    return Converted(
        config=_config(shape, size, head_channels),
        weights=_renamed(weights, names, settings, flags),
        diffusion=Diffusion(
            _schedule(flags, settings["noise_schedule"], steps),
            "x_0" if settings.get("predict_xstart") else "eps",
            {},
        ),
        patches=UNetPatches(
            heads=heads,
            heads_up=heads_up,
            time_channels=shape.num_channels if shape.num_channels != first else None,
            resample_conv=shape.conv_resample,
            timestep_scale=1000 / steps if settings.get("rescale_timesteps") else 1.0,
        ),
        notes=published,
        settings={key: resolved[key] for key in _SETTINGS if key in resolved},
        source_name=_source_name(names),
    )


def _with_published(
    flags: Flags, settings: JsonObject, shape: Shape
) -> tuple[JsonObject, tuple[str, ...]]:
    """The settings completed by those of a published network, and a note of the added ones."""
    multipliers = tuple(width / shape.num_channels for width in shape.widths)
    structure = (shape.num_channels, multipliers, shape.num_res_blocks, shape.attention)
    kind = (shape.class_cond, shape.resblock_updown, shape.use_scale_shift_norm)
    usual = shape.in_channels == 3 and shape.learn_sigma and shape.num_classes in (None, 1000)
    known = PUBLISHED.get((*structure, *kind)) if usual else None
    if known is None:
        return settings, ()
    left = _HEADS if settings.keys() & _HEADS else set()
    left = left | settings.keys() | ({SIZE} if flags.size is not None else set())
    added = {key: value for key, value in known.flags.items() if key not in left}
    if not added:
        return settings, ()
    words = ", ".join(f"{key} {value}" for key, value in added.items())
    note = f"{flags.file} looks like a network that {known.by} published: assuming {words}."
    return settings | added, (note,)


def _check_complete(flags: Flags, settings: Mapping[str, Any]) -> None:
    """Raise RequestError naming the settings that are needed and missing."""
    heads, channels, up = (
        settings.get(key, -1) for key in ("num_heads", "num_head_channels", "num_heads_upsample")
    )
    one_head = channels < 1 and heads == 1 and up in (-1, 1)
    wanted = {
        SIZE: flags.size is None,
        "num_heads or num_head_channels": heads < 1 and channels < 1,
        "use_new_attention_order": not one_head,
        "noise_schedule": True,
        "diffusion_steps": True,
        "rescale_timesteps": settings.get("diffusion_steps") != 1000,
    }
    missing = [key for key, needed in wanted.items() if needed and key not in settings]
    if missing:
        raise RequestError(
            f"the weights of {flags.file} do not show {', '.join(missing)}.",
            f"Pass each as --model-flag NAME=VALUE, or put the training flags into {CONFIG} beside it.",
        )
    check_steps(flags, "diffusion_steps", settings["diffusion_steps"])


def _heads(
    flags: Flags, settings: Mapping[str, Any], shape: Shape
) -> tuple[int | None, int | None, int | None]:
    """(channels of a head, or heads and heads on the way up where those differ by level)."""
    levels = {shape.widths[i] for i in shape.attention}
    widths = levels | {shape.widths[-1]}

    def check(key: str, value: int, widths: set[int]) -> None:
        if rest := [width for width in widths if width % value]:
            cause = f"{rest[0]} attention channels do not divide by {key} = {value}."
            raise wrong(flags, key, cause, f"Correct {key}.")

    channels = settings.get("num_head_channels", -1)
    if channels > 0:
        check("num_head_channels", channels, widths)
        return channels, None, None
    heads, up = settings["num_heads"], settings.get("num_heads_upsample", -1)
    up = up if up > 0 else heads
    check("num_heads", heads, widths)
    check("num_heads_upsample", up, levels)
    if len(widths) == 1 and up == heads:
        return shape.widths[-1] // heads, None, None
    return None, heads, up if up != heads else None


def _config(shape: Shape, size: tuple[int, int], head_channels: int | None) -> JsonObject:
    levels = range(len(shape.widths))
    plain = "Resnet{}sampleBlock2D" if shape.resblock_updown else "{}Block2D"
    kinds = ["Attn{}Block2D" if i in shape.attention else plain for i in levels]
    resample = "resnet" if shape.resblock_updown else "conv"
    return {
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": shape.in_channels,
        "out_channels": shape.in_channels * (2 if shape.learn_sigma else 1),
        "block_out_channels": shape.widths,
        "layers_per_block": shape.num_res_blocks,
        "down_block_types": [kinds[i].format("Down") for i in levels],
        "up_block_types": [kinds[i].format("Up") for i in reversed(levels)],
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": head_channels,
        "attn_norm_num_groups": 32,
        "time_embedding_dim": 4 * shape.num_channels,
        "resnet_time_scale_shift": "scale_shift" if shape.use_scale_shift_norm else "default",
        "num_class_embeds": shape.num_classes,
    }


def block_names(shape: Shape) -> dict[str, str]:
    """The modules of such a network, theirs to diffusers'."""
    blocks = dict(_ENDS)
    top, each = len(shape.widths) - 1, shape.num_res_blocks + 1
    for i in range(top + 1):
        theirs, ours = i * each, f"down_blocks.{i}"
        for j in range(shape.num_res_blocks):
            blocks[f"input_blocks.{theirs + 1 + j}.0"] = f"{ours}.resnets.{j}"
            blocks[f"input_blocks.{theirs + 1 + j}.1"] = f"{ours}.attentions.{j}"
        plain = "" if shape.resblock_updown else ".op"
        blocks[f"input_blocks.{theirs + each}.0{plain}"] = (
            f"{ours}.downsamplers.0{plain and '.conv'}"
        )
        ours = f"up_blocks.{i}"
        for j in range(each):
            blocks[f"output_blocks.{theirs + j}.0"] = f"{ours}.resnets.{j}"
            blocks[f"output_blocks.{theirs + j}.1"] = f"{ours}.attentions.{j}"
        last = 2 if top - i in shape.attention else 1
        plain = "" if shape.resblock_updown else ".conv"
        blocks[f"output_blocks.{theirs + each - 1}.{last}{plain}"] = f"{ours}.upsamplers.0{plain}"
    return blocks


def _source_name(names: Names) -> Callable[[str], str]:
    blocks, leaves = names.inverted()
    return Names(blocks, {**leaves, **dict.fromkeys(_PARTS, "qkv")}).of


def _renamed(
    weights: Mapping[str, Tensor], names: Names, settings: Mapping[str, Any], flags: Flags
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        ours = names.of(key)
        if ".qkv." in key:
            parts = _split(tensor, settings, key, flags)
            found |= {ours.replace("qkv", name): part for name, part in parts.items()}
        else:
            found[ours] = tensor.squeeze(-1) if ".to_out." in ours and tensor.ndim == 3 else tensor
    return found


def _split(qkv: Tensor, settings: Mapping[str, Any], key: str, flags: Flags) -> dict[str, Tensor]:
    """The rows of q, k and v, (C, C) or (C,), of a 1 x 1 convolution (3 C, C, 1) or its bias.

    The older order has q, k and v within each head, the new one the heads within q, k and v.
    """
    flat = qkv.squeeze(-1) if qkv.ndim == 3 else qkv
    width = side({key: flat}, key, 0, flags) // 3
    heads = 1
    if not settings.get("use_new_attention_order"):
        channels = settings.get("num_head_channels", -1)
        up = settings.get("num_heads_upsample", -1) if key.startswith("output_blocks") else -1
        heads = width // channels if channels > 0 else up if up > 0 else settings["num_heads"]
    if heads < 1 or len(flat) % (3 * heads):
        raise CheckpointError(f"{flags.file} is damaged: {key} has the shape {tuple(qkv.shape)}.")
    split = flat.reshape(heads, 3, width // heads, *flat.shape[1:])
    return {name: split[:, i].reshape(width, *flat.shape[1:]) for i, name in enumerate(_PARTS)}


def _schedule(flags: Flags, kind: str, steps: int) -> Schedule:
    """linear: the betas of T = 1000, scaled to the same total for another T; cosine."""
    if kind not in ("linear", "cosine"):
        cause = f"noise_schedule is {brief(kind)}."
        raise wrong(flags, "noise_schedule", cause, "Choose linear or cosine.")
    scale = 1000 / steps
    try:
        return make_schedule(kind, steps, scale * 1e-4, scale * 0.02)
    except RequestError as error:
        raise wrong(flags, "diffusion_steps", error.cause, "Correct diffusion_steps.") from error
