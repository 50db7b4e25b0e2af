"""The family of diffusers: a UNet2DModel folder, or a pipeline folder with a UNet inside."""

from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Final, NamedTuple

from ddimctl.checkpoints.build.assemble import Options, Parts, assemble, check_wanted, fill
from ddimctl.checkpoints.build.network import build_unet, takes_embeddings
from ddimctl.checkpoints.build.scheduler_config import (
    Diffusion,
    assumed_diffusion,
    read_diffusion,
    sampler_note,
)
from ddimctl.checkpoints.build.weights import (
    check_room,
    find_weights,
    read_weights,
    sha256_of,
    size_of,
)
from ddimctl.checkpoints.families.pipeline_parts import (
    Found,
    find_autoencoder,
    find_class_embedder,
    find_text_encoders,
    make_conditioner,
    read_autoencoder,
    read_class_embedder,
)
from ddimctl.checkpoints.identify import (
    SUPPORTED,
    refuse_network,
    refuse_parts,
    refuse_pipeline,
)
from ddimctl.checkpoints.lora import PARTS, check_parts, fuse_all, fused_sha256
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.sidecar import Sidecar, read_sidecar
from ddimctl.checkpoints.source import Source, read_json
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.untrusted.settings import JsonObject

CONFIG_REMEDY: Final = "Use the config.json that belongs to these weights."
_PASS_VAE: Final = "Pass a folder of an AutoencoderKL with --vae."


class _Chosen(NamedTuple):
    """prefix: of the UNet's files. weights: as in Provenance. notes: why these."""

    prefix: str
    weights: str
    notes: tuple[str, ...] = ()


def load_diffusers(source: Source, options: Options) -> Checkpoint:
    """The checkpoint in a diffusers folder.

    Raises CheckpointError when it is not one that can run, RequestError for flags, which such
    folders have no need of.
    """
    if options.flags:
        raise RequestError(
            f"{source.name} is a diffusers folder, whose config.json holds all settings.",
            "Leave out --model-flag.",
        )
    index = read_json(source, "model_index.json")
    if index is not None:
        refuse_pipeline(source.name, index)
    else:
        refuse_parts(source.name, lambda relative: source.get(relative) is not None)
    sidecar = read_sidecar(source)
    chosen = _choose_unet(source, options.weights, sidecar or Sidecar())
    where = f"{source.name}/{chosen.prefix}config.json"
    config = read_json(source, f"{chosen.prefix}config.json") or {}
    refuse_network(where, config)
    diffusion = _read_diffusion(source, index)
    files = find_weights(source, chosen.prefix, options.variant)
    beside = _find_beside(source, index, config, options)
    for lora in options.loras:
        check_parts(lora, PARTS[: 1 + len(beside.encoders)])
    largest = max((each.files for each in beside.all), key=size_of, default=())
    check_room((*files, *largest), source.name)

    with ThreadPoolExecutor(1) as pool:  # the hash is ready by the time that diffusers is imported
        sha256 = pool.submit(sha256_of, (*files, *chain(*(each.files for each in beside.all))))
        built = build_unet(config, (sidecar or Sidecar()).patches, where)
        weights = fuse_all(options.loras, "unet", read_weights(files, source.name))
        fill(built, weights, options, source.name, CONFIG_REMEDY)
        parts = _read_beside(source, index, config, beside, options)
        digest = sha256.result()
    sampler = sampler_note(source.name, diffusion.ignored)
    own = sidecar is not None  # our files carry sampler settings for other programs only
    unknown = ", ".join(built.unknown)
    strange = f"{where} has settings that the installed diffusers does not know: {unknown}."
    notes = (*source.notes, *chosen.notes, *diffusion.notes, *(each.note for each in beside.all))
    notes += (strange if unknown else "", "" if own else sampler)
    provenance = Provenance(
        name=source.name,
        family="diffusers",
        weights=chosen.weights,
        sha256=fused_sha256(digest, options.loras),
        revision=source.revision,
        notes=tuple(filter(None, notes)),
        parts=options.replaced,
    )
    return assemble(built, diffusion, sidecar or Sidecar(), provenance, where, parts)


class _Beside(NamedTuple):
    """The parts of a latent checkpoint beside its UNet; of others, none."""

    encoders: list[Found]
    classes: Found | None
    autoencoder: Found | None

    @property
    def all(self) -> list[Found]:
        others = (self.classes, self.autoencoder)
        return [*self.encoders, *(each for each in others if each is not None)]


def _find_beside(
    source: Source, index: JsonObject | None, config: JsonObject, options: Options
) -> _Beside:
    """Raises CheckpointError where a part that the UNet needs is not there, or cannot be run."""
    if options.vae is not None:
        autoencoder = find_autoencoder(options.vae, None, alone=True)
        if autoencoder is None:
            raise CheckpointError(f"{options.vae.name} holds no autoencoder.", _PASS_VAE)
    else:
        autoencoder = find_autoencoder(source, options.variant)
    encoders = find_text_encoders(source, index, options.variant)
    attends = takes_embeddings(config)
    classes = None if encoders or not attends else find_class_embedder(source, options.variant)
    if attends and not encoders and not classes:
        raise CheckpointError(
            f"{source.name} has no text encoder, whose embeddings its UNet needs.",
            "Pass the folder of the whole pipeline.",
        )
    if attends and autoencoder is None:
        raise CheckpointError(f"{source.name} has no autoencoder.", _PASS_VAE)
    return _Beside(encoders if attends else [], classes, autoencoder)


def _read_beside(
    source: Source,
    index: JsonObject | None,
    config: JsonObject,
    beside: _Beside,
    options: Options,
) -> Parts:
    return Parts(
        read_autoencoder(beside.autoencoder, options) if beside.autoencoder else None,
        make_conditioner(source, index, config, beside.encoders, options.loras)
        if beside.encoders
        else None,
        read_class_embedder(beside.classes) if beside.classes else None,
    )


def _choose_unet(source: Source, wanted: str, sidecar: Sidecar) -> _Chosen:
    """Which UNet of the folder: the EMA one unless the raw one is wanted."""
    has_ema = source.get("unet_ema/config.json") is not None
    prefix = next((p for p in ("unet/", "") if source.get(f"{p}config.json") is not None), None)
    if has_ema and (wanted != "raw" or prefix is None):
        if wanted == "raw":
            raise CheckpointError(
                f"{source.name} has EMA weights only.", "Leave --weights at auto."
            )
        note = f"{source.name}: using the EMA weights (unet_ema); --weights raw selects the others."
        return _Chosen("unet_ema/", "ema", (note,) if prefix and wanted == "auto" else ())
    if prefix is None:
        raise CheckpointError(
            f"{source.name} has no config.json and no unet/config.json.", SUPPORTED
        )
    known = "raw" if has_ema else sidecar.weights
    check_wanted(wanted, known, source.name)
    return _Chosen(prefix, known)


def _read_diffusion(source: Source, index: JsonObject | None) -> Diffusion:
    for relative in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        config = read_json(source, relative, infinite=True)
        if config is not None:
            return read_diffusion(config, f"{source.name}/{relative}")
    if index and index.get("scheduler"):
        raise CheckpointError(
            f"{source.name}: model_index.json names a scheduler, but its settings are missing.",
            "Download the whole checkpoint, with scheduler/scheduler_config.json.",
        )
    return assumed_diffusion(source.name)
