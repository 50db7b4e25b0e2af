"""The family of OpenAI's improved-diffusion and guided-diffusion: `input_blocks.0.0.weight` and its like."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.converted import (
    SIZE,
    Converted,
    Said,
    check_told,
    read_flags,
    renamed,
    training_size,
)
from ddimctl.checkpoints.network import Beyond
from ddimctl.checkpoints.scheduler_config import Diffusion
from ddimctl.diffusion.schedules import Schedule, make_schedule
from ddimctl.errors import CheckpointError, RequestError

NAME: Final = "openai"
CONFIG: Final = "flags.json"
MARK: Final = "input_blocks.0.0.weight"

# Theirs -> diffusers', for the ends of the network, its residual blocks and its attention.
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
    "op": "conv",
    "conv": "conv",
}
_HEADS: Final = {"num_heads", "num_head_channels", "num_heads_upsample"}
# What their scripts call it; these must be known of a network ...
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
# ... these its weights show, ...
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
_GUIDED: Final = {
    "num_head_channels": 64,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
}
_IMPROVED: Final = {
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}


class _Shape(NamedTuple):
    """What the weights show of the network."""

    num_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[int, ...]
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    in_channels: int
    learn_sigma: bool
    num_classes: int | None

    @property
    def class_cond(self) -> bool:
        return self.num_classes is not None


# The flags of the published networks, from the READMEs of the two repositories, by what the weights
# show: channels, multipliers, blocks, levels with attention, class_cond, updown.
_PUBLISHED: Final[dict[tuple[Any, ...], dict[str, Any]]] = {
    (192, (1, 2, 3, 4), 3, (1, 2, 3), True, True): _GUIDED
    | {SIZE: 64, "noise_schedule": "cosine", "use_new_attention_order": True},
    (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), True, True): _GUIDED
    | {SIZE: 128, "num_heads": 4, "num_head_channels": -1},
    (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), True, True): _GUIDED | {SIZE: 256},
    (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), False, True): _GUIDED | {SIZE: 256},  # also LSUN
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), True, True): _GUIDED | {SIZE: 512},
    (128, (1, 2, 3, 4), 3, (2, 3), False, False): _IMPROVED | {SIZE: 64},
    (192, (1, 2, 3, 4), 3, (2, 3), True, False): _IMPROVED | {SIZE: 64, "rescale_timesteps": False},
    (128, (1, 2, 2, 2), 3, (1, 2), False, False): _IMPROVED | {SIZE: 32},
    (128, (1, 1, 2, 2, 4, 4), 2, (4,), False, False): _IMPROVED
    | {
        SIZE: 256,
        "num_heads": 1,
        "noise_schedule": "linear",
        "diffusion_steps": 1000,
        "rescale_timesteps": False,
    },
}


def convert(weights: Mapping[str, Tensor], said: Said) -> Converted:
    """The network in diffusers' words. Raises CheckpointError, RequestError."""
    shape = _read_shape(weights, said.name)
    if "steps" in said.beside:  # what their code calls diffusion_steps
        said = said._replace(beside={"diffusion_steps": said.beside["steps"], **said.beside})
    told = read_flags(said, _SETTINGS | _FROM_WEIGHTS, _IGNORED)
    check_told(said, told, {key: getattr(shape, key) for key in _FROM_WEIGHTS})
    told, published = _with_published(told, shape)
    _check_complete(said, told)
    size = training_size(said, told, len(shape.widths))
    steps = told["diffusion_steps"]
    head_channels, heads, heads_up = _heads(told, shape)
    note = f"{said.name} is taken for a network that OpenAI published: {published}."
    first = shape.widths[0]
    return Converted(
        config=_config(shape, size, head_channels),
        weights=_rename(weights, shape, told),
        diffusion=Diffusion(
            _schedule(told["noise_schedule"], steps, said),
            "x_0" if told.get("predict_xstart") else "eps",
            {},
        ),
        beyond=Beyond(
            heads=heads,
            heads_up=heads_up,
            time_channels=shape.num_channels if shape.num_channels != first else None,
            resample_conv=shape.conv_resample,
            timestep_scale=1000 / steps if told.get("rescale_timesteps") else 1.0,
        ),
        notes=(note,) if published else (),
        used=said.flags,
    )


