"""What a manifest or an image's text says of how images were made, checked: strangers write them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.errors import DataError
from ddimctl.files.latents import SUFFIXES, load_latents, plain_metadata
from ddimctl.files.own_output import MANIFEST
from ddimctl.files.pictures.images import FORMATS, image_bytes, read_image_text
from ddimctl.files.untrusted.guards import Refused, check_plain_file, is_folder
from ddimctl.files.untrusted.settings import JsonObject, parse_json
from ddimctl.jobs.sample.batches import Smaller, read_smaller
from ddimctl.jobs.sample.manifest import latent_sha256, load_manifest, sha256_hex

COMMANDS: Final = ("sample", "interpolate")
_LATENTS: Final = "latents.pt"
_MAX_SIDE: Final = 16_384
_MAX_THREADS: Final = 1024
_FILE: Final = re.compile(r"(images|frames)/[0-9]{1,19}\.(png|webp)")


@dataclass(frozen=True)
class OldImage:
    """An image that was made: its path, whether or not it is still there, and the file's hash."""

    name: str
    path: Path | None
    sha256: str | None


@dataclass(frozen=True)
class Record:
    """What is needed to make images again.

    latent_metadata: settings, checkpoint, seeds and labels, named as in a latent file's metadata.
    size: (H, W).  batch_size: None where it is not recorded.  latents: (N, C, H, W), or None where
    the seeds say it.  environment: device, threads and versions as far as they are recorded.
    """

    source: Path
    command: str
    latent_metadata: JsonObject
    size: tuple[int, int]
    images: tuple[OldImage, ...]
    latents: Tensor | None
    batch_size: int | None = None
    smaller: tuple[Smaller, ...] = ()
    format: str = "png"
    metadata: bool = True
    deterministic: bool = False
    compile: bool = False
    environment: Mapping[str, str] | None = None
    threads: int | None = None


def read_record(source: Path) -> Record:
    """The record in a run's folder, its manifest, or the text of one of its images.

    Raises DataError naming what is wrong with it, also where latents are needed that are not there.
    """
    path = source / MANIFEST if is_folder(source) else source
    check_plain_file(path)
    if path.suffix.lower() in SUFFIXES:
        raise DataError(
            f"{path} is a latent file, not the record of an image.",
            f"Decode it with ddimctl sample --latents {path}.",
        )
    return _from_manifest(path) if path.suffix.lower() == ".json" else _from_image(path)


def _from_manifest(path: Path) -> Record:
    found = load_manifest(path)
    if found is None or found["command"] not in COMMANDS:
        raise DataError(
            f"{path} is not the manifest of a run of `ddimctl sample` or `ddimctl interpolate`.",
            "Name the folder of such a run, its manifest.json, or one of its images.",
        )
    settings, images = found["settings"], found["images"]
    if not images:
        raise DataError(f"{path} names no images.")
    of_network = ("checkpoint", "schedule", "prediction")
    metadata = _metadata(path, settings | {key: found.get(key) for key in of_network})
    format = found.get("format")
    threads = found.get("threads")
    return Record(
        source=path,
        command=found["command"],
        latent_metadata=metadata | _of_each(path, images),
        size=_size(path, settings),
        images=tuple(_old_image(path.parent, i, image) for i, image in enumerate(images)),
        latents=_latents(path.parent, images),
        batch_size=min(settings["batch_size"], len(images)),
        smaller=tuple(read_smaller(found.get("smaller_batches", [])) or ()),
        format=format if format in FORMATS else "png",
        metadata=found.get("metadata") is not False,
        deterministic=found.get("deterministic") is True,
        compile=found.get("compile") is True,
        environment=_environment(found),
        threads=threads if type(threads) is int and 1 <= threads <= _MAX_THREADS else None,
    )


def _from_image(path: Path) -> Record:
    """One image: what it was drawn beside is not recorded in it."""
    try:
        text = parse_json(read_image_text(path).get("ddimctl", "null"), paths=True)
    except Refused:
        text = None
    if not isinstance(text, dict) or not ("seed" in text or "latent_sha256" in text):
        grid = isinstance(text, dict) and "seeds" in text
        raise DataError(
            f"{path} {'is the grid of a run' if grid else 'does not say how it was made'}.",
            f"Name the run's {MANIFEST}, or one of its images, made without --no-metadata.",
        )
    content = image_bytes(path)
    latents, place = None, 0
    if "latent_sha256" in text:
        latents, place = _find_latent(path, text["latent_sha256"])
    metadata = _metadata(path, {key: value for key, value in text.items() if key != "seed"})
    image = {"seed": place} | text  # the noise of a step is by seed, or by the latent's place
    return Record(
        source=path,
        command="sample",
        latent_metadata=metadata
        | _of_each(path, [image])
        | ({} if latents is None else {"method": "unknown"}),
        size=_size(path, text),
        images=(OldImage(path.name, path, sha256_hex(content)),),
        latents=latents,
        format="webp" if content.startswith(b"RIFF") else "png",
        environment={"ddimctl": _short(text.get("ddimctl"))},
    )


