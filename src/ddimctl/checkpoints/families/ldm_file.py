"""The family of CompVis' latent-diffusion: Stable Diffusion 1, 2 and XL as one file,
`model.diffusion_model.input_blocks.0.0.weight` and its like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.assemble import check_wanted
from ddimctl.checkpoints.build.scheduler_config import MAX_TIMESTEPS, Diffusion
from ddimctl.checkpoints.families import openai_shape
from ddimctl.checkpoints.families.common import (
    SIZE,
    Flags,
    Network,
    read_flags,
    training_size,
    wrong,
)
from ddimctl.checkpoints.families.ldm_parts import (
    VAE_PREFIX,
    convert_clip,
    convert_open_clip,
    convert_vae,
)
from ddimctl.checkpoints.families.ldm_unet import PREFIX, convert_unet
from ddimctl.checkpoints.source import folder_source, read_json
from ddimctl.diffusion.schedules import Schedule, from_betas, make_schedule
from ddimctl.errors import CheckpointError, RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

NAME: Final = "ldm"
MARK: Final = PREFIX + openai_shape.MARK
CONFIG: Final = "config"

_EMA: Final = "model_ema."
_SD1: Final = "cond_stage_model.transformer."
_SD2: Final = "cond_stage_model.model."
_XL: Final = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
_REFINER: Final = "conditioner.embedders.0.model."
_OTHERS: Final = (  # the most specific first
    ("control_model.", "a ControlNet, which needs an image beside the text"),
    ("noise_augmentor.", "a Stable Diffusion unCLIP, which works from the embedding of an image"),
    ("embedder.", "a Stable Diffusion unCLIP, which works from the embedding of an image"),
    (_REFINER, "the SDXL refiner, which goes on from the images of another network"),
    (
        "cond_stage_model.transformer.token_emb.",
        "a latent diffusion model with a BERT text encoder",
    ),
    ("cond_stage_model.embedding.", "a class-conditional latent diffusion model in one file"),
)
_VAE_LEVELS: Final = 4
_END, _EXCLAMATION = "<|endoftext|>", "!"
_SETTINGS: Final = {
    SIZE: int,
    "prediction": str,
    "num_heads": int,
    "num_head_channels": int,
    "norm_num_groups": int,
    "vae_norm_num_groups": int,
    "scaling_factor": float,
    "text_num_heads": int,
    "text_layers": int,
}
_PREDICTIONS: Final = {"epsilon": "eps", "v_prediction": "v", "sample": "x_0"}


class Encoder(NamedTuple):
    """A text encoder: the network, and the token that fills its rows up."""

    network: Network
    pad: str


class Pipeline(NamedTuple):
    """The networks in a file, and what more there is to know.

    kind: "sd1", "sd2" or "sdxl". weights: "ema", "raw" or "unknown". settings: the resolved
    settings that its weights do not show.
    """

    kind: str
    unet: Network
    vae: Network | None
    text: tuple[Encoder, ...]
    diffusion: Diffusion
    weights: str
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def settings_beside(folder: Path) -> JsonObject:
    """The settings in a diffusers folder that weights do not show, by this family's names; empty where it is none. Raises CheckpointError for damaged files."""
    source = folder_source(folder)
    unet = read_json(source, "unet/config.json") or {}
    vae = read_json(source, "vae/config.json") or {}
    text = read_json(source, "text_encoder/config.json") or {}
    scheduler = read_json(source, "scheduler/scheduler_config.json", infinite=True) or {}
    prediction = scheduler.get("prediction_type", "epsilon" if scheduler else None)
    found = {
        **_head_settings(unet),
        "norm_num_groups": unet.get("norm_num_groups"),
        "vae_norm_num_groups": vae.get("norm_num_groups"),
        "scaling_factor": vae.get("scaling_factor"),
        "text_num_heads": text.get("num_attention_heads"),
        "text_layers": text.get("num_hidden_layers"),
        "prediction": _PREDICTIONS.get(str(prediction)),
    }
    sides = unet.get("sample_size"), vae.get("block_out_channels")
    if type(sides[0]) is int and isinstance(sides[1], list):
        found[SIZE] = sides[0] * 2 ** (len(sides[1]) - 1)
    return {key: value for key, value in found.items() if value is not None}


