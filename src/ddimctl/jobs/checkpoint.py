"""Finding again the checkpoint that a latent file names, so that the user need not."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch

from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.checkpoints.load import BUNDLED, BUNDLED_NAME, VARIABLE, is_hub_id, local_path
from ddimctl.checkpoints.lora import parse_lora
from ddimctl.errors import RequestError, StorageError
from ddimctl.files.atomic import write_json
from ddimctl.files.dataset.datasets import user_cache
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import read_json
from ddimctl.jobs.events import Report, notify
from ddimctl.jobs.requests import CheckpointOptions, ComputeOptions
from ddimctl.runtime.compilation import compile_for_inference
from ddimctl.runtime.device import (
    PRECISIONS,
    make_deterministic,
    prepare_for_inference,
    resolve_precision,
)
from ddimctl.runtime.distributed import Ranks

_KEPT: Final = 1000


class FoundCheckpoint(NamedTuple):
    """What load_checkpoint takes."""

    spec: str | None
    revision: str | None = None
    flags: Mapping[str, str] = {}
    vae: str | None = None
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """A checkpoint ready to run on a device. precision: a word of PRECISIONS."""

    checkpoint: Checkpoint
    device: torch.device
    precision: str


def open_model(
    options: CheckpointOptions,
    computing: ComputeOptions,
    report: Report,
    *,
    latent_metadata: Mapping[str, Any] = MappingProxyType({}),
    ranks: Ranks | None = None,
    size: tuple[int, int] | None = None,
    download: bool = False,
    exact: bool = False,
) -> Model:
    """What open_checkpoint finds, on the device and in the precision asked for; reports its notes.

    exact: for exact inversion, which is in fp32. Raises RequestError, CheckpointError, DeviceError.
    """
    device = (ranks or Ranks()).device(computing.device)
    if computing.deterministic:
        make_deterministic()
    own = "fp32" if exact else latent_metadata.get("precision") or "auto"
    precision = resolve_precision(computing.precision or own, device)
    if exact and precision != "fp32":
        raise RequestError(
            f"exact inversion in {precision} would not be exact.", "Leave --precision at fp32."
        )
    checkpoint = open_checkpoint(
        options,
        latent_metadata,
        device,
        precision,
        size=size,
        download=download,
        compiled=computing.compile,
    )
    notify(report, checkpoint.provenance.notes)
    return Model(checkpoint, device, precision)


def open_checkpoint(
    options: CheckpointOptions,
    latent_metadata: Mapping[str, Any],
    device: torch.device,
    precision: str,
    *,
    size: tuple[int, int] | None = None,
    download: bool = False,
    compiled: bool = False,
) -> Checkpoint:
    """The checkpoint of the options, else the one that latents with this metadata name, ready to run.

    size: (H, W), where its files do not say it.  download: whether one that only latents name may be
    downloaded. Raises CheckpointError and RequestError.
    """
    source, record = FoundCheckpoint(options.ckpt, options.revision), None
    weights = options.weights
    if options.ckpt is None and isinstance(latent_metadata.get("checkpoint"), dict):
        record = latent_metadata["checkpoint"]
        source = find_checkpoint(record)
        if weights == "auto" and record.get("weights") in ("ema", "raw"):
            weights = record["weights"]
    recorded = dict(source.flags)
    recorded_size = _size(recorded.pop("size", ""))
    spec = source.spec or os.environ.get(VARIABLE)
    checkpoint = load_checkpoint(
        spec,
        revision=source.revision,
        variant=options.variant,
        weights=weights,
        size=size or recorded_size,
        flags=recorded | dict(options.model_flags),
        allow_nonfinite=options.allow_nonfinite,
        vae=options.vae or source.vae,
        lora=options.lora or source.lora,
        device=device,
        dtype=PRECISIONS[precision],
        download=record is None or download,
    )
    if record is not None:
        verify(checkpoint, record, latent_metadata)
    remember(checkpoint, spec, options.vae, options.lora)
    prepare_for_inference(checkpoint.unet, compiled=compiled)
    if compiled:
        compile_for_inference(checkpoint.unet, device)
    return checkpoint


def remember(
    checkpoint: Checkpoint, spec: str | None, vae: str | None = None, lora: Sequence[str] = ()
) -> None:
    """Note in the user's cache that this folder, with this autoencoder and these LoRA files, holds the
    checkpoint of this hash and name."""
    path = BUNDLED if spec is None else local_path(spec)
    if path == BUNDLED or not path.exists() or not checkpoint.provenance.sha256:
        return
    index = _read_index()
    entry = dict.fromkeys(_keys(checkpoint.provenance.record()), str(path.resolve()))
    sha256 = checkpoint.provenance.sha256
    if vae is not None:
        entry[f"{sha256} vae"] = str(Path(vae).resolve()) if Path(vae).exists() else vae
    if lora:
        files = [(path.resolve(), scale) for path, scale in map(parse_lora, lora)]
        entry[f"{sha256} lora"] = "\n".join(f"{path}:{scale!r}" for path, scale in files)
    if index | entry != index:
        try:
            write_json(_index_path(), dict(list((index | entry).items())[-_KEPT:]))
        except StorageError:  # a read-only home: the user will be asked for --ckpt
            return


def find_checkpoint(record: Mapping[str, Any]) -> FoundCheckpoint:
    """Where the checkpoint of a latent's record is: bundled, known by its hash, or on the hub.

    What is loaded from there must be compared with the record (verify). Raises RequestError when
    it cannot be told.
    """
    sha256, name = record.get("sha256"), record.get("name")
    index = _read_index()
    named, other = (index.get(key) for key in _keys(record))
    here = [place if place and Path(place).exists() else None for place in (named, other)]
    bundled = BUNDLED_NAME if name == BUNDLED_NAME and sha256 else None
    if place := here[0] or bundled or here[1]:
        flags = record.get("flags")
        flags = flags if isinstance(flags, dict) else {}
        lora = tuple(index.get(f"{sha256} lora", "").splitlines())
        flags = {str(key): str(value) for key, value in flags.items()}
        return FoundCheckpoint(place, flags=flags, vae=index.get(f"{sha256} vae"), lora=lora)
    revision = record.get("revision")
    if isinstance(name, str) and isinstance(revision, str) and is_hub_id(name):
        return FoundCheckpoint(name, revision)
    raise RequestError(
        f"the recorded checkpoint '{name}' was not found.",
        "Name it with --ckpt.",
    )


def verify(
    checkpoint: Checkpoint,
    record: Mapping[str, Any],
    latent_metadata: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Raise RequestError unless the checkpoint is the one that the record names.

    latent_metadata: around the record; it may hold the schedule and the prediction target.
    """
    now = {"schedule": checkpoint.schedule.settings, "prediction": checkpoint.prediction}
    if changed := [key for key, value in now.items() if latent_metadata.get(key, value) != value]:
        raise RequestError(
            f"the checkpoint '{record.get('name')}' has the same weights as the recorded one, but "
            f"another {' and '.join(changed)}.",
            "Name the right checkpoint with --ckpt.",
        )
    if checkpoint.provenance.sha256 != record.get("sha256"):
        raise RequestError(
            f"the checkpoint '{record.get('name')}' was found in another version than the recorded one.",
            "Use it all the same by naming it with --ckpt.",
        )


def other_checkpoint(checkpoint: Checkpoint, record: Any) -> Iterator[str]:
    """A sentence where the latents that have this record are of another checkpoint."""
    if isinstance(record, Mapping) and record.get("sha256") != checkpoint.provenance.sha256:
        yield (
            f"the latents were made with '{record.get('name')}', and are decoded with "
            f"'{checkpoint.provenance.name}'."
        )


def _keys(record: Mapping[str, Any]) -> tuple[str, str]:
    """Under which a folder is in the index: copies may have the same weights and other settings."""
    return f"{record.get('sha256')} {record.get('name')}", str(record.get("sha256"))


def _size(text: str) -> tuple[int, int] | None:
    """(H, W) from "HxW" in a stranger's record."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and len(side) <= 5 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _index_path() -> Path:
    return user_cache() / "checkpoints.json"


def _read_index() -> dict[str, str]:
    try:
        index = read_json(_index_path(), paths=True)
    except (Refused, OSError):
        return {}
    return {str(key): value for key, value in index.items() if isinstance(value, str)}
