"""Replay: recorded images made once more, and compared with what was recorded."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import write_json
from ddimctl.files.pictures.images import image_bytes, image_pixels, read_image
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import open_model
from ddimctl.jobs.events import Report, ignore, notify
from ddimctl.jobs.replay.record import OldImage, Record, read_record
from ddimctl.jobs.replay.request import ReplayRequest
from ddimctl.jobs.requests import (
    CheckpointOptions,
    DeviceOptions,
    OutputOptions,
    PromptOptions,
    SamplerOptions,
)
from ddimctl.jobs.sample.folder import RunFolder, run_folder
from ddimctl.jobs.sample.manifest import (
    load_manifest,
    make_manifest,
    read_manifest,
    sha256_hex,
    versions,
)
from ddimctl.jobs.sample.outputs import FRAMES, SAMPLES
from ddimctl.jobs.sample.plan import (
    Plan,
    image_labels,
    image_shape,
    make_plan,
    pixels_per_latent,
    resolve_sampler,
)
from ddimctl.jobs.sample.prompts import prompted
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.jobs.sample.sampler import decode
from ddimctl.runtime.device import (
    device_name,
    memory_errors,
)

_LAYOUTS: Final = {"sample": SAMPLES, "interpolate": replace(FRAMES, captions=())}
SAME, BYTES, LEVEL, OTHER, UNKNOWN = "same", "other bytes", "within a level", "differs", "unknown"
"""How an image compares: the same file; the same pixels in another file; at most one level of 255
away; further away; and other bytes than an image had that is no longer there."""


class Compared(NamedTuple):
    """One image: its name, one of the words above or None without a recorded hash, and by how
    many levels of 255 it differs at most, where the old one is there.
    """

    name: str
    found: str | None
    levels: int | None


@dataclass(frozen=True)
class ReplayResult:
    """The folder, its outputs by kind, each image's comparison, and what else is not as it was."""

    out: Path
    outputs: dict[str, Path]
    images: tuple[Compared, ...]
    changes: tuple[str, ...]
    seconds: float


def replay(request: ReplayRequest, report: Report = ignore) -> ReplayResult:
    """Make the recorded images again, in the recorded batches and threads, and compare them.

    Raises as sampling does; DataError for a record that cannot be used.
    """
    record = read_record(request.source)
    if request.out is not None and request.out.resolve() in record.source.resolve().parents:
        raise RequestError(
            f"--out {request.out} holds the images to compare with.", "Name another folder."
        )
    output = OutputOptions(request.out, resume=request.resume, force=request.force)
    with (
        run_folder(output, "replay") as out,
        _threads(record.threads),
        memory_errors("Use another --device."),
    ):
        assert out is not None  # it is no dry run
        return _replay(record, request, output, out, report)


def _replay(
    record: Record, request: ReplayRequest, output: OutputOptions, out: Path, report: Report
) -> ReplayResult:
    started = time.monotonic()
    layout = _LAYOUTS[record.command]
    recorded = read_manifest(out, layout, output)
    model = open_model(
        CheckpointOptions(ckpt=request.ckpt),
        DeviceOptions(
            _device(request.device, record),
            deterministic=record.deterministic,
            compile=record.compile,
        ),
        report,
        latent_metadata=record.latent_metadata,
        size=record.size,
        download=request.yes,
    )
    device = model.device
    checkpoint, plan = _plan(record, model.checkpoint, model.precision, report)
    changes = _changes(record, checkpoint, device)
    notify(report, changes)
    outputs = OutputSettings(
        format=record.format,
        metadata=record.metadata,
        deterministic=record.deterministic,
        compile=record.compile,
    )
    run = RunFolder(out, layout, outputs, recorded, request.force)
    if recorded is None:
        run = replace(run, recorded=_begin(record, run, plan, checkpoint, device))
    made = decode(run, plan, checkpoint, device, report)
    images = tuple(_compare(record.images, out, checkpoint.picture_shape[0]))
    return ReplayResult(out, made, images, tuple(changes), time.monotonic() - started)


def _device(name: str, record: Record) -> str:
    """The device asked for; for "recorded" the CPU where the images were made on it, else auto."""
    if name != "recorded":
        return name
    return "cpu" if (record.environment or {}).get("device") == "cpu" else "auto"


def _plan(
    record: Record, checkpoint: Checkpoint, precision: str, report: Report
) -> tuple[Checkpoint, Plan]:
    """The recorded settings as a plan, and the checkpoint with its prompts; seeds are drawn again."""
    count, metadata = len(record.images), record.latent_metadata
    recorded = metadata.get("seeds")
    seeds = recorded if recorded and len(recorded) == count else range(count)
    shape = image_shape(record.size, checkpoint, record.latents)
    text = prompted(checkpoint, PromptOptions(), metadata, range(count), record.size, report)
    checkpoint = text.checkpoint
    plan = make_plan(
        resolve_sampler(SamplerOptions(), metadata, checkpoint),
        shape,
        seeds,
        text.labels or image_labels(None, metadata, checkpoint, seeds),
        precision=precision,
        batch_size=record.batch_size or 1,
        x_T=record.latents,
        method=str(metadata.get("method", "unknown")),
        factor=pixels_per_latent(checkpoint),
        prompts=text.prompts,
        negative=text.negative,
    )
    return checkpoint, plan


def _begin(
    record: Record, run: RunFolder, plan: Plan, checkpoint: Checkpoint, device: torch.device
) -> JsonObject:
    """The manifest of a run that has made nothing yet, but has the old one's smaller batches."""
    if run.force:
        run.paths.remove_earlier_run()
    begun = make_manifest(
        run.outputs, plan, checkpoint, run.layout, device_name(device), smaller=record.smaller
    )
    write_json(run.paths.of("manifest"), begun)
    return begun


def _changes(record: Record, checkpoint: Checkpoint, device: torch.device) -> list[str]:
    """Sentences on what is not as it was when the images were made."""
    was: Mapping[str, str] = record.environment or {}
    now = {"ddimctl": version("ddimctl"), **versions(), "device": device_name(device)}
    now["threads"] = str(torch.get_num_threads())
    changes = [
        f"{key} was {was[key]}, is {now[key]}."
        for key in now
        if key in was and was[key] != now[key]
    ]
    made_with = record.latent_metadata["checkpoint"]
    if made_with.get("sha256") != checkpoint.provenance.sha256:
        changes.append(f"the checkpoint is not the recorded one, '{made_with.get('name')}'.")
    predicted = record.latent_metadata.get("prediction", checkpoint.prediction)
    if predicted != checkpoint.prediction:
        changes.append(f"the prediction target was {predicted}, is {checkpoint.prediction}.")
    if record.batch_size is None:
        changes.append(
            "images do not record the batch size: expect equality within one level of 255."
        )
    return changes


def _compare(old: tuple[OldImage, ...], out: Path, channels: int) -> Iterator[Compared]:
    manifest = load_manifest(out / "manifest.json")
    if manifest is None or len(manifest["images"]) != len(old):
        raise DataError(f"{out} was changed while its images were compared.")
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
    """The largest difference of two images; None without the old one as it was recorded."""
    if old.path is None or not old.path.is_file():
        return None
    content = image_bytes(old.path)
    if sha256_hex(content) != old.sha256:
        return None
    channels = 1 if channels == 1 else 3  # transparent ones are compared on black
    was = image_pixels(read_image(content, channels, name=str(old.path))).int()
    now = image_pixels(read_image(new, channels)).int()
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
