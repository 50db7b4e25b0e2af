"""Training a checkpoint with L_simple on a folder or a zip of images."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ddimctl.errors import RESUME, DeviceError, Stopped, StorageError
from ddimctl.files.lock import folder_lock
from ddimctl.files.pictures.images import is_undamaged
from ddimctl.jobs.events import Notice, Progress, Report, Wrote, ignore
from ddimctl.jobs.train.log import training_log
from ddimctl.jobs.train.report import (
    add_evaluation,
    add_record,
    is_evaluated,
    write_checkpoint,
    write_report,
    write_samples,
)
from ddimctl.jobs.train.request import TrainRequest, check_request, memory_remedy
from ddimctl.jobs.train.run import Run, open_run
from ddimctl.jobs.train.state import save_state
from ddimctl.jobs.train.step import count_updates, update
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.distributed import Ranks, joined
from ddimctl.runtime.signals import StopRequest, stop_on_signals

_TICK: Final = 1e-9  # seconds: a coarse clock may stand still between two metrics


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint is and how good its last evaluation was."""

    checkpoint: Path
    step: int
    loss: float | None
    holdout_loss: float | None


def train(request: TrainRequest, report: Report = ignore) -> TrainResult:
    """Train, writing RUN/checkpoint, state, metrics.jsonl, loss.png and samples as it goes.

    Every random number is a function of (seed, step, index of the image in the run), so a run
    that was stopped or killed and resumed is the run that was not. The state is written first and
    the other files follow from it: a resumed run writes them again. Raises RequestError,
    DataError, CheckpointError, StorageError, NumericsError, DeviceError where memory ends, and
    Stopped when a signal ended it with its state saved. Under torchrun the processes make one run
    together, and each returns the result.
    """
    with (
        joined() as ranks,
        _own_folder(request, ranks),
        stop_on_signals(once=ranks.count == 1) as stop,
    ):
        with memory_errors("Use a smaller --model or --image-size."):
            run = open_run(request, stop, ranks, report)
        first = run.learner.step
        shown = request if ranks.first else replace(request, log=None)
        with (
            memory_errors(memory_remedy(request, ranks.count)),
            training_log(shown, first, run.learner.metrics, report) as report,
        ):
            # a killed run may have left files that are older than its state
            if first and ranks.first:
                _keep(run, stop, report, resumed=True)
            _learn(run, stop, report)
    if first >= request.steps:
        report(Notice(f"already complete: {first} of {request.steps} steps."))
    last = run.learner.metrics[-1] if run.learner.metrics else {}
    checkpoint = request.out / "checkpoint"
    return TrainResult(checkpoint, run.learner.step, last.get("loss"), last.get("holdout_loss"))


@contextmanager
def _own_folder(request: TrainRequest, ranks: Ranks) -> Iterator[None]:
    """Within, the first process holds the folder for all."""
    check_request(request, ranks.count)
    with folder_lock(request.out, "train") if ranks.first else nullcontext():
        ranks.barrier()
        yield


def _learn(run: Run, stop: StopRequest, report: Report) -> None:
    """Updates until the last step, the time limit or a signal, with what is due after each."""
    request, learner = run.request, run.learner
    started, images, busy = time.monotonic(), 0, 0.0
    facts: dict[str, str] = {}
    while learner.step < request.steps:
        begun = time.monotonic()
        try:
            update(run)
        except DeviceError:  # another process has died before this update was one
            if run.ranks.first:
                _save(run)
            raise
        complete = learner.step == request.steps
        logged = learner.step % request.log_every == 0 or complete
        if logged or learner.step % request.save_every == 0:
            count_updates(run)
        images += request.batch_size
        busy += time.monotonic() - begun  # reports and states are not training time
        if logged:
            facts = add_record(
                request, learner, images / max(busy, _TICK), time.monotonic() - started
            )
            images, busy = 0, 0.0
        report(Progress("training", learner.step, request.steps, "steps", facts))
        late = request.time_limit is not None and time.monotonic() - started > request.time_limit
        late, stopping = _agree(run.ranks, late, stop)
        if stopping:  # a process that ends must not cut off one that waits for its device
            count_updates(run)
            run.ranks.barrier()
        if run.ranks.first:
            _keep(run, stop, report, late=late)
        elif stopping and not complete:
            raise Stopped(f"stopped after step {learner.step} of {request.steps}.")
        if late and not complete:
            report(Notice(f"--time-limit: stopped after step {learner.step}; --resume continues."))
            return


def _keep(
    run: Run, stop: StopRequest, report: Report, *, resumed: bool = False, late: bool = False
) -> None:
    """Samples, evaluation and state, where they are due after this step.

    By the first process alone. A signal cuts the first two short; the resumed run, which comes here
    before its first step, makes up for them. Raises Stopped.
    """
    request, step = run.request, run.learner.step
    complete = step >= request.steps
    at_save = step % request.save_every == 0 or complete
    samples = request.out / "samples" / f"step-{step:08d}.png"
    at_samples = step % request.sample_every == 0 or complete
    if at_samples and not (resumed and is_undamaged(samples)) and write_samples(samples, run, stop):
        report(Wrote(str(samples), "samples"))
    if at_save:
        add_evaluation(run, stop)
    if at_save or resumed or late or stop:
        _save(run)
    cut = (at_samples and not samples.exists()) or (at_save and not is_evaluated(run.learner))
    if stop and (cut or not complete):
        raise Stopped(
            f"{stop.name}: stopped after step {step} of {request.steps}, state saved.",
            RESUME,
        )


def _agree(ranks: Ranks, late: bool, stop: StopRequest) -> tuple[bool, bool]:
    """What any process knows, for all: whether it is late, and whether a signal has come."""
    passed, number = ranks.highest([late, stop.signal or 0])
    if number:
        stop.signal = signal.Signals(number)
    return bool(passed), bool(number)


def _save(run: Run) -> None:
    """The state, then what follows from it."""
    request, learner = run.request, run.learner
    count_updates(run)
    about = run.record["settings"] | {
        "parameters": run.model.parameters,
        "data": run.data.fingerprint,
        "pictures": len(run.data.training),
        "steps": learner.step,
    }
    try:
        save_state(request.out / "state", learner, run.record)
        write_checkpoint(request.out, run.averaged, about, request.weights_dtype)
        write_report(request.out, learner.metrics)
    except StorageError as error:
        raise StorageError(
            error.cause, f"{error.remedy} --resume continues from the last saved state."
        ) from error
