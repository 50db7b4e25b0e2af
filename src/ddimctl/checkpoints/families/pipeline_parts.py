"""What a diffusers pipeline folder holds beside its UNet: the autoencoder, and the text encoders or
the embeddings of classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from ddimctl.checkpoints.build.assemble import Options, fill
from ddimctl.checkpoints.build.network import build_autoencoder
from ddimctl.checkpoints.build.text_encoder import UNUSED, TextEncoder, check_encoder
from ddimctl.checkpoints.build.tokens import find_vocabulary
from ddimctl.checkpoints.build.weights import (
    STEMS,
    TEXT_STEMS,
    check_finite,
    find_weights,
    look_for_weights,
    read_weights,
)
from ddimctl.checkpoints.codec import Codec, make_codec
from ddimctl.checkpoints.conditioner import Conditioner
from ddimctl.checkpoints.identify import class_of
from ddimctl.checkpoints.lora import Lora, fuse_all
from ddimctl.checkpoints.source import Source, read_json
from ddimctl.checkpoints.table import Table, class_table
from ddimctl.errors import CheckpointError

_CONFIG_REMEDY: Final = "Use the config.json that belongs to these weights."
_VAES: Final = ("vae", "vqvae")
_CLASSES: Final = "class_embedder/"


class Found(NamedTuple):
    """The files of one part. where: its config.json, for messages. note: for the user, or ""."""

    name: str
    where: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    note: str = ""


def find_autoencoder(source: Source, variant: str | None, *, alone: bool = False) -> Found | None:
    """The autoencoder of a pipeline folder, or None where it has none. alone: the folder may be the
    autoencoder itself. Raises CheckpointError for one without weights.
    """
    prefixes = [f"{part}/" for part in _VAES] + ([""] if alone else [])
    for prefix in prefixes:
        config = read_json(source, f"{prefix}config.json")
        if config is not None:
            found = _found(source, prefix, config, variant, STEMS)
            return found._replace(note=" ".join(filter(None, (found.note, _scale_note(found)))))
    return None


def _scale_note(found: Found) -> str:
    """What to know of an autoencoder whose file does not say its scale; "" where there is nothing."""
    if found.config.get("_class_name") != "VQModel" or "scaling_factor" in found.config:
        return ""
    return f"{found.where} says no scaling_factor: assumed 1."


def read_autoencoder(found: Found, options: Options) -> Codec:
    """The codec, in float32 on the options' device. Raises CheckpointError where it cannot be run."""
    built = build_autoencoder(found.config, found.where)
    weights = read_weights(found.files, found.name)
    in_float32 = options.in_float32()
    fill(built, weights, in_float32, found.where, _CONFIG_REMEDY)
    return make_codec(built.unet, found.config)


def find_text_encoders(
    source: Source, index: Mapping[str, Any] | None, variant: str | None
) -> list[Found]:
    """The text encoders, in the order in which their embeddings are put together. Raises
    CheckpointError for others than CLIP's, and for some without weights.
    """
    parts = []
    for part in ("text_encoder", "text_encoder_2"):
        config = read_json(source, f"{part}/config.json")
        if config is not None:
            found = _found(source, f"{part}/", config, variant, TEXT_STEMS)
            check_encoder(_kind(index, part, config), config, found.where)
            parts.append(found)
    return parts


def make_conditioner(
    source: Source,
    index: Mapping[str, Any] | None,
    unet_config: Mapping[str, Any],
    found: list[Found],
    loras: Sequence[Lora] = (),
) -> Conditioner:
    """The conditioner of these text encoders, which are read when a prompt is encoded.

    Raises CheckpointError where the UNet needs other ones.
    """
    pooled = unet_config.get("addition_embed_type") == "text_time"
    encoders = tuple(_encoder(source, index, each, loras) for each in found)
    if pooled and [each.kind for each in encoders[1:]] != ["CLIPTextModelWithProjection"]:
        what = "the refiner of SDXL" if len(encoders) == 1 else "of a kind that is not known here"
        raise CheckpointError(f"{source.name} is {what}: it has not the two text encoders of SDXL.")
    if not pooled and len(encoders) != 1:
        raise CheckpointError(
            f"{source.name} has {len(encoders)} text encoders, its UNet takes one."
        )
    force_zeros = (index or {}).get("force_zeros_for_empty_prompt", True)
    return Conditioner(encoders, pooled, pooled and bool(force_zeros))


def find_class_embedder(source: Source, variant: str | None) -> Found | None:
    """The ClassEmbedder of a class-conditional pipeline folder, or None where it has none."""
    if not look_for_weights(source, _CLASSES, None, STEMS):
        return None
    return _found(source, _CLASSES, {}, variant, STEMS)


def read_class_embedder(found: Found) -> Table:
    """Its table. Raises CheckpointError for weights that are no table."""
    weights = read_weights(found.files, found.name)
    table = weights.get("embedding.weight")
    if table is None or table.ndim != 2 or len(table) < 2 or len(weights) != 1:
        raise CheckpointError(f"{found.name} is not one table of embeddings, embedding.weight.")
    check_finite(weights, found.name)
    return class_table(table)


def _encoder(
    source: Source, index: Mapping[str, Any] | None, found: Found, loras: Sequence[Lora]
) -> TextEncoder:
    part = found.where.split("/")[-2]
    return TextEncoder(
        found.where.removesuffix("/config.json"),
        _kind(index, part, found.config),
        found.config,
        lambda: fuse_all(loras, part, read_weights(found.files, found.name, UNUSED)),
        find_vocabulary(source, part.replace("text_encoder", "tokenizer")),
    )


def _kind(index: Mapping[str, Any] | None, part: str, config: Mapping[str, Any]) -> str:
    """The class of a text encoder: by its own file, else by model_index.json."""
    names = config.get("architectures")
    own = str(names[0]) if isinstance(names, list) and names else ""
    return own or class_of(index or {}, part) or str(config.get("model_type"))


def _found(
    source: Source,
    prefix: str,
    config: Mapping[str, Any],
    variant: str | None,
    stems: Mapping[str, str],
) -> Found:
    """The part's files of the variant, else its plain ones."""
    where, note = f"{source.name}/{prefix}config.json", ""
    files = look_for_weights(source, prefix, variant, stems) if variant else ()
    if variant and not files:
        note = (
            f"{source.name}/{prefix.rstrip('/')} has no variant {variant}: using its plain weights."
        )
    files = files or find_weights(source, prefix, None, stems)
    return Found(f"{source.name}/{prefix}".rstrip("/"), where, config, files, note)