def _metadata(path: Path, settings: Mapping[str, Any]) -> JsonObject:
    """The settings that a plan is made of, of the right types."""
    wanted = {key: value for key, value in settings.items() if value is not None}
    metadata = plain_metadata(path, wanted)
    needed = ("checkpoint", "steps", "tau", "eta", "precision")
    if missing := [key for key in needed if key not in metadata]:
        raise DataError(f"{path} does not say the {missing[0]} of its images.")
    return {key: value for key, value in metadata.items() if key not in ("batch_size", "size")}


def _of_each(path: Path, images: list[JsonObject]) -> JsonObject:
    """Seeds and labels, one per image, where all images have them."""
    found: JsonObject = {}
    for name, plural in (("seed", "seeds"), ("label", "labels")):
        values = [image.get(name) for image in images]
        if all(value is None for value in values):
            continue
        if not all(type(value) is int and 0 <= value < 2**63 for value in values):
            raise DataError(f"{path} has an image with an impossible {name}.")
        found[plural] = values
    prompts = [image.get("prompt") for image in images]
    if any(prompt is not None for prompt in prompts):
        found |= plain_metadata(path, {"prompts": prompts})
    return found | ({"method": "seeds"} if "seeds" in found else {})


def _size(path: Path, settings: Mapping[str, Any]) -> tuple[int, int]:
    size = settings.get("size")
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(side) is int and 1 <= side <= _MAX_SIDE for side in size)
    ):
        raise DataError(f"{path} does not say the size of its images.")
    return size[0], size[1]


def _old_image(folder: Path, i: int, image: Mapping[str, Any]) -> OldImage:
    """Only names that a run gives are looked up: another might lead anywhere."""
    name, sha256 = image.get("file"), image.get("sha256")
    named = isinstance(name, str) and _FILE.fullmatch(name) is not None
    return OldImage(
        str(name) if named else f"image {i}",
        folder / str(name) if named else None,
        sha256 if isinstance(sha256, str) else None,
    )


def _latents(folder: Path, images: list[JsonObject]) -> Tensor | None:
    """The latents that the images name, from the file beside the manifest; None for seeds alone."""
    hashes = [image.get("latent_sha256") for image in images]
    if all(value is None for value in hashes) and all("seed" in image for image in images):
        return None
    latents = load_latents(_latents_file(folder / _LATENTS)).latents
    if hashes != [latent_sha256(latent) for latent in latents]:
        raise DataError(
            f"{folder / _LATENTS} does not hold the latents that the images were decoded from.",
            "Restore the file of the run.",
        )
    return latents


def _find_latent(image: Path, sha256: Any) -> tuple[Tensor, int]:
    """The image's latent (1, C, H, W) in its run's latents.pt, and its place there."""
    folder = image.parent
    path = next((p for p in (folder / _LATENTS, folder.parent / _LATENTS) if p.exists()), None)
    path = _latents_file(path or folder.parent / _LATENTS)
    latents, own = load_latents(path)
    for place, latent in enumerate(latents):
        if latent_sha256(latent) == sha256:
            seeds = own.get("seeds")
            whole = isinstance(seeds, list) and len(seeds) == len(latents)
            return torch.clone(latent)[None], seeds[place] if whole and seeds else place
    raise DataError(
        f"{path} does not hold the latent that {image} was decoded from.",
        "Restore the file of the run.",
    )


def _latents_file(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path} is missing, and the images were decoded from it.",
            "Restore it: the record holds only its hash.",
        )
    return path


def _environment(found: Mapping[str, Any]) -> dict[str, str]:
    versions = found.get("versions")
    recorded = {"ddimctl": found.get("ddimctl"), **(versions if isinstance(versions, dict) else {})}
    recorded |= {key: found.get(key) for key in ("device", "threads")}
    return {str(key): _short(value) for key, value in recorded.items() if value is not None}


def _short(value: Any) -> str:
    return str(value)[:80]