def _head_settings(config: Mapping[str, Any]) -> JsonObject:
    """diffusers calls the number of heads attention_head_dim, one for all levels or one by level."""
    heads, widths = config.get("attention_head_dim"), config.get("block_out_channels")
    if type(heads) is int:
        return {"num_heads": heads}
    if not isinstance(heads, list) or not isinstance(widths, list):
        return {}
    pairs = [*zip(widths, heads, strict=False)]
    if not all(type(each) is int and each > 0 for pair in pairs for each in pair):
        return {}
    channels = {width // count for width, count in pairs}
    return {"num_head_channels": channels.pop()} if len(channels) == 1 else {}


def convert(
    weights: Mapping[str, Tensor], flags: Flags, wanted: str = "auto", *, own_vae: bool = True
) -> Pipeline:
    """The networks in a file's weights, in diffusers' and transformers' words.

    wanted: "auto" (EMA where there is), "ema" or "raw". own_vae: False leaves the autoencoder out,
    for another with as many levels as Stable Diffusion's. Raises CheckpointError for a checkpoint
    that cannot be run, RequestError for a flag that is missing or wrong.
    """
    kind = _kind(weights, flags)
    settings = read_flags(flags, _SETTINGS, (CONFIG,))
    zero_snr = "ztsnr" in weights  # marks that people put into files of SDXL
    prediction = _prediction(weights, flags, settings, kind)
    text = _text_encoders(weights, flags, settings, kind)
    vae, levels = None, _VAE_LEVELS
    if own_vae:
        scaling = _scaling_factor(weights, settings, kind)
        vae = convert_vae(_below(weights, VAE_PREFIX), flags, settings, scaling)
        levels = len(vae.config["block_out_channels"])
    height, width = _size(flags, settings, kind, prediction, levels)
    factor = 2 ** (levels - 1)
    unet_weights, which, notes = _choose(weights, wanted, flags.file)
    unet = convert_unet(
        unet_weights,
        flags,
        settings,
        (height // factor, width // factor),
        text[1].network.config["projection_dim"] if kind == "sdxl" else None,
    )
    if vae and unet.config["in_channels"] != vae.config["latent_channels"]:
        raise CheckpointError(
            f"{flags.file}: its UNet has {unet.config['in_channels']} channels, its autoencoder "
            f"{vae.config['latent_channels']}.",
            "Get the file again.",
        )
    diffusion = Diffusion(_schedule(weights, flags, zero_snr=zero_snr), prediction, {})
    resolved = {key: settings[key] for key in _SETTINGS if key in settings} | {
        "prediction": prediction
    }
    return Pipeline(kind, unet, vae, text, diffusion, which, resolved, notes)


def _kind(weights: Mapping[str, Tensor], flags: Flags) -> str:
    """sd1, sd2 or sdxl. Raises CheckpointError for all others, by name."""

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in weights)

    whole = has(_XL[0]) and has(_XL[1])
    for prefix, what in _OTHERS:
        if has(prefix) and not (whole and prefix == _REFINER):
            remedy = "Pass a Stable Diffusion checkpoint that works from text alone."
            raise CheckpointError(f"{flags.file} is {what}.", remedy)
    if whole:
        return "sdxl"
    if has(_SD2):
        return "sd2"
    if has(_SD1):
        return "sd1"
    raise CheckpointError(
        f"{flags.file} has no text encoder of a known kind (no {_SD1}, {_SD2} or {_XL[1]}).",
        "Pass the whole checkpoint, or the diffusers folder of it.",
    )


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }


