"""The family of diffusers: a UNet2DModel folder, or a pipeline folder with one inside."""

import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import nn

from ddimctl.checkpoints._diffusers import import_unet
from ddimctl.checkpoints.identify import (
    SUPPORTED,
    refuse_network,
    refuse_parts,
    refuse_pipeline,
)
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.scheduler_config import (
    Diffusion,
    assumed_diffusion,
    read_diffusion,
    sampler_note,
)
from ddimctl.checkpoints.sidecar import Sidecar, read_sidecar
from ddimctl.checkpoints.source import Source, read_json
from ddimctl.checkpoints.weights import assign_weights, find_weights, read_weights, sha256_of
from ddimctl.errors import CheckpointError


class _Chosen(NamedTuple):
    """prefix: of the UNet's files. weights: as in Provenance. notes: why these."""

    prefix: str
    weights: str
    notes: tuple[str, ...] = ()


def load_diffusers(
    source: Source, *, variant: str | None, weights: str, device: torch.device, dtype: torch.dtype
) -> Checkpoint:
    """The checkpoint in a diffusers folder. Raises CheckpointError when it is not one that can run."""
    index = read_json(source, "model_index.json")
    if index is not None:
        refuse_pipeline(source.name, index)
    else:
        refuse_parts(source.name, lambda relative: source.get(relative) is not None)
    sidecar = read_sidecar(source)
    chosen = _choose_unet(source, weights, sidecar or Sidecar())
    where = f"{source.name}/{chosen.prefix}config.json"
    config = read_json(source, f"{chosen.prefix}config.json") or {}
    refuse_network(where, config)
    diffusion = _read_diffusion(source, index)
    files = find_weights(source, chosen.prefix, variant)

    with ThreadPoolExecutor(1) as pool:  # the hash is ready by the time that diffusers is imported
        sha256 = pool.submit(sha256_of, files)
        unet, config, unknown = _build(config, where)
        assign_weights(unet, read_weights(files, source.name), device, dtype, source.name)
        digest = sha256.result()
    sampler = sampler_note(source.name, diffusion.ignored)
    own = sidecar is not None  # our files carry sampler settings for other programs only
    notes = (*source.notes, *chosen.notes, *diffusion.notes, unknown, "" if own else sampler)
    provenance = Provenance(
        name=source.name,
        family="diffusers",
        weights=chosen.weights,
        sha256=digest,
        revision=source.revision,
        notes=tuple(filter(None, notes)),
    )
    unet = unet.to(device).eval()  # buffers; the weights are there already
    return _checkpoint(unet, config, diffusion, sidecar or Sidecar(), provenance, where)


def _choose_unet(source: Source, wanted: str, sidecar: Sidecar) -> _Chosen:
    """Which UNet of the folder: the EMA one unless the raw one is wanted."""
    has_ema = source.get("unet_ema/config.json") is not None
    prefix = next((p for p in ("unet/", "") if source.get(f"{p}config.json") is not None), None)
    if has_ema and (wanted != "raw" or prefix is None):
        if wanted == "raw":
            raise CheckpointError(
                f"{source.name} has EMA weights only.", "Leave --weights at auto."
            )
        note = f"{source.name}: using the EMA weights (unet_ema); --weights raw takes the others."
        return _Chosen("unet_ema/", "ema", (note,) if prefix and wanted == "auto" else ())
    if prefix is None:
        raise CheckpointError(
            f"{source.name} has no config.json and no unet/config.json.", SUPPORTED
        )
    known = "raw" if has_ema else sidecar.weights
    if wanted not in ("auto", known):
        told = (
            "does not say which weights it has"
            if known == "unknown"
            else f"has {known} weights only"
        )
        raise CheckpointError(f"{source.name} {told}.", "Leave --weights at auto.")
    return _Chosen(prefix, known)


def _read_diffusion(source: Source, index: dict[str, Any] | None) -> Diffusion:
    for relative in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        config = read_json(source, relative)
        if config is not None:
            return read_diffusion(config, f"{source.name}/{relative}")
    if index and index.get("scheduler"):
        raise CheckpointError(
            f"{source.name}: model_index.json names a scheduler, but its settings are missing.",
            "Download the whole checkpoint, with scheduler/scheduler_config.json.",
        )
    return assumed_diffusion(source.name)


def _build(config: dict[str, Any], where: str) -> tuple[nn.Module, Any, str]:
    """A UNet2DModel without weights, its full config, and a note on settings it does not know."""
    unet_class = import_unet()
    known = inspect.signature(unet_class.__init__).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    settings = {key: value for key, value in given.items() if key in known}
    try:
        with torch.device("meta"):
            unet: nn.Module = unet_class(**settings)
        if any(buffer.is_meta for buffer in unet.buffers()):  # computed ones are in no file
            unet = unet_class(**settings)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{where} does not describe a network: {reason}") from error
    except ArithmeticError as error:
        raise CheckpointError(f"{where} does not describe a network: a width is 0.") from error
    unknown = ", ".join(sorted(given.keys() - known.keys()))
    note = f"{where} has settings that the installed diffusers does not know: {unknown}."
    return unet, unet.config, note if unknown else ""


def _checkpoint(
    unet: nn.Module,
    config: Any,
    diffusion: Diffusion,
    sidecar: Sidecar,
    provenance: Provenance,
    where: str,
) -> Checkpoint:
    taken, given = config.in_channels, config.out_channels
    if given not in (taken, 2 * taken):
        raise CheckpointError(
            f"{where}: {taken} channels in and {given} out, which is no unconditional image model.",
            SUPPORTED,
        )
    num_classes, null_class = _classes(config, sidecar, where)
    return Checkpoint(
        unet=unet,
        schedule=diffusion.schedule,
        prediction=diffusion.prediction,
        learned_variance=given == 2 * taken,
        sample_shape=(taken, *_size(config.sample_size, where)),
        size_divisor=2 ** (len(config.block_out_channels) - 1),
        provenance=provenance,
        num_classes=num_classes,
        null_class=null_class,
        class_names=sidecar.class_names,
        background=sidecar.background,
        ignored=diffusion.ignored,
    )


def _size(sample_size: Any, where: str) -> tuple[int, int]:
    pair = [sample_size] * 2 if isinstance(sample_size, int) else sample_size
    if not (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(side) is int and side > 0 for side in pair)
    ):
        raise CheckpointError(
            f"{where}: sample_size is {sample_size!r}.",
            'Put the height and width of the training images there, such as "sample_size": 32.',
        )
    return pair[0], pair[1]


def _classes(config: Any, sidecar: Sidecar, where: str) -> tuple[int | None, int | None]:
    """(num_classes, null_class), checked against the rows of the class embedding."""
    rows = config.num_class_embeds
    if rows is None and config.class_embed_type is None:
        if sidecar.num_classes is not None:
            raise CheckpointError(
                f"{where} has no class embedding, but ddimctl.json names classes."
            )
        return None, None
    count = sidecar.num_classes or rows
    if count is None:
        raise CheckpointError(
            f"{where} does not say how many classes there are.",
            'Put "num_classes" into a ddimctl.json beside it.',
        )
    if rows is not None and max(count - 1, sidecar.null_class or 0) >= rows:
        raise CheckpointError(
            f"{where} has {rows} class embeddings, ddimctl.json {count} classes "
            f"and the null class {sidecar.null_class}."
        )
    return count, sidecar.null_class
