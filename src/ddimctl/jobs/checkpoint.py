"""Finding again the checkpoint that a latent file names, so that the user need not."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.checkpoints.load import BUNDLED, BUNDLED_NAME, VARIABLE, is_hub_id, local_path
from ddimctl.errors import RequestError, StorageError
from ddimctl.files.atomic import write_json
from ddimctl.files.dataset.datasets import user_cache
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import read_json
from ddimctl.jobs.requests import CheckpointOptions
from ddimctl.runtime.compilation import compile_for_inference
from ddimctl.runtime.device import PRECISIONS, prepare_for_inference

_KEPT: Final = 1000


class FoundCheckpoint(NamedTuple):
    """What load_checkpoint takes."""

    spec: str
    revision: str | None = None
    flags: Mapping[str, str] = {}


def open_checkpoint(
    options: CheckpointOptions,
    metadata: Mapping[str, Any],
    device: torch.device,
    precision: str,
    *,
    size: tuple[int, int] | None = None,
    download: bool = False,
    compiled: bool = False,
) -> Checkpoint:
    """The checkpoint of the options, else the one that latents with this metadata name, ready to run.

    size: (H, W), where its files do not say it.  download: whether one that only latents name may be
    fetched from the hub. Raises CheckpointError and RequestError.
    """
    spec, revision, weights = options.ckpt, options.revision, options.weights
    flags = dict(options.model_flags)
    record, found = metadata.get("checkpoint"), None
    if spec is None and isinstance(record, dict):
        found = find_checkpoint(record)
        spec, revision = found.spec, found.revision
        if weights == "auto" and record.get("weights") in ("ema", "raw"):
            weights = record["weights"]
        recorded = dict(found.flags)
        size = size or _size(recorded.pop("size", ""))
        flags = recorded | flags
    spec = spec or os.environ.get(VARIABLE)
    checkpoint = load_checkpoint(
        spec,
        revision=revision,
        variant=options.variant,
        weights=weights,
        size=size,
        flags=flags,
        allow_nonfinite=options.allow_nonfinite,
        device=device,
        dtype=PRECISIONS[precision],
        download=found is None or download,
    )
    if found is not None and isinstance(record, dict):
        verify(checkpoint, record, metadata)
    remember(checkpoint, spec)
    prepare_for_inference(checkpoint.unet, compiled=compiled)
    if compiled:
        compile_for_inference(checkpoint.unet, device)
    return checkpoint


def remember(checkpoint: Checkpoint, spec: str | None) -> None:
    """Note in the user's cache that this folder holds the checkpoint of this hash and name."""
    path = BUNDLED if spec is None else local_path(spec)
    if path == BUNDLED or not path.exists() or not checkpoint.provenance.sha256:
        return
    index = _read_index()
    entry = dict.fromkeys(_keys(checkpoint.provenance.record()), str(path.resolve()))
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
        said = record.get("flags")
        said = said if isinstance(said, dict) else {}
        return FoundCheckpoint(place, flags={str(key): str(value) for key, value in said.items()})
    revision = record.get("revision")
    if isinstance(name, str) and isinstance(revision, str) and is_hub_id(name):
        return FoundCheckpoint(name, revision)
    raise RequestError(
        f"this was made with the checkpoint '{name}', which is not where it was.",
        "Name it with --ckpt.",
    )


def verify(
    checkpoint: Checkpoint, record: Mapping[str, Any], known: Mapping[str, Any] | None = None
) -> None:
    """Raise RequestError unless the checkpoint is the one that the record names.

    known: the metadata around the record, which may say its schedule and what it predicts.
    """
    now = {"schedule": checkpoint.schedule.settings, "prediction": checkpoint.prediction}
    was = known or {}
    if changed := [key for key, value in now.items() if was.get(key, value) != value]:
        raise RequestError(
            f"this was made when '{record.get('name')}' had another {' and '.join(changed)}: "
            "the same weights are there, with other settings.",
            "Name the checkpoint with --ckpt.",
        )
    if checkpoint.provenance.sha256 != record.get("sha256"):
        raise RequestError(
            f"this was made with another version of '{record.get('name')}' than the one found.",
            "Name the checkpoint with --ckpt to use it all the same.",
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
