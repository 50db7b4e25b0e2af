"""Images of a folder or a zip, prepared as for training and measured; and references to them."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import check_writable
from ddimctl.files.dataset.datasets import load_dataset, stream_images
from ddimctl.files.dataset.reference_file import (
    FORMAT_VERSION,
    SUFFIX,
    check_reference_name,
    load_reference,
    save_reference,
)
from ddimctl.files.own_output import check_new_file
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.evaluate.request import ReferenceRequest
from ddimctl.jobs.events import Notice, Progress, Report, counted, ignore, notify
from ddimctl.metrics.inception import DIMENSIONS, load_inception
from ddimctl.metrics.measure import METRICS, Measure, Summary, summarize
from ddimctl.metrics.sliced import BINS, DIRECTIONS, PATCH, level_sizes
from ddimctl.runtime.device import memory_errors, resolve_device

ENOUGH: Final = 10_000
"""Below so many images on a side, scores say more of the number than of the images."""

_BATCH: Final = 64
_FIT: Final = "crop"  # what load_dataset does
_LARGEST_SIDE: Final = 16_384


@dataclass(frozen=True)
class Preparation:
    """What is done to images on both sides. size: (H, W), or None for their own, all equal."""

    size: tuple[int, int] | None
    channels: int = 3
    background: tuple[int, ...] = (0, 0, 0)


class Measured(NamedTuple):
    """summary: what the metrics compare. facts: of what images and how prepared, plain values."""

    summary: Summary
    facts: JsonObject

    @property
    def preparation(self) -> Preparation:
        """How the images were prepared."""
        height, width = self.facts["size"]
        return Preparation((height, width), self.facts["channels"], tuple(self.facts["background"]))


def make_measure(metrics: tuple[str, ...], inception: Path | None, device: torch.device) -> Measure:
    """The metrics, with their network loaded where one needs it. Raises RequestError, DataError."""
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise RequestError(f"unknown metric '{unknown[0]}'.", f"Choose from {', '.join(METRICS)}.")
    if set(metrics) <= {"swd"}:
        return Measure(metrics)
    return Measure(metrics, load_inception(inception, device))


def measure_images(
    source: Path,
    how: Preparation,
    measure: Measure,
    device: torch.device,
    report: Report,
    *,
    limit: int | None = None,
    earlier: Measured | None = None,
) -> Measured:
    """Read, prepare and measure the images; the first `limit` by name, and then exactly so many.

    earlier: returned instead where it is of the same images, preparation and metrics.
    Raises RequestError, DataError.
    """
    data = load_dataset(
        source,
        image_size=how.size,
        channels=how.channels,
        background=how.background,
        strict=limit is not None,
        on_progress=counted(report, "reading", "pictures"),
    )
    for name, reason in data.skipped:
        report(Notice(f"left out: {name}: {reason}"))
    notify(report, data.notes)
    count = len(data.pixels) if limit is None else limit
    if count > len(data.pixels):
        raise DataError(f"{source} holds {len(data.pixels)} images, not {count}.", "Make more.")
    channels, height, width = data.sample_shape
    facts = {
        "kind": "reference",
        "format_version": FORMAT_VERSION,
        "pictures": count,
        "fingerprint": data.fingerprint,
        "size": [height, width],
        "channels": channels,
        "background": list(how.background),
        "fit": _FIT,
        "metrics": measure.settings(),
    }
    if earlier is not None and earlier.facts == facts:
        return earlier
    level_sizes(height, width)  # raises for images that are too small
    batches = (data.pixels[at : min(at + _BATCH, count)] for at in range(0, count, _BATCH))
    return Measured(_summarize(batches, count, measure, device, report), facts)


def measure_samples(
    folder: Path,
    how: Preparation,
    measure: Measure,
    device: torch.device,
    count: int,
    report: Report,
) -> Summary:
    """Measure the first `count` images of a run by name, exactly so many, while they are read.

    The summary is as measure_images' to the bit. Raises DataError, also for one that is damaged.
    """
    assert how.size is not None
    images = stream_images(
        folder,
        count,
        _BATCH,
        image_size=how.size,
        channels=how.channels,
        background=how.background,
    )
    with closing(images) as batches:
        return _summarize(batches, count, measure, device, report)


def _summarize(
    batches: Iterable[Tensor], count: int, measure: Measure, device: torch.device, report: Report
) -> Summary:
    def on_batch(done: int) -> None:
        report(Progress("measuring", done, count, "pictures"))

    with memory_errors("Use --device cpu."):
        return summarize(batches, count, measure, device, on_batch)


def open_reference(path: Path, measure: Measure) -> Measured:
    """A reference file that these metrics can be taken against.

    Raises RequestError where it lacks one of them or was made with other settings, DataError for a
    damaged file.
    """
    tensors, facts = load_reference(path)
    if not _is_whole(tensors, facts):
        raise DataError(f"{path} is damaged.", "Make it again with: ddimctl reference DATA.")
    for metric, settings in measure.settings().items():
        if metric not in facts["metrics"]:
            raise RequestError(
                f"{path} holds no reference for {metric}, only for {', '.join(facts['metrics'])}.",
                f"Make it again with --metric {','.join(measure.metrics)}.",
            )
        if facts["metrics"][metric] != settings:
            raise RequestError(
                f"{path}: {metric} was measured with other settings (Inception weights, "
                "or another version).",
                "Make it again with: ddimctl reference DATA.",
            )
    return Measured(tensors, facts)


def check_preparation(path: Path, found: Measured, wanted: Preparation) -> None:
    """Raise RequestError, with the differences, unless the reference was prepared as wanted."""
    own = found.preparation
    differences = [
        f"{name} is {was}, here {now}"
        for name, was, now in (
            ("the size", own.size, wanted.size or own.size),
            ("the number of channels", own.channels, wanted.channels),
            ("the background", own.background, wanted.background),
        )
        if was != now
    ]
    if differences:
        raise RequestError(
            f"{path} was prepared differently: {'; '.join(differences)}.",
            "Make a matching one with: ddimctl reference DATA --size, --channels, --background.",
        )


def few_images(count: int, what: str, report: Report) -> None:
    """Report a warning where there are few."""
    if count < ENOUGH:
        report(
            Notice(
                f"scores of {what} use only {count:,} images: scores of fewer than {ENOUGH:,} are biased upwards "
                "(KID: noisy); compare only scores of equal numbers of images."
            )
        )


def make_reference(request: ReferenceRequest, report: Report = ignore) -> tuple[Path, Measured]:
    """Measure a data set once, for `evaluate --reference`. Raises as measure_images does."""
    device = resolve_device(request.device)
    out = request.out or _reference_of(request.data)
    check_reference_name(out)
    check_new_file(out, force=request.force)
    check_writable(out.parent)
    measure = make_measure(request.metrics, request.inception, device)
    how = Preparation(request.size, request.channels, request.background)
    found = measure_images(request.data, how, measure, device, report)
    few_images(found.facts["pictures"], "the data", report)
    save_reference(out, found.summary, found.facts)
    return out, found


def _reference_of(data: Path) -> Path:
    """The file for a data set's reference, in the folder that one is in."""
    whole = data.resolve()  # "." has no name of its own
    return Path(f"{whole.name if whole.is_dir() else whole.stem}.reference{SUFFIX}")


def _is_whole(tensors: dict[str, Tensor], facts: JsonObject) -> bool:
    """Whether a stranger's file has the parts that it names, in the shapes that are compared."""
    match facts:
        case {
            "pictures": int(),
            "channels": 1 | 3,
            "size": [int(height), int(width)],
            "background": [int(), int(), int()],
            "metrics": dict(metrics),
        } if PATCH <= min(height, width) and max(height, width) <= _LARGEST_SIDE:
            pass
        case _:
            return False
    rows = tensors["features"].shape[:1] if "features" in tensors else ()
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "swd": {"patches": (len(level_sizes(height, width)), DIRECTIONS, BINS)},
        "fid": {"total": (DIMENSIONS,), "outer": (DIMENSIONS, DIMENSIONS)},
        "kid": {"features": (*rows, DIMENSIONS)},
    }
    needed: dict[str, tuple[int, ...]] = {"count": ()}
    for metric in metrics:
        needed |= shapes.get(metric, {})
    return all(name in tensors and tensors[name].shape == shape for name, shape in needed.items())
