"""Decoding: every x_T of a plan down its trajectory and into the output folder."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

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
from ddimctl.jobs.run_folder import go_on
from ddimctl.jobs.run_manifest import Layout
from ddimctl.jobs.sampling_plan import Plan, SampleRequest
from ddimctl.jobs.sampling_store import SampleStore, open_store
from ddimctl.runtime.device import device_name, free_memory, is_out_of_memory, memory_errors
from ddimctl.runtime.ranks import Ranks
from ddimctl.runtime.signals import StopRequest, stop_on_signals

_POLL: Final = 0.1  # seconds


def decode(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: torch.device,
    layout: Layout,
    recorded: dict[str, Any] | None,
    ranks: Ranks | None = None,
) -> Generator[Event, None, tuple[Path, dict[str, Path]]]:
    """Make the images of the plan that are not yet there; returns the folder and its outputs by kind.

    request.out is the run's own folder (run_folder). recorded: the manifest of the run to go on
    with, or None; the first process's alone counts. Raises RequestError when that was another
    run, StorageError, NumericsError with the image and the step; DeviceError when there is no
    memory for one image; Stopped when a signal ended the run, which --resume goes on with.
    """
    name, ranks = device_name(device), ranks or Ranks()
    with open_store(request, plan, checkpoint, name, layout, recorded, ranks) as store:
        groups = store.all_missing_groups(recorded)
        if groups is None:
            yield Notice(f"complete already: {plan.count} images.")
            return store.paths.out, store.outputs()
        if "grid" in request.save and plan.count > GRID_LIMIT:
            yield Notice(f"the grid shows the first {GRID_LIMIT} of {plan.count} images.")
        if 0 < len(groups) < ranks.count:
            yield Notice(
                f"{len(groups)} batches leave some of {ranks.count} processes without work; "
                "a smaller --batch-size makes more."
            )
        with stop_on_signals(once=ranks.count == 1) as stop, _resumable_errors(store):
            run = _Run(plan, checkpoint, store, device, ranks, stop)
            yield from _run_groups(run, store.take(groups))
            if ranks.first:
                yield from _await_others(run)
                _finish(run)
            else:
                store.hand_over()
                ranks.add("finished", 1)
    return store.paths.out, store.outputs()


@dataclass
class _Run:
    plan: Plan
    checkpoint: Checkpoint
    store: SampleStore
    device: torch.device
    ranks: Ranks
    stop: StopRequest
    told: int = -1  # how many steps the last event said


def _run_groups(run: _Run, groups: Sequence[Group]) -> Iterator[Event]:
    """Make the groups, in halves where the device has no memory for them."""
    left, steps = deque(groups), len(run.plan.tau)
    while left:
        group, walked, exhausted = left[0], 0, False
        try:
            for index in _make_group(run.plan, run.checkpoint, run.store, group, run.device):
                walked += 1
                run.ranks.add("steps", 1)
                run.ranks.add("images", len(group.images) if index == steps - 1 else 0)
                yield from _progress(run)
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
            free_memory(run.device)
            before, left = len(left), deque(run.store.halve(group))
            run.ranks.add("steps", -walked)
            run.ranks.add("all steps", steps * (len(left) - before))
            yield Notice(
                f"out of memory with {group.size} images at a time; going on with {group.size // 2}."
            )
        else:
            left.popleft()


def _await_others(run: _Run) -> Iterator[Event]:
    """Wait until the other processes have made their groups."""
    finished = run.ranks.add("finished", 1)
    while finished < run.ranks.count:
        time.sleep(_POLL)
        finished = run.ranks.add("finished", 0)
        yield from _progress(run)


def _progress(run: _Run) -> Iterator[Event]:
    """How far all processes are, told by the first; ends the run where one has been told to stop."""
    ranks, plan, store = run.ranks, run.plan, run.store
    if ranks.first:
        facts = {"images": f"{ranks.add('images', 0)}/{plan.count}"}
        done, total = ranks.add("steps", 0), ranks.add("all steps", 0)
        if done != run.told:
            run.told = done
            yield Progress("sampling", done, total, "steps", facts)
    if run.stop:
        images = ranks.add("images", 0)
        _stop(run, f"with {images} of {plan.count} images in {store.paths.out}")
    try:
        ranks.check()
    except Stopped:
        store.wait()
        raise


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


def _finish(run: _Run) -> None:
    """Write what the run ends with; a signal breaks off at once, since all of it can be repeated."""
    try:
        with run.stop.at_once():
            run.store.finish()
    except KeyboardInterrupt:
        if not run.stop:
            raise
        _stop(run, f"with all images made, before all of {run.store.paths.out} was written")


def _stop(run: _Run, how_far: str) -> NoReturn:
    if not run.store.resumable:
        run.stop.pass_on()
    run.store.wait()
    raise Stopped(f"{run.stop.name}: stopped {how_far}.", go_on(run.store.paths.out))


@contextmanager
def _resumable_errors(store: SampleStore) -> Iterator[None]:
    """Within, an error of the disk says how to go on once there is space."""
    try:
        with memory_errors("Use a smaller --batch-size."):
            yield
    except StorageError as error:
        if not store.resumable:
            raise
        remedy = f"{error.remedy} {go_on(store.paths.out)}".strip()
        raise StorageError(error.cause, remedy) from error


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