def _choose(
    weights: Mapping[str, Tensor], wanted: str, name: str
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """(the UNet's weights, which they are, notes). The EMA ones have the names without dots."""
    raw = _below(weights, PREFIX)
    if not any(key.startswith(_EMA + "diffusion_model") for key in weights):
        if wanted == "auto" or wanted == "raw":
            return raw, "unknown" if wanted == "auto" else wanted, ()
        check_wanted(wanted, "raw", name)
    if wanted == "raw":
        return raw, "raw", ()
    averaged = {key: f"{_EMA}diffusion_model{key.replace('.', '')}" for key in raw}
    if missing := [key for key in averaged.values() if key not in weights]:
        raise CheckpointError(
            f"{name} is damaged: {len(missing)} of its EMA weights are missing ({missing[0]}, …).",
            "Get the file again, or pass --weights raw.",
        )
    note = f"{name}: using the EMA weights; --weights raw selects the others."
    ema = {key: weights[spelled] for key, spelled in averaged.items()}
    return ema, "ema", (note,) if wanted == "auto" else ()


def _prediction(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any], kind: str
) -> str:
    """eps or v; Stable Diffusion 2's files do not show which."""
    usual = "v" if "v_pred" in weights else "" if kind == "sd2" else "eps"
    prediction = str(settings.get("prediction", usual))
    if not prediction:
        raise RequestError(
            f"the weights of {flags.file} do not show whether it predicts v (768 pixels) or eps (512).",
            "Pass --model-flag prediction=v, or prediction=eps.",
        )
    if prediction not in _PREDICTIONS.values():
        cause = f"prediction is {brief(prediction)}."
        raise wrong(flags, "prediction", cause, "Known predictions: eps, v, x_0.")
    return prediction


def _text_encoders(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any], kind: str
) -> tuple[Encoder, ...]:
    if kind == "sd1":
        return (Encoder(convert_clip(_below(weights, _SD1), flags, settings), _END),)
    if kind == "sd2":
        found = _below(weights, _SD2)
        return (Encoder(convert_open_clip(found, flags, settings, projected=False), _EXCLAMATION),)
    first = convert_clip(_below(weights, _XL[0]), flags, settings)
    second = convert_open_clip(_below(weights, _XL[1]), flags, settings, projected=True)
    return Encoder(first, _END), Encoder(second, _EXCLAMATION)


def _scaling_factor(weights: Mapping[str, Tensor], settings: Mapping[str, Any], kind: str) -> float:
    if "scaling_factor" in settings:
        return float(settings["scaling_factor"])
    buffer = weights.get("scale_factor")
    if buffer is not None and buffer.numel() == 1 and 0 < float(buffer) < float("inf"):
        return float(buffer)
    return 0.13025 if kind == "sdxl" else 0.18215


def _size(
    flags: Flags, settings: Mapping[str, Any], kind: str, prediction: str, levels: int
) -> tuple[int, int]:
    """(H, W) of the training's images in pixels."""
    usual = 1024 if kind == "sdxl" else 768 if kind == "sd2" and prediction == "v" else 512
    return training_size(flags._replace(size=flags.size or (usual, usual)), settings, levels)


def _schedule(weights: Mapping[str, Tensor], flags: Flags, *, zero_snr: bool) -> Schedule:
    """Stable Diffusion's, in float64, unless the file's own alphas_cumprod differ from it by more
    than their rounding."""
    usual = make_schedule("scaled_linear", 1000, 0.00085, 0.012, zero_snr)
    buffer = weights.get("alphas_cumprod")
    if buffer is None or zero_snr:
        return usual
    if buffer.ndim != 1 or not 1 <= len(buffer) <= MAX_TIMESTEPS:
        raise CheckpointError(
            f"{flags.file} is damaged: alphas_cumprod has the shape {tuple(buffer.shape)}.",
            "Get the file again.",
        )
    levels = buffer.double()
    rounding = 4 * torch.finfo(buffer.dtype).eps if buffer.is_floating_point() else 0.0
    if len(levels) == 1000 and bool(
        torch.isclose(levels, usual.alpha_bar, rtol=max(rounding, 1e-6), atol=0).all()
    ):
        return usual
    before = torch.cat([levels.new_ones(1), levels[:-1]])
    try:
        return from_betas(1 - levels / before)
    except RequestError as error:
        raise CheckpointError(
            f"{flags.file} is damaged: alphas_cumprod does not fall from 1 to 0.",
            "Get the file again.",
        ) from error
