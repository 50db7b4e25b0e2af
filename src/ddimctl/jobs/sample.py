"""Sampling: seeds or latents in, a folder of pictures out."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import Step, trajectory
from ddimctl.errors import NumericsError, RequestError, Stopped
from ddimctl.files.images import FORMATS
from ddimctl.files.latents import LatentFile, load_latents
from ddimctl.jobs.events import Event, Notice, Progress
from ddimctl.jobs.recall import recall, remember, verify
from ddimctl.jobs.sampling_plan import Plan, SampleRequest, make_plan
from ddimctl.jobs.sampling_store import SAVES, SampleStore, open_store, read_manifest
from ddimctl.runtime.device import (
    PRECISIONS,
    device_name,
    make_deterministic,
    prepare_for_inference,
    resolve_device,
    resolve_precision,
)
from ddimctl.runtime.signals import StopRequest, stop_on_signals


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


def sample(request: SampleRequest) -> Generator[Event, None, SampleResult]:
    """Draw one image per seed (or decode each latent) and store what request.save names.

    Raises RequestError, CheckpointError, DataError, StorageError, DeviceError; NumericsError with
    the seed and the step; Stopped when a signal ended the run, which --resume goes on with.
    """
    started = time.monotonic()
    _check(request)
    recorded = read_manifest(request)
    if recorded is not None:  # the same groups of images, whatever this machine would choose
        request = replace(request, batch_size=recorded["settings"].get("batch_size"))
    device = resolve_device(request.device)
    if request.deterministic:
        make_deterministic()
    latents = load_latents(request.latents) if request.latents else None
    known = latents.metadata if latents else {}
    precision = resolve_precision(request.precision or known.get("precision") or "auto", device)
    checkpoint = _load(request, latents, device, precision)
    yield from map(Notice, checkpoint.provenance.notes)
    plan = make_plan(request, checkpoint, latents, device, precision)
    if request.dry_run:
        return SampleResult(request.out, {}, plan.settings, plan.seeds, 0.0)

    with open_store(request, plan, checkpoint, device_name(device), recorded) as store:
        if store.is_complete(recorded):
            yield Notice(f"complete already: {len(plan.seeds)} images.")
        else:
            groups = list(store.missing_groups())
            with stop_on_signals() as stop:
                yield from _run_groups(plan, checkpoint, store, groups, device, stop)
            store.finish()
    seconds = time.monotonic() - started
    return SampleResult(store.out, store.outputs(), plan.settings, plan.seeds, seconds)


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


def _run_groups(
    plan: Plan,
    checkpoint: Checkpoint,
    store: SampleStore,
    groups: Sequence[range],
    device: torch.device,
    stop: StopRequest,
) -> Iterator[Event]:
    """Walk every missing group down its trajectory and hand the results to the store."""
    steps, count = len(plan.tau), len(plan.seeds)
    done = count - sum(len(group) for group in groups)
    total = len(groups) * steps
    for number, group in enumerate(groups):
        for index, (step, finite) in enumerate(_walk(plan, checkpoint, group, device)):
            store.keep_step(group, index, step.x_0)
            if index == steps - 1:
                _check_finite(finite, plan, group)
                store.keep(group, step.x)
                done += len(group)
            facts = {"images": f"{done}/{count}"}
            yield Progress("sampling", number * steps + index + 1, total, "steps", facts)
            if stop and done < count:
                raise Stopped(
                    f"{stop.name}: stopped with {done} of {count} images in {store.out}.",
                    "The same command with --resume goes on.",
                )


def _walk(
    plan: Plan, checkpoint: Checkpoint, group: range, device: torch.device
) -> Iterator[tuple[Step, Tensor]]:
    """The steps of one group, with the step at which each image left the finite numbers.

    The group is padded to the batch size with its last image, so that the network always sees the
    same shape. Yields (step, (n,) int64: the timestep, or -1 while finite); tensors hold the
    group's own n images.
    """
    n = len(group)
    padded = [*group, *[group[-1]] * (plan.batch_size - n)]
    seeds = torch.tensor([plan.seeds[i] for i in padded]).to(device)
    labels = None
    if plan.labels is not None:
        labels = torch.tensor([plan.labels[i] for i in padded]).to(device)
    settings = plan.settings
    left = torch.full((n,), -1, device=device)
    with torch.inference_mode():
        for step in trajectory(
            make_denoiser(checkpoint, settings["guidance"], settings["clip"]),
            plan.start(padded, device),
            checkpoint.schedule,
            plan.tau,
            eta=settings["eta"],
            variance=settings["variance"],
            noise=lambda t, x: seeded_noise(seeds, x.shape[1:], t, device),
            labels=labels,
        ):
            bad = ~step.x[:n].isfinite().flatten(1).all(1)
            left = torch.where((left < 0) & bad, step.t, left)
            if device.type == "cpu":  # where looking costs nothing, do not go on in vain
                _check_finite(left, plan, group)
            yield step._replace(x=step.x[:n], x_0=step.x_0[:n]), left


def _check_finite(left: Tensor, plan: Plan, group: range) -> None:
    for i, t in zip(group, left.tolist(), strict=True):
        if t >= 0:
            raise NumericsError(
                f"seed {plan.seeds[i]}: values are no longer finite after the step at t = {t}.",
                "Try --precision fp32 or --clip static.",
            )


def _load(
    request: SampleRequest, latents: LatentFile | None, device: torch.device, precision: str
) -> Checkpoint:
    """The request's checkpoint, else the one that the latents name, ready to run."""
    record = latents.metadata.get("checkpoint") if latents else None
    spec, revision, recalled = request.ckpt, request.revision, None
    if spec is None and isinstance(record, dict):
        recalled = recall(record)
        spec, revision = recalled.spec, recalled.revision
    checkpoint = load_checkpoint(
        spec,
        revision=revision,
        variant=request.variant,
        weights=request.weights,
        device=device,
        dtype=PRECISIONS[precision],
        download=recalled is None or request.yes,
    )
    if recalled is not None and isinstance(record, dict):
        verify(checkpoint, record)
    remember(checkpoint, spec)
    prepare_for_inference(checkpoint.unet)
    if request.compile:
        checkpoint.unet.compile()
    return checkpoint
