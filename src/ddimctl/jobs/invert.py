"""Inversion: photos in, their latents and a comparison of each out."""

import json
import math
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.inversion import TOLERANCE
from ddimctl.diffusion.statistics import is_atypical, latent_statistics
from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import check_writable, make_folder, write_bytes
from ddimctl.files.images import from_uint8, to_uint8
from ddimctl.files.latents import save_latents
from ddimctl.jobs.events import Event, Notice, Progress, Wrote
from ddimctl.jobs.inversion_sheet import inversion_sheet
from ddimctl.jobs.photos import SHEET, Fitted, Photo, check_fit, find_photos, fit_photo
from ddimctl.jobs.records import image_text, latents_metadata
from ddimctl.jobs.round_trip import (
    HALF_A_LEVEL,
    Fidelity,
    RoundTrip,
    fidelity,
    inversion_plan,
    open_for_inversion,
    round_trip,
    with_steps,
)
from ddimctl.jobs.run_folder import run_folder
from ddimctl.jobs.sampling_plan import Plan, SampleRequest
from ddimctl.runtime.device import memory_errors

_NAMED_STEPS = 5  # in a warning about steps that were not solved


@dataclass(frozen=True)
class InvertRequest:
    """Which pictures to invert and how.

    photos: files and folders.  method: exact, fixed-point or naive.  tolerance: of each step.
    fit: crop, pad or stretch to the size.  decoding: checkpoint, steps (None is 50), tau, class,
    size, device and folder (None is the current one), as for sampling from the latents; its
    seeds, eta, variance, solver, clip, guidance and save are not used.
    """

    photos: tuple[Path, ...]
    method: str = "exact"
    tolerance: float = TOLERANCE
    fit: str = "crop"
    decoding: SampleRequest = field(default_factory=SampleRequest)


@dataclass(frozen=True)
class InvertResult:
    """pictures: one record for each that was inverted, or would be. failed: name and reason of
    those that could not be read or inverted."""

    pictures: tuple[dict[str, Any], ...]
    failed: tuple[tuple[str, str], ...]
    settings: dict[str, Any]
    seconds: float