def _with_published(told: dict[str, Any], shape: _Shape) -> tuple[dict[str, Any], str]:
    """What was said over what is known of the published networks, and that in words if it counts."""
    multipliers = tuple(width / shape.num_channels for width in shape.widths)
    found = _PUBLISHED.get(
        (
            *(shape.num_channels, multipliers, shape.num_res_blocks, shape.attention),
            *(shape.class_cond, shape.resblock_updown),
        )
    )
    if found is None:
        return told, ""
    if told.keys() & _HEADS:
        found = {key: value for key, value in found.items() if key not in _HEADS}
    added = ", ".join(f"{key} {value}" for key, value in found.items() if key not in told)
    return found | told, added


def _check_complete(said: Said, told: Mapping[str, Any]) -> None:
    """Raise RequestError with the names of what must be said of the network, and was not."""
    wanted = []
    if told.get("num_heads", -1) < 1 and told.get("num_head_channels", -1) < 1:
        wanted.append("num_heads (or num_head_channels)")
    if told.get("num_heads") != 1:
        wanted.append("use_new_attention_order")
    wanted += ["noise_schedule", "diffusion_steps"]
    if told.get("diffusion_steps") != 1000:
        wanted.append("rescale_timesteps")
    missing = [name for name in wanted if name.partition(" ")[0] not in told]
    if missing:
        raise RequestError(
            f"the weights of {said.name} do not tell its {', '.join(missing)}.",
            f"Pass each as --model-flag NAME=VALUE, or put their scripts' flags into {CONFIG} beside it.",
        )
    if told["diffusion_steps"] < 1:
        raise RequestError(f"{said.name}: diffusion_steps is {told['diffusion_steps']}.")


def _heads(told: Mapping[str, Any], shape: _Shape) -> tuple[int | None, int | None, int | None]:
    """(channels of a head, or heads and heads on the way up where those differ by level)."""
    channels = told.get("num_head_channels", -1)
    if channels > 0:
        return channels, None, None
    heads = told["num_heads"]
    up = told.get("num_heads_upsample", -1)
    widths = {shape.widths[i] for i in shape.attention} | {shape.widths[-1]}
    if len(widths) == 1 and up in (-1, heads) and shape.widths[-1] % heads == 0:
        return shape.widths[-1] // heads, None, None
    return None, heads, up if up > 0 else None


def _read_shape(weights: Mapping[str, Tensor], name: str) -> _Shape:
    """The network's structure. Raises CheckpointError where it is none that the scripts make."""
    inputs, outputs = _indices(weights, "input_blocks"), _indices(weights, "output_blocks")
    if not outputs:
        raise CheckpointError(
            f"{name} is a classifier of guided-diffusion, not a diffusion network.",
            "Pass the diffusion network.",
        )
    # what ends a level on the way up: a convolution, a residual block, or nothing with weights
    convs = [
        i for i in outputs if any(f"output_blocks.{i}.{k}.conv.weight" in weights for k in (1, 2))
    ]
    blocks = [
        i
        for i in outputs
        if any(f"output_blocks.{i}.{k}.in_layers.0.weight" in weights for k in (1, 2))
    ]
    pooled = [i for i in range(1, inputs[-1]) if i not in inputs]
    levels = 1 + len(convs or blocks or pooled)
    each = len(outputs) // levels  # residual blocks of a level on the way up
    firsts = [1 + i * each for i in range(levels)]
    try:
        widths = tuple(len(weights[f"input_blocks.{i}.0.out_layers.3.weight"]) for i in firsts)
        first = weights["input_blocks.1.0.emb_layers.1.weight"]
        stem, end = weights[MARK], weights["out.2.weight"]
        shape = _Shape(
            num_channels=weights["time_embed.0.weight"].shape[1],
            widths=widths,
            num_res_blocks=each - 1,
            attention=tuple(
                n for n, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in weights
            ),
            use_scale_shift_norm=len(first) == 2 * widths[0],
            resblock_updown=bool(blocks),
            conv_resample=not pooled,
            in_channels=stem.shape[1],
            learn_sigma=len(end) == 2 * stem.shape[1],
            num_classes=len(weights["label_emb.weight"]) if "label_emb.weight" in weights else None,
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{name} looks like an OpenAI diffusion checkpoint, but has no weight {error}.",
            "Get the file again.",
        ) from error
    if shape.in_channels == 6:
        raise CheckpointError(
            f"{name} is an upsampler, which needs a small picture beside the noise.",
            "Pass a network that starts from noise alone.",
        )
    return shape


