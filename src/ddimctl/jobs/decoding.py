"""Decoding: every x_T of a plan down its trajectory and into the output folder."""

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import Step, trajectory
from ddimctl.errors import NumericsError, Stopped
from ddimctl.files.grids import GRID_LIMIT
from ddimctl.jobs.events import Event, Notice, Progress
from ddimctl.jobs.run_manifest import Layout
from ddimctl.jobs.sampling_plan import Plan, SampleRequest
from ddimctl.jobs.sampling_store import SampleStore, open_store
from ddimctl.runtime.device import device_name, memory_errors
from ddimctl.runtime.signals import StopRequest, stop_on_signals


def decode(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: torch.device,
    layout: Layout,
    recorded: dict[str, Any] | None,
) -> Generator[Event, None, tuple[Path, dict[str, Path]]]:
    """Make the images of the plan that are not yet there; returns the folder and its outputs by kind.

    recorded: the manifest of the run to go on with, or None. Raises RequestError when that was
    another run, StorageError, NumericsError with the image and the step; Stopped when a signal
    ended the run, which --resume goes on with.
    """
    with open_store(request, plan, checkpoint, device_name(device), layout, recorded) as store:
        complete = store.is_complete(recorded)
        groups = [] if complete else list(store.missing_groups())
        if complete:
            yield Notice(f"complete already: {plan.count} images.")
        elif "grid" in request.save and plan.count > GRID_LIMIT:
            yield Notice(f"the grid shows the first {GRID_LIMIT} of {plan.count} images.")
        with stop_on_signals() as stop, memory_errors("Use a smaller --batch-size."):
            yield from _run_groups(plan, checkpoint, store, groups, device, stop)
        if not complete:
            store.finish()
    return store.out, store.outputs()


def _run_groups(
    plan: Plan,
    checkpoint: Checkpoint,
    store: SampleStore,
    groups: Sequence[range],
    device: torch.device,
    stop: StopRequest,
) -> Iterator[Event]:
    """Walk every missing group down its trajectory and hand the results to the store."""
    steps, count = len(plan.tau), plan.count
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
                if not store.resumable:
                    raise KeyboardInterrupt
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
    with torch.inference_mode(), ieee_float32():  # fp32 is what latents were inverted in
        for step in trajectory(
            make_denoiser(checkpoint, settings["guidance"], settings["clip"]),
            plan.start(padded, device),
            checkpoint.schedule,
            plan.tau,
            eta=settings["eta"],
            variance=settings["variance"],
            solver=settings["solver"],
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
                f"{plan.subject(i)}: values are no longer finite after the step at t = {t}.",
                "Try --precision fp32 or --clip static.",
            )