def invert(request: InvertRequest) -> Generator[Event, None, InvertResult]:
    """Invert every photo, batch by batch, and write NAME.pt and NAME.inversion.png for each.

    A photo that cannot be read, or has no finite latent, is a notice and an entry in `failed`.
    Raises RequestError (also where something would be overwritten), CheckpointError, DataError,
    StorageError, DeviceError.
    """
    check_fit(request.fit)
    photos = find_photos(request.photos)
    here = replace(request.decoding, out=request.decoding.out or Path())
    with (
        run_folder(here, "invert") as decoding,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return (yield from _invert(replace(request, decoding=decoding), photos))


def _invert(
    request: InvertRequest, photos: Sequence[Photo]
) -> Generator[Event, None, InvertResult]:
    started = time.monotonic()
    decoding = request.decoding
    out = decoding.out or Path()
    _check_room(out, photos, decoding.force)
    checkpoint, device, precision = open_for_inversion(decoding, request.method)
    yield from map(Notice, checkpoint.provenance.notes)
    plan = inversion_plan(
        decoding, checkpoint, len(photos), request.method, request.tolerance, device, precision
    )
    if not decoding.dry_run:
        check_writable(out, 4 * len(photos) * math.prod(plan.shape))

    records: list[dict[str, Any]] = []
    failed: list[tuple[str, str]] = []
    steps, total = len(plan.tau), -(-len(photos) // plan.batch_size) * len(plan.tau)
    for start in range(0, len(photos), plan.batch_size):
        batch = photos[start : start + plan.batch_size]
        readable = yield from _read(batch, checkpoint, plan, request.fit, failed)
        if decoding.dry_run:
            records += [_paths(out, photo) | fitted.record() for photo, fitted in readable]
            continue
        before = start // plan.batch_size * steps
        if readable:
            x_0 = from_uint8(torch.stack([fitted.pixels for _, fitted in readable])).to(device)
            walk = round_trip(checkpoint, plan, x_0, request.tolerance)
            facts = {"pictures": f"{len(records)}/{len(photos)}"}
            trip = yield from with_steps(walk, "inverting", before, total, facts)
            kept = yield from _finite(readable, trip, failed)
            if kept:
                found = [readable[i] for i in kept]
                trip = RoundTrip(*(each[kept] for each in trip))
                records += yield from _store(out, checkpoint, plan, found, x_0[kept], trip)
        facts = {"pictures": f"{len(records)}/{len(photos)}"}
        yield Progress("inverting", before + steps, total, "steps", facts)
    seconds = time.monotonic() - started
    return InvertResult(tuple(records), tuple(failed), plan.settings, seconds)


def _check_room(out: Path, photos: Sequence[Photo], force: bool) -> None:
    if force:
        return
    for photo in photos:
        made = _paths(out, photo)
        for path in (Path(made["latents"]), Path(made["comparison"])):
            if path.exists() and path != photo.path:
                raise RequestError(
                    f"{path} exists already.", "Write over it with --force, or name another --out."
                )


def _read(
    photos: Sequence[Photo],
    checkpoint: Checkpoint,
    plan: Plan,
    fit: str,
    failed: list[tuple[str, str]],
) -> Generator[Event, None, list[tuple[Photo, Fitted]]]:
    """Those of the photos that can be read, fitted; the others go to `failed`."""
    readable = []
    for photo in photos:
        try:
            fitted = fit_photo(photo.path, checkpoint, (plan.shape[1], plan.shape[2]), fit)
        except DataError as error:
            failed.append((str(photo.path), error.cause))
            yield Notice(f"left out: {error.cause}")
        else:
            yield Notice(f"{photo.path}: {fitted.sentence()}.")
            readable.append((photo, fitted))
    return readable


def _finite(
    photos: Sequence[tuple[Photo, Fitted]], trip: RoundTrip, failed: list[tuple[str, str]]
) -> Generator[Event, None, list[int]]:
    """The places of the photos whose latents are numbers; the others go to `failed`."""
    kept = []
    for i, ((photo, _), finite) in enumerate(zip(photos, trip.finite.tolist(), strict=True)):
        if finite:
            kept.append(i)
        else:
            cause = f"{photo.path}: its latent, or what that decodes to, is not finite."
            failed.append((str(photo.path), cause))
            yield Notice(f"left out: {cause}")
    return kept


def _store(
    out: Path,
    checkpoint: Checkpoint,
    plan: Plan,
    photos: Sequence[tuple[Photo, Fitted]],
    x_0: Tensor,
    trip: RoundTrip,
) -> Generator[Event, None, list[dict[str, Any]]]:
    """Write each photo's two files; returns the records."""
    make_folder(out)
    records = []
    odd = is_atypical(trip.latents)
    decoded = to_uint8(trip.decoded).cpu()
    found = fidelity(x_0, trip.decoded)
    for i, (photo, fitted) in enumerate(photos):
        latents = trip.latents[i : i + 1].cpu()
        paths = _paths(out, photo)
        figures = _figures(found[i], trip, i, bool(odd[i]))
        own = _of_one(plan, latents)
        metadata = (
            latents_metadata(own, checkpoint) | fitted.record() | {"picture": photo.path.name}
        )
        save_latents(Path(paths["latents"]), latents, metadata)
        text = {"ddimctl": json.dumps(image_text(own, checkpoint, 0) | {"method": plan.method})}
        sheet = inversion_sheet(fitted.pixels, decoded[i], len(plan.tau), text)
        write_bytes(Path(paths["comparison"]), sheet)
        yield Wrote(paths["latents"], _sentence(figures))
        yield from map(Notice, _warnings(photo.path, plan, found[i], trip.residuals[i], figures))
        records.append(paths | fitted.record() | figures)
    return records


def _paths(out: Path, photo: Photo) -> dict[str, str]:
    return {
        "picture": str(photo.path),
        "latents": str(out / f"{photo.name}.pt"),
        "comparison": str(out / f"{photo.name}{SHEET}"),
    }


def _of_one(plan: Plan, latents: Tensor) -> Plan:
    """The plan of decoding one picture's latents (1, C, H, W)."""
    labels = None if plan.labels is None else plan.labels[:1]
    return replace(plan, names=(0,), seeds=(0,), labels=labels, x_T=latents, batch_size=1)


def _figures(found: Fidelity, trip: RoundTrip, i: int, atypical: bool) -> dict[str, Any]:
    mean, std = latent_statistics(trip.latents[i : i + 1])
    residuals = [r if math.isfinite(r) else None for r in trip.residuals[i].tolist()]
    return {
        **found.record(),
        "evaluations": int(trip.evaluations[i]),
        "residuals": residuals,
        "latent_mean": float(mean[0]),
        "latent_std": float(std[0]),
        "atypical": atypical,
    }


def _sentence(figures: dict[str, Any]) -> str:
    psnr = "exact" if figures["psnr"] is None else f"PSNR {figures['psnr']:.1f} dB"
    return (
        f"MSE {figures['mse']:.2g}, {psnr}, worst level {figures['worst_level']} of 255, "
        f"{100 * figures['exact_pixels']:.4g} % of pixels exact, "
        f"{figures['evaluations']} evaluations, latent mean {figures['latent_mean']:.3f}, "
        f"deviation {figures['latent_std']:.3f}"
    )


def _warnings(
    path: Path, plan: Plan, found: Fidelity, residuals: Tensor, figures: dict[str, Any]
) -> Iterator[str]:
    """What the user should know of an inverted picture besides its figures."""
    if plan.method != "naive" and found.largest_error > HALF_A_LEVEL * 255 / 2:
        by_size = sorted(zip(residuals.tolist(), plan.tau, strict=True), reverse=True)
        left = ", ".join(f"{r * 255 / 2:.2g} at t = {t}" for r, t in by_size[:_NAMED_STEPS])
        yield (
            f"{path}: decoding misses the picture by up to {found.largest_error:.2g} levels of "
            f"255; the steps that were not solved leave {left}. A picture that the model does not "
            "know may have no exact latent; more --steps come nearer."
        )
    if figures["atypical"]:
        yield (
            f"{path}: its latent is unlike noise (mean {figures['latent_mean']:.2f}, deviation "
            f"{figures['latent_std']:.2f}, not 0 and 1): interpolations may look odd near it."
        )
