"""A checkpoint from a single file in CompVis' layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints.build.assemble import Options, Parts, assemble, fill
from ddimctl.checkpoints.build.network import build_autoencoder, build_unet
from ddimctl.checkpoints.build.text_encoder import TextEncoder, check_encoder
from ddimctl.checkpoints.build.tokens import Reader, Vocabulary, find_vocabulary
from ddimctl.checkpoints.clip.vocabulary import clip_merges, clip_special, clip_tokens
from ddimctl.checkpoints.codec import Codec, make_codec
from ddimctl.checkpoints.conditioner import Conditioner
from ddimctl.checkpoints.families.common import SIZE, Flags, Network
from ddimctl.checkpoints.families.ldm_file import (
    CONFIG,
    NAME,
    Encoder,
    Pipeline,
    convert,
    settings_beside,
)
from ddimctl.checkpoints.families.pipeline_parts import find_autoencoder, read_autoencoder
from ddimctl.checkpoints.lora import PARTS, check_parts, fuse_all, fused_sha256
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.sidecar import Sidecar
from ddimctl.checkpoints.source import Source, folder_source
from ddimctl.errors import CheckpointError, RequestError

_AGAIN: Final = "Get the file again."
_TOKENIZERS: Final = ("tokenizer", "tokenizer_2")


def load_ldm(
    path: Path, weights: Mapping[str, Tensor], options: Options, sha256: Callable[[], str]
) -> Checkpoint:
    """The checkpoint in a file's weights. sha256: gives the file's.

    What they do not show comes from the diffusers folder that --model-flag config names, else from
    the one that the file lies in, if it does. Raises CheckpointError when it is none that can run,
    RequestError for flags that are missing or wrong.
    """
    name, folder = path.name, _config_folder(path, options)
    beside = folder_source(folder)
    flags = Flags(name, options.flags, settings_beside(folder), options.size, beside.name)
    pipeline = convert(weights, flags, options.weights, own_vae=options.vae is None)
    for lora in options.loras:
        check_parts(lora, PARTS[: 1 + len(pipeline.text)])

    built = build_unet(pipeline.unet.config, Sidecar().patches, name)
    unet = fuse_all(options.loras, "unet", _checked(pipeline.unet, name))
    fill(built, unet, options, name, _AGAIN, pipeline.unet.source_name)
    codec = _codec(pipeline.vae, options, name)
    encoders = tuple(
        _encoder(each, i, beside, options, name) for i, each in enumerate(pipeline.text)
    )
    xl = pipeline.kind == "sdxl"
    provenance = Provenance(
        name=name,
        family=NAME,
        weights=pipeline.weights,
        sha256=fused_sha256(sha256(), options.loras),
        flags=_resolved_flags(pipeline, codec.factor),
        notes=(*pipeline.notes, *pipeline.diffusion.notes),
        parts=options.replaced,
    )
    parts = Parts(codec, Conditioner(encoders, pooled=xl, force_zeros=xl))
    return assemble(built, pipeline.diffusion, Sidecar(), provenance, name, parts)


def _config_folder(path: Path, options: Options) -> Path:
    if CONFIG not in options.flags:
        return path.parent
    folder = Path(options.flags[CONFIG]).expanduser()
    if not (folder / "unet" / "config.json").is_file():
        raise RequestError(
            f"--model-flag {CONFIG}: {folder} is not a diffusers folder (no unet/config.json in it).",
            "Pass the folder of a pipeline, with model_index.json.",
        )
    return folder


def _checked(network: Network, name: str) -> Mapping[str, Tensor]:
    """Its weights. Raises CheckpointError for other types than numbers with a point."""
    for key, tensor in network.weights.items():
        plain = tensor.layout == torch.strided and not tensor.is_meta
        if not tensor.is_floating_point() or not plain:
            raise CheckpointError(
                f"{name}: {network.source_name(key)} has the type {tensor.dtype} ({tensor.layout}), "
                "which is not supported.",
                "Use the float16 or float32 weights.",
            )
    return network.weights


def _codec(vae: Network | None, options: Options, name: str) -> Codec:
    """The file's autoencoder, or the one that takes its place."""
    if vae is not None:
        built = build_autoencoder(vae.config, name)
        fill(built, _checked(vae, name), options.in_float32(), name, _AGAIN, vae.source_name)
        return make_codec(built.unet, vae.config)
    found = find_autoencoder(options.vae, None, alone=True) if options.vae else None
    if found is None:
        where = options.vae.name if options.vae else name
        raise CheckpointError(
            f"{where} holds no autoencoder.", "Pass a folder of an AutoencoderKL with --vae."
        )
    return read_autoencoder(found, options)


def _encoder(found: Encoder, i: int, beside: Source, options: Options, name: str) -> TextEncoder:
    network, part = found.network, PARTS[1 + i]
    kind = network.config["architectures"][0]
    check_encoder(kind, network.config, name)
    weights = _checked(network, name)
    return TextEncoder(
        f"{name}/{part}",
        kind,
        network.config,
        lambda: fuse_all(options.loras, part, weights),
        _vocabulary(beside, _TOKENIZERS[i], found.pad),
    )


def _vocabulary(beside: Source, part: str, pad: str) -> Reader:
    """That of the folder, else CLIP's."""
    if any(beside.get(f"{part}/{file}") for file in ("vocab.json", "tokenizer.json")):
        return find_vocabulary(beside, part)

    def read() -> Vocabulary:
        merges = clip_merges()
        return Vocabulary(clip_tokens(merges), merges, clip_special(pad))

    return read


def _resolved_flags(pipeline: Pipeline, factor: int) -> dict[str, str]:
    """The resolved settings by the names of --model-flag and --size, in pixels."""
    flags = {key: str(value) for key, value in pipeline.settings.items()}
    if SIZE not in flags:
        size: Any = pipeline.unet.config["sample_size"]
        height, width = (size, size) if type(size) is int else size
        flags["size"] = f"{height * factor}x{width * factor}"
    return flags