def _indices(weights: Mapping[str, Tensor], part: str) -> list[int]:
    found = {key.split(".")[1] for key in weights if key.startswith(f"{part}.")}
    return sorted(int(index) for index in found if index.isdecimal())


def _config(shape: _Shape, size: tuple[int, int], head_channels: int | None) -> dict[str, Any]:
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


def _rename(
    weights: Mapping[str, Tensor], shape: _Shape, told: Mapping[str, Any]
) -> dict[str, Tensor]:
    blocks = dict(_ENDS)
    top, each = len(shape.widths) - 1, shape.num_res_blocks + 1
    for i in range(top + 1):
        theirs, ours = i * each, f"down_blocks.{i}"
        for j in range(shape.num_res_blocks):
            blocks[f"input_blocks.{theirs + 1 + j}.0"] = f"{ours}.resnets.{j}"
            blocks[f"input_blocks.{theirs + 1 + j}.1"] = f"{ours}.attentions.{j}"
        blocks[f"input_blocks.{theirs + each}.0"] = f"{ours}.downsamplers.0"
        ours = f"up_blocks.{i}"
        for j in range(each):
            blocks[f"output_blocks.{theirs + j}.0"] = f"{ours}.resnets.{j}"
            blocks[f"output_blocks.{theirs + j}.1"] = f"{ours}.attentions.{j}"
        last = 2 if top - i in shape.attention else 1
        blocks[f"output_blocks.{theirs + each - 1}.{last}"] = f"{ours}.upsamplers.0"
    found: dict[str, Tensor] = {}
    for key, tensor in renamed(weights, blocks, _LEAVES).items():
        if ".qkv." in key:
            parts = _split(tensor, told, key)
            found |= {key.replace("qkv", name): part for name, part in parts.items()}
        else:
            found[key] = tensor.squeeze(-1) if ".to_out." in key and tensor.ndim == 3 else tensor
    return found


def _split(qkv: Tensor, told: Mapping[str, Any], key: str) -> dict[str, Tensor]:
    """The rows of q, k and v, (C, C) or (C,), of a 1 x 1 convolution (3 C, C, 1) or its bias.

    The older order has q, k and v within each head, the new one the heads within q, k and v.
    """
    flat = qkv.squeeze(-1) if qkv.ndim == 3 else qkv
    width = len(flat) // 3
    heads = 1
    if not told.get("use_new_attention_order"):
        channels = told.get("num_head_channels", -1)
        up = told.get("num_heads_upsample", -1) if key.startswith("up_blocks") else -1
        heads = width // channels if channels > 0 else up if up > 0 else told["num_heads"]
    if len(flat) % 3 or heads < 1 or width % heads:
        raise RequestError(
            f"{width} channels of attention ({key}) cannot be split into {heads} heads.",
            "Correct num_heads or num_head_channels.",
        )
    split = flat.reshape(heads, 3, width // heads, *flat.shape[1:])
    return {
        name: split[:, i].reshape(width, *flat.shape[1:])
        for i, name in enumerate(("to_q", "to_k", "to_v"))
    }


def _schedule(kind: str, steps: int, said: Said) -> Schedule:
    """linear: the betas of T = 1000, scaled to the same total for another T; cosine."""
    if kind not in ("linear", "cosine"):
        raise RequestError(f"{said.name}: noise_schedule is {kind!r}.", "Known are linear, cosine.")
    scale = 1000 / steps
    try:
        return make_schedule(kind, steps, scale * 1e-4, scale * 0.02)
    except RequestError as error:
        raise RequestError(f"{said.name}: {error.cause}", "Correct diffusion_steps.") from error
