"""Replay: recorded pictures made once more, and compared with what was recorded."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import storage_errors, write_json
from ddimctl.files.latents import LatentFile
from ddimctl.files.pictures.images import picture_pixels, read_picture
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.events import Report, ignore, notify
from ddimctl.jobs.interpolate import job as interpolate
from ddimctl.jobs.replay.record import OldImage, Record, read_record
from ddimctl.jobs.sample import job as sample
from ddimctl.jobs.sample.folder import run_folder
from ddimctl.jobs.sample.manifest import (
    Layout,
    load_manifest,
    make_manifest,
    read_manifest,
    versions,
)
from ddimctl.jobs.sample.outputs import OutputPaths
from ddimctl.jobs.sample.plan import Plan, SampleRequest, make_plan
from ddimctl.jobs.sample.records import sha256_hex
from ddimctl.jobs.sample.sampler import decode
from ddimctl.runtime.device import (
    device_name,
    make_deterministic,
    memory_errors,
    resolve_device,
    resolve_precision,
)

_LAYOUTS: Final = {
    "sample": sample.LAYOUT,
    "interpolate": replace(interpolate.LAYOUT, captions=()),
}
SAME, BYTES, LEVEL, OTHER, UNKNOWN = "same", "other bytes", "within a level", "differs", "unknown"
"""How a picture compares: the same file; the same pixels in another file; at most one level of 255
away; further away; and other bytes than a picture had that is no longer there."""


@dataclass(frozen=True)
class ReplayRequest:
    """What to make again.

    source: a run's folder, its manifest, or one of its pictures.
    ckpt: None for the recorded checkpoint, which is fetched from the hub only if `yes`.
    device: "recorded" is the CPU for what was made on one, else auto.
    """

    source: Path
    out: Path | None = None
    ckpt: str | None = None
    yes: bool = False
    device: str = "recorded"
    resume: bool = False
    force: bool = False


class Compared(NamedTuple):
    """One picture: its name, one of the words above or None without a recorded hash, and by how
    many levels of 255 it differs at most, where the old one is there.
    """

    name: str
    found: str | None
    levels: int | None


@dataclass(frozen=True)
class ReplayResult:
    """The folder, its outputs by kind, each picture's comparison, and what else is not as it was."""

    out: Path
    outputs: dict[str, Path]
    images: tuple[Compared, ...]
    changes: tuple[str, ...]
    seconds: float


def replay(request: ReplayRequest, report: Report = ignore) -> ReplayResult:
    """Make the recorded pictures again, in the recorded batches and threads, and compare them.

    Raises as sampling does; DataError for a record that cannot be used.
    """
    record = read_record(request.source)
    if request.out is not None and request.out.resolve() in record.source.resolve().parents:
        raise RequestError(
            f"--out {request.out} holds the pictures to compare with.", "Name another folder."
        )
    with (
        run_folder(_sampling(request, record), "replay") as sampling,
        _threads(record.threads),
        memory_errors("Use another --device."),
    ):
        return _replay(record, sampling, report)


def _replay(record: Record, request: SampleRequest, report: Report) -> ReplayResult:
    started = time.monotonic()
    layout = _LAYOUTS[record.command]
    recorded = read_manifest(request, layout)
    device = resolve_device(request.device)
    if request.deterministic:
        make_deterministic()
    precision = resolve_precision(record.known["precision"], device)
    checkpoint = open_checkpoint(request, record.known, device, precision)
    notify(report, checkpoint.provenance.notes)
    plan = _plan(record, request, checkpoint, device, precision)
    changes = _changes(record, checkpoint, device)
    notify(report, changes)
    if recorded is None:
        recorded = _begin(record, request, plan, checkpoint, layout, device)
    out, outputs = decode(request, plan, checkpoint, device, layout, recorded, report)
    images = tuple(_compare(record.images, out, plan.shape[0]))
    return ReplayResult(out, outputs, images, tuple(changes), time.monotonic() - started)


