"""Decoding: every x_T of a plan down its trajectory and into the output folder."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import CLEAN
from ddimctl.errors import NumericsError, Stopped, StorageError
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.files.pictures.images import to_uint8
from ddimctl.jobs.events import Notice, Progress, Report
from ddimctl.jobs.sample.batches import Group, suppress_out_of_memory
from ddimctl.jobs.sample.folder import RunFolder, go_on
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.store import SampleStore, open_store
from ddimctl.runtime.compilation import compile_errors
from ddimctl.runtime.device import (
    device_name,
    free_memory,
    memory_errors,
    one_shape,
)
from ddimctl.runtime.distributed import Ranks
from ddimctl.runtime.signals import StopRequest, stop_on_signals
from ddimctl.runtime.transfer import AHEAD, ToHost, to_device


def decode(
    run: RunFolder,
    plan: Plan,
    checkpoint: Checkpoint,
    device: torch.device,
    report: Report,
    ranks: Ranks | None = None,
) -> dict[str, Path]:
    """Make the images of the plan that are not yet there; returns the outputs by kind.

    run: of which the recorded manifest of the first process alone counts. Raises RequestError when
    that was another run, StorageError, NumericsError with the image and the step; DeviceError when there is no memory for
    one image; Stopped when a signal ended the run, which --resume continues.
    """
    name, ranks = device_name(device), ranks or Ranks()
    with open_store(run, plan, checkpoint, name, ranks) as store:
        groups = store.all_missing_groups()
        if groups is None:
            report(Notice(f"already complete: {plan.count} images."))
            return store.outputs()
        if "grid" in run.outputs.save and plan.count > GRID_LIMIT:
            report(Notice(f"the grid shows the first {GRID_LIMIT} of {plan.count} images."))
        if 0 < len(groups) < ranks.count:
            report(
                Notice(
                    f"{len(groups)} batches leave some of {ranks.count} processes idle; "
                    "use a smaller --batch-size."
                )
            )
        remedy = go_on(run.named or run.out)
        with (
            stop_on_signals(once=ranks.count == 1) as stop,
            _resumable_errors(store, remedy),
            one_shape(device),
        ):
            total = len(groups) * len(plan.timesteps)
            there = plan.count - sum(len(group.images) for group in groups)
            state = _Run(plan, checkpoint, store, device, ranks, stop, remedy, report, total, there)
            _run_groups(state, store.take(groups))
            store.hand_over(lambda: _go_on(state))
            _show(state)
            if ranks.first:
                _finish(state)
    return store.outputs()


@dataclass
class _Run:
    plan: Plan
    checkpoint: Checkpoint
    store: SampleStore
    device: torch.device
    ranks: Ranks
    stop: StopRequest
    remedy: str  # of a stop
    report: Report
    total: int  # steps of all processes
    there: int  # images that were made before
    told: int = -1  # how many steps the last event said
    taken_in: dict[Group, int] = field(default_factory=dict)  # steps of the group at hand

    def count(self, name: str, amount: int = 0) -> int:
        """Add to what all processes count in this run, and return the sum."""
        return self.ranks.add(f"{self.store.paths.out}: {name}", amount)

    @property
    def images(self) -> int:
        """How many are made."""
        return self.there + self.count("images")


class _Walked(NamedTuple):
    """One step of a group, on its way to the host: where each image left the finite numbers, what
    the animation shows of it, and of the last step the pixels and x."""

    group: Group
    step: int  # from 0
    results: ToHost


def _run_groups(run: _Run, groups: Sequence[Group]) -> None:
    """Make the groups, in halves where the device has no memory for them.

    The device is given steps before the results of those before are taken in: so it does not wait
    while images are handed over to be encoded, also not between groups.
    """
    left, walked, steps = deque(groups), deque[_Walked](), len(run.plan.timesteps)
    while left:
        group = left[0]
        remedy = "Use a smaller --size, --precision bf16 or another --device."
        with suppress_out_of_memory(group.size, remedy):
            for step in _walk(run.plan, run.checkpoint, run.store, group, run.device):
                walked.append(step)
                _take_in(run, walked, AHEAD)
            left.popleft()
            continue
        free_memory(run.device)  # the error, which held the tensors of the step, is gone
        _take_in(run, deque(step for step in walked if step.group != group))
        walked.clear()
        before, left = len(left), deque(run.store.halve(group))
        run.count("steps", -run.taken_in.pop(group, 0))
        run.count("added steps", steps * (len(left) - before))
        run.report(
            Notice(
                f"out of memory with {group.size} images at a time; "
                f"continuing with {group.size // 2}."
            )
        )
    _take_in(run, walked)


def _take_in(run: _Run, walked: deque[_Walked], ahead: int = 0) -> None:
    """Hand the steps that have arrived to the store; wait until no more than `ahead` have not."""
    store, last = run.store, len(run.plan.timesteps) - 1
    while walked and (len(walked) > ahead or walked[0].results.are_there()):
        (images, _), index, results = walked[0]
        left, frames, *finished = results.tensors(store.check)
        store.check()
        _check_finite(left, run.plan, images)
        store.keep_step(images, index, frames)
        if index == last:
            store.keep(images, *finished)
        run.taken_in = {walked[0].group: index + 1}
        walked.popleft()
        # in this order: who sees the last step of all sees all images
        run.count("images", len(images) if index == last else 0)
        run.count("steps", 1)
        _go_on(run)


def _show(run: _Run) -> None:
    """How far all processes are, told by the first."""
    if not run.ranks.first:
        return
    done = run.count("steps")
    if done != run.told:
        run.told, total = done, run.total + run.count("added steps")
        facts = {"images": f"{run.images}/{run.plan.count}"}
        run.report(Progress("sampling", done, total, "steps", facts))


def _go_on(run: _Run) -> None:
    """Show the progress; end the run where a process has been told to stop or has failed."""
    _show(run)
    if run.stop:
        _stop(run, f"with {run.images} of {run.plan.count} images in {run.store.paths.out}")
    try:
        run.ranks.check()
    except Stopped:
        run.store.wait()
        raise


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
    raise Stopped(f"{run.stop.name}: stopped {how_far}.", run.remedy)


@contextmanager
def _resumable_errors(store: SampleStore, remedy: str) -> Iterator[None]:
    """Within, an error of the disk says how to go on once there is space."""
    try:
        with memory_errors("Use a smaller --batch-size."):
            yield
    except StorageError as error:
        if not store.resumable:
            raise
        raise StorageError(error.cause, f"{error.remedy} {remedy}".strip()) from error


def _walk(
    plan: Plan, checkpoint: Checkpoint, store: SampleStore, group: Group, device: torch.device
) -> Iterator[_Walked]:
    """The steps of one group, of which the host waits for none.

    The group is padded to its size with its last image, so that the network always sees the same
    shape; the results are those of the group's own n images.
    """
    images, n = group.images, len(group.images)
    padded = [*images, *[images[-1]] * (group.size - n)]
    seeds = to_device(torch.tensor([plan.seeds[i] for i in padded]), device)
    labels = None
    if plan.labels is not None:
        labels = to_device(torch.tensor([plan.labels[i] for i in padded]), device)
    sampler = plan.sampler
    left = torch.full((n,), -1, device=device)
    # fp32 is what latents were inverted in
    with torch.inference_mode(), ieee_float32(), compile_errors():
        steps = trajectory(
            make_denoiser(checkpoint, sampler.guidance, sampler.clip, sampler.guidance_rescale),
            plan.start(padded, device),
            checkpoint.schedule,
            plan.timesteps,
            eta=sampler.eta,
            variance=sampler.variance,
            solver=sampler.solver,
            noise=lambda t, x: seeded_noise(seeds, x.shape[1:], t, device),
            labels=labels,
        )
        for index, step in enumerate(steps):
            x, x_0 = step.x[:n], step.x_0[: store.shown(images, index)]
            bad = ~x.isfinite().flatten(1).all(1)
            left = torch.where((left < 0) & bad, step.t, left)
            finished: tuple[Tensor, ...] = ()
            if step.t_next == CLEAN:
                image = checkpoint.decode(x)
                finished = (to_uint8(image), image, *([] if checkpoint.codec is None else [x]))
            frames = checkpoint.decode(x_0) if len(x_0) else x_0
            yield _Walked(group, index, ToHost(left, to_uint8(frames), *finished))


def _check_finite(left: Tensor, plan: Plan, images: range) -> None:
    """left: (n,), int64: the timestep at which each image left the finite numbers, or -1."""
    for i, t in zip(images, left.tolist(), strict=True):
        if t >= 0:
            raise NumericsError(
                f"{plan.subject(i)}: values are not finite after the step at t = {t}.",
                "Use --precision fp32 or --clip static.",
            )
