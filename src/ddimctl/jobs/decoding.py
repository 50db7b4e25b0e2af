"""Decoding: every x_T of a plan down its trajectory and into the output folder."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import Step, trajectory
from ddimctl.errors import DeviceError, NumericsError, Stopped, StorageError
from ddimctl.files.grids import GRID_LIMIT
from ddimctl.jobs.batch_groups import Group
from ddimctl.jobs.events import Event, Notice, Progress
from ddimctl.jobs.run_manifest import Layout
from ddimctl.jobs.sampling_plan import Plan, SampleRequest
from ddimctl.jobs.sampling_store import SampleStore, open_store
from ddimctl.runtime.device import device_name, free_memory, is_out_of_memory, memory_errors
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

    request.out is the run's own folder (run_folder). recorded: the manifest of the run to go on
    with, or None. Raises RequestError when that was another run, StorageError, NumericsError with
    the image and the step; DeviceError when there is no memory for one image; Stopped when a
    signal ended the run, which --resume goes on with.
    """
    with open_store(request, plan, checkpoint, device_name(device), layout, recorded) as store:
        if store.is_complete(recorded):
            store.paths.remove_parts()
            yield Notice(f"complete already: {plan.count} images.")
        else:
            if "grid" in request.save and plan.count > GRID_LIMIT:
                yield Notice(f"the grid shows the first {GRID_LIMIT} of {plan.count} images.")
            with stop_on_signals() as stop, _resumable_errors(store):
                yield from _run_groups(plan, checkpoint, store, device, stop)
                _finish(store, stop)
    return store.paths.out, store.outputs()


def _run_groups(
    plan: Plan, checkpoint: Checkpoint, store: SampleStore, device: torch.device, stop: StopRequest
) -> Iterator[Event]:
    """Make every missing group, in halves where the device has no memory for it."""
    groups = deque(store.missing_groups())
    done = plan.count - sum(len(group.images) for group in groups)
    walked, steps = 0, len(plan.tau)
    while groups:
        group, exhausted = groups[0], False
        try:
            for index in _make_group(plan, checkpoint, store, group, device):
                done += len(group.images) if index == steps - 1 else 0
                facts = {"images": f"{done}/{plan.count}"}
                total = walked + len(groups) * steps
                yield Progress("sampling", walked + index + 1, total, "steps", facts)
                if stop:
                    _stop(store, stop, f"with {done} of {plan.count} images in {store.paths.out}")
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if group.size == 1:
                raise DeviceError(
                    "the device is out of memory with one image at a time.",
                    "Use a smaller --size, --precision bf16 or another --device.",
                ) from error
            exhausted = True
        if exhausted:  # and the error, which held the tensors of the step, is gone
            free_memory(device)
            store.halve(group)
            groups = deque(store.missing_groups(group.images.start))
            yield Notice(
                f"out of memory with {group.size} images at a time; going on with {group.size // 2}."
            )
        else:
            groups.popleft()
            walked += steps


def _make_group(
    plan: Plan, checkpoint: Checkpoint, store: SampleStore, group: Group, device: torch.device
) -> Iterator[int]:
    """Walk a group down its trajectory and hand the results to the store, yielding steps' indices."""
    for index, (step, finite) in enumerate(_walk(plan, checkpoint, group, device)):
        store.check()
        store.keep_step(group.images, index, step.x_0)
        if index == len(plan.tau) - 1:
            _check_finite(finite, plan, group.images)
            store.keep(group.images, step.x)
        yield index


def _finish(store: SampleStore, stop: StopRequest) -> None:
    """Write what the run ends with; a signal breaks off at once, since all of it can be repeated."""
    try:
        with stop.at_once():
            store.finish()
    except KeyboardInterrupt:
        if not stop:
            raise
        _stop(store, stop, f"with all images made, before all of {store.paths.out} was written")


def _stop(store: SampleStore, stop: StopRequest, how_far: str) -> NoReturn:
    if not store.resumable:
        stop.pass_on()
    store.wait()
    raise Stopped(f"{stop.name}: stopped {how_far}.", _go_on(store))


@contextmanager
def _resumable_errors(store: SampleStore) -> Iterator[None]:
    """Within, an error of the disk says how to go on once there is space."""
    try:
        with memory_errors("Use a smaller --batch-size."):
            yield
    except StorageError as error:
        if not store.resumable:
            raise
        raise StorageError(error.cause, f"{error.remedy} {_go_on(store)}".strip()) from error


def _go_on(store: SampleStore) -> str:
    return f"The same command with --out {store.paths.out} --resume goes on."


def _walk(
    plan: Plan, checkpoint: Checkpoint, group: Group, device: torch.device
) -> Iterator[tuple[Step, Tensor]]:
    """The steps of one group, with the step at which each image left the finite numbers.

    The group is padded to its size with its last image, so that the network always sees the same
    shape. Yields (step, (n,) int64: the timestep, or -1 while finite); tensors hold the
    group's own n images.
    """
    images, n = group.images, len(group.images)
    padded = [*images, *[images[-1]] * (group.size - n)]
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
                _check_finite(left, plan, images)
            yield step._replace(x=step.x[:n], x_0=step.x_0[:n]), left


def _check_finite(left: Tensor, plan: Plan, images: range) -> None:
    for i, t in zip(images, left.tolist(), strict=True):
        if t >= 0:
            raise NumericsError(
                f"{plan.subject(i)}: values are no longer finite after the step at t = {t}.",
                "Try --precision fp32 or --clip static.",
            )
