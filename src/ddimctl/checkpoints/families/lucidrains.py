"""The family of lucidrains' denoising-diffusion-pytorch: `downs.0.0.block1.proj.weight` and its like.

What a file holds beside the network: the schedule and, from version 1.5 on, the objective, in buffers.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.lucidrains_unet import AttentionSettings, LucidrainsConfig
from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.build.scheduler_config import Diffusion
from ddimctl.checkpoints.families.common import (
    SIZE,
    Converted,
    Flags,
    check_settings,
    check_steps,
    read_flags,
    side,
    training_size,
    wrong,
)
from ddimctl.diffusion.schedules import Schedule, from_betas, make_schedule
from ddimctl.errors import CheckpointError, RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

NAME: Final = "lucidrains"
CONFIG: Final = "lucidrains.json"
MARK: Final = "downs.0.0.block1.proj.weight"
PREFIXES: Final = ("model.", "denoise_fn.")
"""Of the network within a diffusion's weights; denoise_fn until version 0.28."""
VERSION: Final = "version"

_SETTINGS: Final = {
    SIZE: int,
    "objective": str,
    "beta_schedule": str,
    "timesteps": int,
    "theta": float,
    "groups": int,
    "heads": int,
    "weight_standardized": bool,
    "attention_norm": str,
    VERSION: str,
}
_FROM_WEIGHTS: Final = {"channels": int, "self_condition": bool, "learned_variance": bool}
_OBJECTIVES: Final = {"pred_noise": "eps", "pred_x0": "x_0", "pred_v": "v"}
_BUFFERS: Final = ("betas", "loss_weight")
_OLD_ATTENTION: Final = re.compile(r"\.fn(?:\.fn)?(?=\.(norm|to_qkv|to_out))")
_STANDARDIZED: Final = re.compile(r"block[12]\.proj\.weight$")
_HEADS: Final = 4  # of every attention without learned keys
_EPS: Final = 1e-5
_ALWAYS_CLIPPED: Final = "was trained with code that clips x_0 at each step: --clip static --tau trailing samples as it does."


def convert(weights: Mapping[str, Tensor], flags: Flags) -> Converted:
    """The network, its schedule and its objective. Raises CheckpointError, RequestError."""
    network, buffers, old = _split(weights)
    if (axes := network[MARK].ndim - 2) != 2:
        raise CheckpointError(
            f"{flags.file} is a network of lucidrains' for {axes}D data, which cannot be run.",
            "Only its networks of images can.",
        )
    if "time_mlp.0.weights" in network:
        raise CheckpointError(
            f"{flags.file} is a network of lucidrains' for continuous time, which cannot be run.",
            "Only GaussianDiffusion's networks can.",
        )
    settings = read_flags(flags, _SETTINGS | _FROM_WEIGHTS, ())
    generation = _generation(old, flags, settings)
    config = _config(network, flags, settings, generation)
    shown = {
        "channels": config.in_channels,
        "self_condition": config.self_condition,
        "learned_variance": config.out_channels == 2 * config.in_channels,
    }
    check_settings(flags, settings, shown)
    schedule, prediction, found = _diffusion(buffers, flags, settings)
    if generation.weight_standardized:
        network = {
            key: _standardized(tensor) if _STANDARDIZED.search(key) else tensor
            for key, tensor in network.items()
        }
    ignored = {"clip_sample": True, "timestep_spacing": "trailing"}
    return Converted(
        config=config.settings(),
        weights=network,
        diffusion=Diffusion(schedule, prediction, ignored),
        patches=UNetPatches(),
        notes=(*generation.notes, f"{flags.file} {_ALWAYS_CLIPPED}"),
        settings={key: (settings | found)[key] for key in _SETTINGS if key in settings | found},
        source_name=str,
    )


class _Generation(NamedTuple):
    """What changed between versions and the weights do not show. old: before 1.8."""

    old: bool
    weight_standardized: bool
    attention_norm: str
    notes: tuple[str, ...] = ()


