"""A checkpoint in one file: the weights in it, whose family's they are, and a network for them."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.assemble import Options, assemble, check_wanted, fill
from ddimctl.checkpoints.build.network import build_unet
from ddimctl.checkpoints.build.weights import check_room, read_file, sha256_of
from ddimctl.checkpoints.families import ermongroup, ldm_file, lucidrains, openai
from ddimctl.checkpoints.families.common import SIZE, Flags
from ddimctl.checkpoints.families.ldm_checkpoint import load_ldm
from ddimctl.checkpoints.identify import refuse_file, refuse_foreign
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.sidecar import Sidecar
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.untrusted.guards import refusals
from ddimctl.files.untrusted.settings import read_yaml

FAMILIES: Final[tuple[ModuleType, ...]] = (ermongroup, openai, lucidrains)
SUFFIXES: Final = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")

# What training scripts call the parts of a file that holds more than one network's weights.
_EMA_KEYS: Final = ("ema", "ema_model", "model_ema", "ema_state_dict")
_RAW_KEYS: Final = ("state_dict", "model", "model_state_dict", "network", "net", "unet")
_PARALLEL: Final = "module."
_EMA_MODEL: Final = "ema_model."


class _Found(NamedTuple):
    """The weights of one network, and which they are: "ema", "raw" or "unknown"."""

    weights: Mapping[str, Tensor]
    kind: str
    notes: tuple[str, ...] = ()


def load_file(path: Path, options: Options) -> Checkpoint:
    """The checkpoint in a file of one of FAMILIES.

    Raises CheckpointError when it is none that can run, RequestError for flags that are missing or
    wrong.
    """
    name = path.name
    refuse_foreign(path)
    check_room([path], name)
    with ThreadPoolExecutor(1) as pool:
        sha256 = pool.submit(sha256_of, [path])
        content = read_file(path, name)
        raw, _ = _parts(content)
        if raw is not None and ldm_file.MARK in raw:
            return load_ldm(path, raw, options, sha256.result)
        _refuse_parts(options, name)
        found = _choose(content, options.weights, name)
        family = next((module for module in FAMILIES if _is_of(module, found.weights)), None)
        if family is None:
            refuse_file(path)
        _check_tensors(found.weights, name)
        with refusals(family.CONFIG, CheckpointError):
            beside = read_yaml(path.parent / family.CONFIG)
        if family is lucidrains and isinstance(content, Mapping) and lucidrains.VERSION in content:
            beside = {lucidrains.VERSION: content[lucidrains.VERSION], **beside}
        flags = Flags(name, options.flags, beside, options.size, family.CONFIG)
        converted = family.convert(found.weights, flags)
        built = build_unet(converted.config, converted.patches, name)
        fill(
            built,
            converted.weights,
            options,
            name,
            "Get the file again.",
            converted.source_name,
        )
        digest = sha256.result()
    notes = (*found.notes, *converted.notes, *converted.diffusion.notes)
    resolved = _resolved_flags(converted.settings, built.config.sample_size)
    provenance = Provenance(
        name, family.NAME, found.kind, sha256=digest, flags=resolved, notes=notes
    )
    sidecar = Sidecar(patches=converted.patches, weights=found.kind)
    return assemble(built, converted.diffusion, sidecar, provenance, name)


def _is_of(family: ModuleType, weights: Mapping[str, Tensor]) -> bool:
    return any(f"{prefix}{family.MARK}" in weights for prefix in ("", *family.PREFIXES))


def _refuse_parts(options: Options, name: str) -> None:
    if options.replaced:
        raise RequestError(
            f"{name} is a network of images, which has no {' and no '.join(options.replaced)}.",
            "Leave out --vae and --lora.",
        )


def _resolved_flags(settings: Mapping[str, Any], sample_size: Any) -> dict[str, str]:
    """The resolved settings by the names of --model-flag and --size."""
    flags = {
        key: str(value).lower() if type(value) is bool else str(value)
        for key, value in settings.items()
    }
    if SIZE not in flags:
        height, width = (sample_size, sample_size) if type(sample_size) is int else sample_size
        flags["size"] = f"{height}x{width}"
    return flags


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder by name, those of optimizers and recorded cases left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and path.is_file() and path.stem != "cases"
        if not path.name.startswith((".", "opt"))
    )


def _choose(content: Any, wanted: str, name: str) -> _Found:
    """The weights in what a file held, EMA before raw unless the raw ones are wanted."""
    raw, ema = _parts(content)
    if raw is None and ema is None:
        what = "an optimizer's state" if _is_optimizer(content) else "no network's weights"
        raise CheckpointError(f"{name} holds {what}.", "Pass the file with the network's weights.")
    if raw is not None and ema is not None:
        if wanted == "raw":
            return _Found(raw, "raw")
        note = f"{name}: using the EMA weights; --weights raw selects the others."
        return _Found(ema, "ema", (note,) if wanted == "auto" else ())
    kind = "ema" if raw is None else "raw" if isinstance(content, list | tuple) else _kind(name)
    if kind == "unknown" and wanted != "auto":  # the user knows
        kind = wanted
    check_wanted(wanted, kind, name)
    return _Found(raw or ema or {}, kind)


def _parts(content: Any) -> tuple[Mapping[str, Tensor] | None, Mapping[str, Tensor] | None]:
    """(weights, averaged weights) of a bare state dict, a dict that holds some, or the training
    list of ermongroup/ddim, [model, optimizer, epoch, step, ema]."""
    if isinstance(content, list | tuple):
        raw = _weights(content[0]) if content else None
        ema = _weights(content[4]) if len(content) > 4 else None
        return raw, ema
    if isinstance(content, Mapping) and (averaged := _averaged(content.get("ema"))):
        return _weights(content.get("model")), averaged
    bare = _weights(content)
    if bare is not None or not isinstance(content, Mapping):
        return bare, None
    held = [
        next((found for key in keys if (found := _weights(content.get(key)))), None)
        for keys in (_RAW_KEYS, _EMA_KEYS)
    ]
    return held[0], held[1]


def _averaged(content: Any) -> Mapping[str, Tensor] | None:
    """The weights in the state of an ema_pytorch.EMA, which holds the raw ones, too."""
    if not isinstance(content, Mapping):
        return None
    return _weights(
        {
            key.removeprefix(_EMA_MODEL): tensor
            for key, tensor in content.items()
            if isinstance(key, str) and key.startswith(_EMA_MODEL)
        }
    )


def _weights(content: Any) -> Mapping[str, Tensor] | None:
    """The content as a state dict without the prefix of DataParallel; None where it is none."""
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return None
    if all(key.startswith(_PARALLEL) for key in content):
        return {key.removeprefix(_PARALLEL): tensor for key, tensor in content.items()}
    return content


def _check_tensors(weights: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in weights.items():
        plain = tensor.layout == torch.strided and not tensor.is_meta
        if not tensor.is_floating_point() or not plain:
            raise CheckpointError(
                f"{name}: {key} has the type {tensor.dtype} ({tensor.layout}, {tensor.device}), "
                "which is not supported.",
                "Use the float16 or float32 weights.",
            )


def _is_optimizer(content: Any) -> bool:
    return isinstance(content, Mapping) and {"state", "param_groups"} <= content.keys()


def _kind(name: str) -> str:
    """Which weights a file has by its name, as training scripts give them."""
    stem = name.lower()
    if re.search(r"(^|[^a-z])ema([^a-z]|$)", stem):
        return "ema"
    return "raw" if re.match(r"model\d{6}", stem) else "unknown"
