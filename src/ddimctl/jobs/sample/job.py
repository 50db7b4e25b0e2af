"""Sampling: seeds or latents in, a folder of images out."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.inversion import METHODS
from ddimctl.errors import RequestError
from ddimctl.files.atomic import check_writable
from ddimctl.files.latents import LatentFile, load_latents
from ddimctl.files.pictures.images import FORMATS
from ddimctl.jobs.checkpoint import open_checkpoint, other_checkpoint
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.sample.auto_timesteps import find_timesteps
from ddimctl.jobs.sample.batch_size import default_batch_size
from ddimctl.jobs.sample.folder import RunFolder, run_folder
from ddimctl.jobs.sample.manifest import Layout, read_manifest
from ddimctl.jobs.sample.outputs import bytes_needed
from ddimctl.jobs.sample.plan import (
    SEEDED,
    Plan,
    SamplerSettings,
    Shape,
    image_labels,
    image_shape,
    latent_seeds,
    make_plan,
    resolve_sampler,
)
from ddimctl.jobs.sample.request import SampleRequest
from ddimctl.jobs.sample.sampler import decode
from ddimctl.jobs.sample.store import SAVES
from ddimctl.runtime.device import (
    make_deterministic,
    memory_errors,
    resolve_precision,
)
from ddimctl.runtime.ranks import Ranks, joined

LAYOUT: Final = Layout("sample", "images", 6)


@dataclass(frozen=True)
class SampleResult:
    """What a sampling run left behind, or would do: with --dry-run there are no outputs.

    outputs: paths by kind (grid, images, manifest, ...), under the folder as the user named it.
    """

    out: Path | None
    outputs: dict[str, Path]
    settings: dict[str, Any]
    seeds: tuple[int, ...]
    seconds: float


def sample(request: SampleRequest, report: Report = ignore) -> SampleResult:
    """Sample one image per seed (or decode each latent) and store what --save names.

    Raises RequestError, CheckpointError, DataError, StorageError, DeviceError; NumericsError with
    the seed and the step; Stopped when a signal ended the run, which --resume continues. Under
    torchrun the processes make one run together, and each returns the result.
    """
    _check(request)
    output = request.output
    with (
        joined() as ranks,
        run_folder(
            output.out, LAYOUT.command, resume=output.resume, dry_run=output.dry_run, ranks=ranks
        ) as out,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _sample(request, out, ranks, report)


def _sample(request: SampleRequest, out: Path | None, ranks: Ranks, report: Report) -> SampleResult:
    started = time.monotonic()
    output, images = request.output, request.images
    recorded = None
    if ranks.first:
        recorded = read_manifest(out, LAYOUT, resume=output.resume, force=output.force)
    device = ranks.device(request.device.device)
    if request.device.deterministic:
        make_deterministic()
    latents = load_latents(images.latents) if images.latents else None
    metadata = latents.metadata if latents else {}
    asked = request.device.precision or metadata.get("precision") or "auto"
    precision = resolve_precision(asked, device)
    if out is not None and recorded is None and ranks.first:
        check_writable(out, _least_space(request, latents))
    checkpoint = open_checkpoint(
        request.checkpoint,
        metadata,
        device,
        precision,
        size=images.size,
        download=images.yes,
        compiled=request.device.compile,
    )
    notify(report, checkpoint.provenance.notes)
    notify(report, other_checkpoint(checkpoint, metadata.get("checkpoint")))
    # a resumed run has the same batches, whatever this machine would choose
    batch_size = recorded["settings"]["batch_size"] if recorded else request.device.batch_size
    shape = image_shape(images.size, checkpoint, latents.latents if latents else None)
    sampler = find_timesteps(
        resolve_sampler(request.sampler, metadata, checkpoint),
        checkpoint,
        shape,
        device,
        report,
        batch_size=batch_size,
        dry_run=output.dry_run,
        recorded=recorded,
        ranks=ranks,
    )
    batch_size = batch_size or default_batch_size(checkpoint, shape, device, sampler.guidance)
    plan = _plan(request, latents, sampler, checkpoint, shape, precision, batch_size)
    plan = plan.in_batches(ranks.share("batch size", plan.batch_size))
    if plan.method in METHODS and sampler.solver != "ddim":
        report(Notice("the latents were inverted for --solver ddim; another only comes near."))
    if output.dry_run or out is None:
        return SampleResult(out, {}, plan.record(), plan.seeds, 0.0)

    run = RunFolder(out, LAYOUT, request.outputs, recorded, output.force)
    outputs = decode(run, plan, checkpoint, device, report, ranks)
    return SampleResult(out, outputs, plan.record(), plan.seeds, time.monotonic() - started)


def _plan(
    request: SampleRequest,
    latents: LatentFile | None,
    sampler: SamplerSettings,
    checkpoint: Checkpoint,
    shape: Shape,
    precision: str,
    batch_size: int,
) -> Plan:
    seeds = latent_seeds(latents) if latents else request.images.all_seeds
    metadata = latents.metadata if latents else {}
    labels = image_labels(
        request.images.classes, metadata, checkpoint, seeds, by_place=latents is not None
    )
    return make_plan(
        sampler,
        shape=shape,
        seeds=seeds,
        labels=labels,
        precision=precision,
        batch_size=batch_size,
        x_T=latents.latents if latents else None,
        method=str(metadata.get("method", "unknown")) if latents else SEEDED,
    )


def _least_space(request: SampleRequest, latents: LatentFile | None) -> int:
    """The bytes that are needed as far as they are known before the checkpoint is."""
    save = request.output.save
    if latents is not None:
        return bytes_needed(save, len(latents.latents), latents.latents.shape[1:])
    return bytes_needed(save, len(request.images.all_seeds), request.images.size or (1, 1))


def _check(request: SampleRequest) -> None:
    output, batch_size = request.output, request.device.batch_size
    if unknown := [kind for kind in output.save if kind not in SAVES]:
        raise RequestError(
            f"--save: unknown output '{unknown[0]}'.", f"Choose of {', '.join(SAVES)}."
        )
    if output.format not in FORMATS:
        raise RequestError(
            f"unknown image format '{output.format}'.", f"Choose of {', '.join(FORMATS)}."
        )
    if request.images.latents is None and not request.images.all_seeds:
        raise RequestError("there is nothing to sample: no seeds.", "Name some with --seeds.")
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {batch_size}.")