def _generation(old: bool, flags: Flags, settings: Mapping[str, Any]) -> _Generation:
    """From the version in the file: standardized weights in 0.28 to 1.7.1, layer norm before 1.7."""
    version = _version(settings.get(VERSION))
    standardized = settings.get("weight_standardized", old and (version or (1,)) < (1, 7, 2))
    norm = settings.get("attention_norm", "layer" if old and (version or (1,)) < (1, 7) else "rms")
    if norm not in ("layer", "rms"):
        cause = f"attention_norm is {brief(norm)}."
        raise wrong(flags, "attention_norm", cause, "It is layer or rms.")
    if not old or version or {"weight_standardized", "attention_norm"} <= settings.keys():
        return _Generation(old, standardized, norm)
    note = (
        f"{flags.file} does not say its version: assumed one of 0.28 to 1.6 (--model-flag "
        "weight_standardized=false for 0.27; attention_norm=rms for 1.7)."
    )
    return _Generation(old, standardized, norm, (note,))


def _version(text: Any) -> tuple[int, ...] | None:
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", str(text or ""))
    return found and tuple(int(part or 0) for part in found.groups())


def _standardized(weight: Tensor) -> Tensor:
    """Zero mean and unit variance for each output channel (Qiao et al. 2019)."""
    wide = weight.float()
    mean = wide.mean(dim=(1, 2, 3), keepdim=True)
    variance = wide.var(dim=(1, 2, 3), unbiased=False, keepdim=True)
    return (wide - mean) * (variance + _EPS).rsqrt()


def _split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], bool]:
    """(the network's weights by their names of version 2, the diffusion's buffers, whether the
    names are those of before 1.8)."""
    prefix = next((p for p in PREFIXES if f"{p}{MARK}" in weights), "")
    network = {
        _OLD_ATTENTION.sub("", key.removeprefix(prefix)): tensor
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }
    old = any(_OLD_ATTENTION.search(key) for key in weights)
    buffers = {key: weights[key] for key in _BUFFERS if prefix and key in weights}
    return network, buffers, old


def _config(
    weights: Mapping[str, Tensor],
    flags: Flags,
    settings: Mapping[str, Any],
    generation: _Generation,
) -> LucidrainsConfig:
    """What the weights show of the network."""
    levels = len({m[1] for key in weights if (m := re.match(r"downs\.(\d\d?)\.0\.", key))})

    def attention(name: str) -> AttentionSettings:
        width = side(weights, f"{name}.to_qkv.weight", 0, flags) // 3
        full = f"{name}.to_out.weight" in weights
        if f"{name}.mem_kv" not in weights:
            heads = settings.get("heads", _HEADS)
            if heads < 1 or width % heads:
                raise wrong(flags, "heads", f"{width} channels cannot be split into {heads} heads.")
            return AttentionSettings(full, heads, width // heads, 0)
        sizes = [side(weights, f"{name}.mem_kv", axis, flags) for axis in (1, 2, 3)]
        heads, memory, head_dim = sizes if full else (sizes[0], sizes[2], sizes[1])
        return AttentionSettings(full, heads, head_dim, memory)

    stem = side(weights, "init_conv.weight", 0, flags)
    entering = side(weights, "init_conv.weight", 1, flags)
    leaving = side(weights, "final_conv.weight", 0, flags)
    last = levels - 1
    widths = [side(weights, f"downs.{i}.0.block1.proj.weight", 0, flags) for i in range(1, levels)]
    widths.append(side(weights, f"downs.{last}.3.weight", 0, flags))
    self_condition = _is_self_conditioned(entering, leaving, settings)
    return LucidrainsConfig(
        in_channels=entering // 2 if self_condition else entering,
        out_channels=leaving,
        stem_channels=stem,
        block_out_channels=tuple(widths),
        time_channels=side(weights, "time_mlp.1.weight", 1, flags),
        down=tuple(attention(f"downs.{i}.2") for i in range(levels)),
        middle=attention("mid_attn"),
        up=tuple(attention(f"ups.{i}.2") for i in range(levels)),
        sample_size=training_size(flags, settings, levels),
        self_condition=self_condition,
        norm="rms" if "downs.0.0.block1.norm.g" in weights else "group",
        groups=settings.get("groups", 8),
        attention_norm=generation.attention_norm,
        scale_values=generation.old,
        unshuffle=levels == 1 or "downs.0.3.weight" not in weights,
        theta=settings.get("theta", 10_000.0),
    )


def _is_self_conditioned(entering: int, leaving: int, settings: Mapping[str, Any]) -> bool:
    """Whether the network takes its last x_0, too; that and a learned variance look alike only in
    the numbers of channels of both, and then the settings decide."""
    if "self_condition" in settings:
        return bool(settings["self_condition"])
    channels = settings.get("channels")
    if channels is not None:
        return bool(entering == 2 * channels)
    return entering == 2 * leaving or (entering == leaving and entering % 2 == 0 and entering > 4)


def _diffusion(
    buffers: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any]
) -> tuple[Schedule, str, JsonObject]:
    """(schedule, prediction, the objective as a flag), of the buffers, else of the settings."""
    objective = settings.get("objective")
    if objective is not None and objective not in _OBJECTIVES:
        cause = f"objective is {brief(objective)}."
        raise wrong(flags, "objective", cause, f"Known objectives: {', '.join(_OBJECTIVES)}.")
    known = [name for name in ("betas", "beta_schedule") if name in (*buffers, *settings)]
    schedule = _schedule(buffers.get("betas"), flags, settings) if known else None
    if schedule is not None and "loss_weight" in buffers:
        shown = _shown_objective(buffers["loss_weight"], schedule.alpha_bar)
        if None not in (objective, shown) and objective != shown:
            cause = f"objective is {objective}, but the weights of {flags.file} show {shown}."
            raise wrong(flags, "objective", cause, "Leave out --model-flag objective.")
        objective = objective or shown
    if schedule is None or objective is None:
        missing = {"objective": objective, "beta_schedule": schedule}
        names = ", ".join(name for name, value in missing.items() if value is None)
        raise RequestError(
            f"the weights of {flags.file} do not show its {names}.",
            "Pass each as --model-flag NAME=VALUE, such as objective=pred_v, beta_schedule=sigmoid.",
        )
    return schedule, _OBJECTIVES[objective], {"objective": objective}


