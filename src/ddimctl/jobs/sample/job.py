"""Sampling: seeds or latents in, a folder of images out."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from ddimctl.diffusion.inversion import METHODS
from ddimctl.errors import RequestError
from ddimctl.files.atomic import check_writable
from ddimctl.files.latents import LatentFile, load_latents
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import Model, open_model, other_checkpoint
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.option import check_choices
from ddimctl.jobs.sample.auto_timesteps import Search, find_timesteps
from ddimctl.jobs.sample.batches import default_batch_size
from ddimctl.jobs.sample.folder import RunFolder, run_folder
from ddimctl.jobs.sample.manifest import read_manifest
from ddimctl.jobs.sample.outputs import SAMPLES, bytes_needed
from ddimctl.jobs.sample.plan import (
    SEEDED,
    Plan,
    image_labels,
    image_shape,
    latent_seeds,
    make_plan,
    pixels_per_latent,
    resolve_sampler,
)
from ddimctl.jobs.sample.prompts import prompted
from ddimctl.jobs.sample.request import SampleRequest
from ddimctl.jobs.sample.sampler import decode
from ddimctl.jobs.sample.store import SAVES
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.distributed import Ranks, joined


@dataclass(frozen=True)
class SampleResult:
    """What a sampling run left behind, or would do: with --dry-run there are no outputs.

    outputs: paths by kind (grid, images, manifest, ...), under the folder as the user named it.
    """

    out: Path | None
    outputs: dict[str, Path]
    settings: JsonObject
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
        run_folder(output, SAMPLES.command, ranks) as out,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _sample(request, out, ranks, report)


def _sample(request: SampleRequest, out: Path | None, ranks: Ranks, report: Report) -> SampleResult:
    started = time.monotonic()
    output, images = request.output, request.images
    latents = load_latents(images.latents) if images.latents else None
    recorded = None
    if ranks.first:
        recorded = read_manifest(out, SAMPLES, output)
        if out is not None and recorded is None:
            check_writable(out, _least_space(request, latents))
    metadata = latents.metadata if latents else {}
    model = open_model(
        request.checkpoint,
        request.device,
        report,
        latent_metadata=metadata,
        ranks=ranks,
        size=images.size,
        download=images.yes,
    )
    notify(report, other_checkpoint(model.checkpoint, metadata.get("checkpoint")))
    model, plan = _plan(request, latents, model, recorded, ranks, report)
    if plan.method in METHODS and plan.sampler.solver != "ddim":
        report(Notice("the latents were inverted for --solver ddim; another solver is inexact."))
    if output.dry_run or out is None:
        return SampleResult(out, {}, plan.record(), plan.seeds, 0.0)
    run = RunFolder(out, SAMPLES, request.outputs, recorded, output.force)
    outputs = decode(run, plan, model.checkpoint, model.device, report, ranks)
    return SampleResult(out, outputs, plan.record(), plan.seeds, time.monotonic() - started)


def _plan(
    request: SampleRequest,
    latents: LatentFile | None,
    model: Model,
    recorded: JsonObject | None,
    ranks: Ranks,
    report: Report,
) -> tuple[Model, Plan]:
    """The plan, and the model with what its prompts are encoded to."""
    images, checkpoint = request.images, model.checkpoint
    metadata = latents.metadata if latents else {}
    # a resumed run has the same batches, whatever this machine would choose
    batch_size = recorded["settings"]["batch_size"] if recorded else request.device.batch_size
    shape = image_shape(images.size, checkpoint, latents.latents if latents else None)
    factor = pixels_per_latent(checkpoint)
    seeds = latent_seeds(latents) if latents else images.all_seeds
    text = prompted(
        checkpoint,
        request.prompt,
        metadata,
        range(len(seeds)) if latents else seeds,
        (shape[1] * factor, shape[2] * factor),
        report,
    )
    checkpoint, labels = text.checkpoint, text.labels
    model = replace(model, checkpoint=checkpoint)
    if labels is None:
        labels = image_labels(
            images.classes, metadata, checkpoint, seeds, by_place=latents is not None
        )
    elif images.classes:
        raise RequestError("--class: this checkpoint takes prompts.", "Use --prompt.")
    search = Search(batch_size, request.output.dry_run, recorded, ranks)
    settings = resolve_sampler(request.sampler, metadata, checkpoint)
    sampler = find_timesteps(settings, model, shape, search, report)
    plan = make_plan(
        sampler,
        shape,
        seeds,
        labels,
        precision=model.precision,
        batch_size=batch_size
        or default_batch_size(checkpoint, shape, model.device, sampler.guidance),
        x_T=latents.latents if latents else None,
        method=str(metadata.get("method", "unknown")) if latents else SEEDED,
        factor=factor,
        prompts=text.prompts,
        negative=text.negative,
    )
    return model, plan.in_batches(ranks.share(plan.batch_size))


def _least_space(request: SampleRequest, latents: LatentFile | None) -> int:
    """The bytes that are needed as far as they are known before the checkpoint is."""
    save = request.output.save
    if latents is not None:
        return bytes_needed(save, len(latents.latents), latents.latents.shape[1:])
    return bytes_needed(save, len(request.images.all_seeds), request.images.size or (1, 1))


def _check(request: SampleRequest) -> None:
    check_choices(request)
    output, batch_size = request.output, request.device.batch_size
    if unknown := [kind for kind in output.save if kind not in SAVES]:
        raise RequestError(
            f"--save: unknown output '{unknown[0]}'.", f"Choose from {', '.join(SAVES)}."
        )
    if request.images.latents is None and not request.images.all_seeds:
        raise RequestError("there are no seeds to sample.", "Name some with --seeds.")
    if batch_size is not None and batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {batch_size}.")