def _sampling(request: ReplayRequest, record: Record) -> SampleRequest:
    """The request for sampling that has the settings which a plan does not take from `known`."""
    device = request.device
    if device == "recorded":
        device = "cpu" if (record.environment or {}).get("device") == "cpu" else "auto"
    return SampleRequest(
        out=request.out,
        ckpt=request.ckpt,
        yes=request.yes,
        device=device,
        size=record.size,
        batch_size=record.batch_size or 1,
        save=("grid", "images", "latents"),
        format=record.format,
        metadata=record.metadata,
        deterministic=record.deterministic,
        compile=record.compile,
        resume=request.resume,
        force=request.force,
    )


def _plan(
    record: Record,
    request: SampleRequest,
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
) -> Plan:
    """The recorded settings as a plan; seeds are drawn again, for which zeros stand in."""
    latents = record.latents
    if latents is None:
        shape = (len(record.images), checkpoint.sample_shape[0], *record.size)
        latents = torch.zeros(()).expand(shape)
    plan = make_plan(request, checkpoint, LatentFile(latents, record.known), device, precision)
    return replace(plan, x_T=record.latents)


def _begin(
    record: Record,
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    layout: Layout,
    device: torch.device,
) -> dict[str, Any]:
    """The manifest of a run that has made nothing yet, but has the old one's smaller batches."""
    paths = OutputPaths(request.out or Path(), layout, request.format)
    if request.force:
        paths.remove_earlier_run()
    begun = make_manifest(
        request, plan, checkpoint, layout, device_name(device), smaller=record.smaller
    )
    write_json(paths.of("manifest"), begun)
    return begun


def _changes(record: Record, checkpoint: Checkpoint, device: torch.device) -> list[str]:
    """Sentences on what is not as it was when the pictures were made."""
    was: Mapping[str, str] = record.environment or {}
    now = {"ddimctl": version("ddimctl"), **versions(), "device": device_name(device)}
    now["threads"] = str(torch.get_num_threads())
    changes = [
        f"{key} was {was[key]}, is {now[key]}."
        for key in now
        if key in was and was[key] != now[key]
    ]
    made_with = record.known["checkpoint"]
    if made_with.get("sha256") != checkpoint.provenance.sha256:
        changes.append(f"the checkpoint is another one than '{made_with.get('name')}'.")
    predicted = record.known.get("prediction", checkpoint.prediction)
    if predicted != checkpoint.prediction:
        changes.append(
            f"the network predicted {predicted}, is now said to predict {checkpoint.prediction}."
        )
    if record.batch_size is None:
        changes.append(
            "the batch size is not recorded in a picture: equal within a level is what to expect."
        )
    return changes


def _compare(old: tuple[OldImage, ...], out: Path, channels: int) -> Iterator[Compared]:
    manifest = load_manifest(out / "manifest.json")
    if manifest is None or len(manifest["images"]) != len(old):
        raise DataError(f"{out} was changed while its pictures were compared.")
    for image, new in zip(old, manifest["images"], strict=True):
        if image.sha256 is None:
            yield Compared(image.name, None, None)
            continue
        if image.sha256 == new["sha256"]:
            yield Compared(image.name, SAME, 0)
            continue
        levels = _levels(image, out / new["file"], channels)
        if levels is None:
            yield Compared(image.name, UNKNOWN, None)
        else:
            yield Compared(image.name, (BYTES, LEVEL)[levels] if levels < 2 else OTHER, levels)


def _levels(old: OldImage, new: Path, channels: int) -> int | None:
    """The largest difference of two pictures; None without the old one as it was recorded."""
    if old.path is None or not old.path.is_file():
        return None
    with storage_errors(old.path):
        content = old.path.read_bytes()
    if sha256_hex(content) != old.sha256:
        return None
    channels = 1 if channels == 1 else 3  # transparent ones are compared on black
    was = picture_pixels(read_picture(content, channels, name=str(old.path))).int()
    now = picture_pixels(read_picture(new, channels)).int()
    return int((was - now).abs().max()) if was.shape == now.shape else 255


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Within, torch computes on that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