def _shown_objective(loss_weight: Tensor, alpha_bar: Tensor) -> str | None:
    """The objective whose loss is weighted so, min-SNR (gamma 5) or not; None where none is."""
    if loss_weight.shape != alpha_bar.shape:
        return None
    snr = alpha_bar / (1 - alpha_bar)
    for top in (snr, snr.clamp(max=5)):
        for name, weight in (
            ("pred_noise", top / snr),
            ("pred_x0", top),
            ("pred_v", top / (snr + 1)),
        ):
            known = weight.isfinite() & (snr > 0)
            if torch.allclose(loss_weight.double()[known], weight[known], rtol=1e-2, atol=1e-6):
                return name
    return None


def _schedule(betas: Tensor | None, flags: Flags, settings: Mapping[str, Any]) -> Schedule:
    """That of the buffer, else of its name, as their functions make it."""
    if betas is not None:
        if betas.ndim != 1:
            raise CheckpointError(f"{flags.file} is damaged: its betas have {betas.ndim} axes.")
        check_steps(flags, "timesteps", len(betas))
        try:
            return from_betas(betas.double())
        except RequestError as error:
            raise CheckpointError(f"{flags.file}: {error.cause}") from error
    steps, kind = settings.get("timesteps", 1000), settings["beta_schedule"]
    check_steps(flags, "timesteps", steps)
    if kind == "linear":  # scaled so that fewer steps reach as far
        return make_schedule("linear", steps, 0.1 / steps, 20 / steps)
    if kind == "cosine":
        return _from_levels(_cosine(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    if kind == "sigmoid":
        return _from_levels(_sigmoid(torch.linspace(0, 1, steps + 1, dtype=torch.float64)))
    raise wrong(
        flags,
        "beta_schedule",
        f"beta_schedule is {brief(kind)}.",
        "Known schedules: linear, cosine, sigmoid.",
    )


def _from_levels(level: Tensor) -> Schedule:
    """From alpha_bar at T + 1 times, the first of them before the first step; betas at most 0.999."""
    return from_betas((1 - level[1:] / level[:-1]).clamp(0, 0.999))


def _cosine(u: Tensor, s: float = 0.008) -> Tensor:
    """alpha_bar of Nichol and Dhariwal 2021, eq. 17."""
    return torch.cos((u + s) / (1 + s) * torch.pi / 2) ** 2


def _sigmoid(u: Tensor, start: float = -3, end: float = 3) -> Tensor:
    """alpha_bar of Jabri et al. 2022, at temperature 1."""
    first, last = torch.tensor([start, end], dtype=torch.float64).sigmoid()
    level: Tensor = (last - (u * (end - start) + start).sigmoid()) / (last - first)
    return level
