"""Sampling: seeds or latents in, a folder of pictures out."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ddimctl.diffusion.inversion import METHODS
from ddimctl.errors import RequestError
from ddimctl.files.atomic import check_writable
from ddimctl.files.latents import LatentFile, load_latents
from ddimctl.files.pictures.images import FORMATS
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.sample.auto_timesteps import resolve_timesteps
from ddimctl.jobs.sample.folder import run_folder
from ddimctl.jobs.sample.manifest import Layout, read_manifest
from ddimctl.jobs.sample.outputs import bytes_needed
from ddimctl.jobs.sample.plan import SampleRequest, make_plan
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
    """Draw one image per seed (or decode each latent) and store what request.save names.

    Raises RequestError, CheckpointError, DataError, StorageError, DeviceError; NumericsError with
    the seed and the step; Stopped when a signal ended the run, which --resume goes on with. Under
    torchrun the processes make one run together, and each returns the result.
    """
    _check(request)
    with (
        joined() as ranks,
        run_folder(request, LAYOUT.command, ranks) as request,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _sample(request, ranks, report)


def _sample(request: SampleRequest, ranks: Ranks, report: Report) -> SampleResult:
    started = time.monotonic()
    recorded = read_manifest(request, LAYOUT) if ranks.first else None
    # the same groups of images, whatever this machine would choose
    if recorded:
        request = replace(request, batch_size=recorded["settings"]["batch_size"])
    device = ranks.device(request.device)
    if request.deterministic:
        make_deterministic()
    latents = load_latents(request.latents) if request.latents else None
    known = latents.metadata if latents else {}
    precision = resolve_precision(request.precision or known.get("precision") or "auto", device)
    if request.out is not None and recorded is None and ranks.first:
        check_writable(request.out, _least_space(request, latents))
    checkpoint = open_checkpoint(request, known, device, precision)
    notify(report, checkpoint.provenance.notes)
    plan = make_plan(request, checkpoint, latents, device, precision)
    plan = plan.in_batches(ranks.share("batch size", plan.batch_size))
    if plan.method in METHODS and plan.settings["solver"] != "ddim":
        report(Notice("the latents were inverted for --solver ddim; another only comes near."))
    plan = resolve_timesteps(request, plan, checkpoint, device, report, ranks, recorded)
    if request.dry_run:
        return SampleResult(request.out, {}, plan.settings, plan.seeds, 0.0)

    out, outputs = decode(request, plan, checkpoint, device, LAYOUT, recorded, report, ranks)
    seconds = time.monotonic() - started
    return SampleResult(out, outputs, plan.settings, plan.seeds, seconds)


def _least_space(request: SampleRequest, latents: LatentFile | None) -> int:
    """The bytes that are needed as far as they are known before the checkpoint is."""
    if latents is not None:
        return bytes_needed(request.save, len(latents.latents), latents.latents.shape[1:])
    return bytes_needed(request.save, len(request.seeds), request.size or (1, 1))


def _check(request: SampleRequest) -> None:
    if unknown := [kind for kind in request.save if kind not in SAVES]:
        raise RequestError(
            f"--save: unknown output '{unknown[0]}'.", f"Choose of {', '.join(SAVES)}."
        )
    if request.format not in FORMATS:
        raise RequestError(
            f"unknown picture format '{request.format}'.", f"Choose of {', '.join(FORMATS)}."
        )
    if request.latents is None and not request.seeds:
        raise RequestError("there is nothing to sample: no seeds.", "Name some with --seeds.")
    if request.batch_size is not None and request.batch_size < 1:
        raise RequestError(f"--batch-size must be at least 1, not {request.batch_size}.")
