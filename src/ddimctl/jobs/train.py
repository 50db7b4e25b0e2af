"""Training a checkpoint with L_simple on a folder or a zip of pictures."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddimctl.errors import Stopped
from ddimctl.jobs.events import Event, Notice, Progress, Wrote
from ddimctl.jobs.training_report import (
    add_evaluation,
    add_record,
    write_checkpoint,
    write_report,
    write_samples,
)
from ddimctl.jobs.training_request import TrainRequest, check_request
from ddimctl.jobs.training_run import Run, open_run
from ddimctl.jobs.training_state import save_state
from ddimctl.jobs.training_update import update
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.signals import StopRequest, stop_on_signals


@dataclass(frozen=True)
class TrainResult:
    """Where the checkpoint is and how good its last evaluation was."""

    checkpoint: Path
    step: int
    loss: float | None
    holdout_loss: float | None


def train(request: TrainRequest) -> Generator[Event, None, TrainResult]:
    """Train, writing RUN/checkpoint, state, metrics.jsonl, loss.png and samples as it goes.

    Every random number is a function of (seed, step, index of the picture in the run), so a run
    that was stopped and resumed is the run that was not. Raises RequestError, DataError,
    CheckpointError, NumericsError, and Stopped when a signal ended it with its state saved.
    """
    check_request(request)
    run = yield from open_run(request)
    if run.learner.step >= request.steps:
        yield Notice(f"complete already: {run.learner.step} of {request.steps} steps.")
    with stop_on_signals() as stop:
        yield from _learn(run, stop)
    last = run.learner.metrics[-1] if run.learner.metrics else {}
    checkpoint = request.out / "checkpoint"
    return TrainResult(checkpoint, run.learner.step, last.get("loss"), last.get("holdout_loss"))


def _learn(run: Run, stop: StopRequest) -> Iterator[Event]:
    """Updates until the last step, the time limit or a signal, with what is due after each."""
    request, learner = run.request, run.learner
    started, pictures, busy = time.monotonic(), 0, 0.0
    facts: dict[str, str] = {}
    while learner.step < request.steps:
        begun = time.monotonic()
        with memory_errors("Use --grad-accum, which splits a batch, or a smaller --batch-size."):
            update(run)
        pictures += request.batch_size
        busy += time.monotonic() - begun  # reports and states are not training time
        complete = learner.step == request.steps
        if learner.step % request.log_every == 0 or complete:
            facts = add_record(request, learner, pictures / busy, time.monotonic() - started)
            pictures, busy = 0, 0.0
        yield Progress("training", learner.step, request.steps, "steps", facts)
        late = request.time_limit is not None and time.monotonic() - started > request.time_limit
        yield from _keep(run, stop, late)
        if late and not complete:
            yield Notice(f"--time-limit: stopped after step {learner.step}; --resume goes on.")
            return


def _keep(run: Run, stop: StopRequest, late: bool) -> Iterator[Event]:
    """Samples, evaluation and state, where they are due after this step."""
    request, step = run.request, run.learner.step
    complete = step == request.steps
    if step % request.sample_every == 0 or complete:
        yield Wrote(str(write_samples(request.out, run.averaged, step, run.device)), "samples")
    at_save = step % request.save_every == 0 or complete
    if at_save:
        add_evaluation(run.learner, run.data, run.averaged, run.device)
    stopped_by = stop.name
    if at_save or late or stopped_by:
        _save(run)
    if stopped_by and not complete:
        raise Stopped(
            f"{stopped_by}: stopped after step {step} of {request.steps}, state saved.",
            "The same command with --resume goes on.",
        )


def _save(run: Run) -> None:
    request, data, learner = run.request, run.data, run.learner
    save_state(request.out / "state", learner, run.identity, data.fingerprint)
    about = {"data": data.fingerprint, "pictures": len(data.training), "steps": learner.step}
    write_checkpoint(request.out, run.averaged, run.identity | about, request.weights_dtype)
    write_report(request.out, learner.metrics)
