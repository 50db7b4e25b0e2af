"""Training a checkpoint with L_simple on a folder or a zip of pictures."""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, Provenance, load_checkpoint
from ddimctl.checkpoints.architectures import architecture, make_unet
from ddimctl.diffusion import noise
from ddimctl.diffusion.objective import add_noise, loss_weight, training_target
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import NumericsError, RequestError, Stopped
from ddimctl.files.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.jobs.background import with_progress
from ddimctl.jobs.events import Event, Notice, Progress, Wrote
from ddimctl.jobs.training_report import (
    evaluate_loss,
    write_checkpoint,
    write_report,
    write_samples,
)
from ddimctl.jobs.training_request import (
    TrainRequest,
    check_request,
    check_same_run,
    identity_of,
)
from ddimctl.jobs.training_state import (
    Learner,
    make_learner,
    newest_state,
    remove_states,
    restore,
    save_state,
)
from ddimctl.runtime.device import (
    autocast,
    memory_errors,
    prepare_for_training,
    resolve_device,
    resolve_precision,
    to_training_format,
)
from ddimctl.runtime.signals import stop_on_signals

SKIP_LIMIT = 100
# what a random number in training is for
_T, _EPS, _FLIP, _LABEL, _DROPOUT = range(5)


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
    device = resolve_device(request.device)
    precision = resolve_precision(request.precision, device)
    state = _open_run(request)
    data = yield from _read_data(request)
    model = _model(request, data)
    yield from map(Notice, model.provenance.notes)
    unet = prepare_for_training(model.unet, device)
    learner = make_learner(unet, request.ema, request.weight_decay)
    averaged = replace(model, unet=learner.ema.module)
    identity = identity_of(request, precision) | {
        "prediction": model.prediction,  # that of --init, where it brings one
        "schedule": model.schedule.settings,
        "parameters": model.parameters,
    }
    if state is not None:
        check_same_run(state, identity, data.fingerprint)
        restore(learner, state)
        yield Notice(f"going on from step {learner.step}.")
    else:
        remove_states(request.out / "state")

    if request.compile:
        unet.compile()
    update = partial(_update, request, data, model, device, precision)
    about = identity | {"data": data.fingerprint, "pictures": len(data.training)}
    started = clock = time.monotonic()
    first = logged = learner.step
    facts: dict[str, str] = {}
    with stop_on_signals() as stop:
        while learner.step < request.steps:
            with memory_errors(
                "Use --grad-accum, which splits a batch, or a smaller --batch-size."
            ):
                update(learner)
            step, now = learner.step, time.monotonic()
            complete = step == request.steps
            if step % request.log_every == 0 or complete:
                rate = (step - logged) * request.batch_size / (now - clock)
                clock, logged = now, step
                facts = _log(request, learner, rate, now - started)
            yield Progress("training", step, request.steps, "steps", facts)
            if step % request.sample_every == 0 or complete:
                path = write_samples(request.out, averaged, step, device)
                yield Wrote(str(path), "samples")
            at_save = step % request.save_every == 0 or complete
            if at_save:
                _evaluate(learner, data, averaged, device)
            out_of_time = request.time_limit is not None and now - started > request.time_limit
            stopped_by = stop.name
            if at_save or out_of_time or stopped_by:
                save_state(request.out / "state", learner, identity, data.fingerprint)
                write_checkpoint(
                    request.out, averaged, about | {"steps": step}, request.weights_dtype
                )
                write_report(request.out, learner.metrics)
            if stopped_by and not complete:
                raise Stopped(
                    f"{stopped_by}: stopped after step {step} of {request.steps}, state saved.",
                    "The same command with --resume goes on.",
                )
            if out_of_time and not complete:
                yield Notice(f"--time-limit: stopped after step {step}; --resume goes on.")
                break
            clock += time.monotonic() - now  # reports and states are not training time

    if first >= request.steps:
        yield Notice(f"complete already: {first} of {request.steps} steps.")
    last = learner.metrics[-1] if learner.metrics else {}
    checkpoint = request.out / "checkpoint"
    return TrainResult(checkpoint, learner.step, last.get("loss"), last.get("holdout_loss"))


def _update(
    request: TrainRequest,
    data: Dataset,
    model: Checkpoint,
    device: torch.device,
    precision: str,
    learner: Learner,
) -> None:
    """One step of AdamW on request.batch_size pictures."""
    part = request.batch_size // request.grad_accum
    total = torch.zeros((), device=device)
    for micro in range(request.grad_accum):
        first = learner.step * request.batch_size + micro * part
        torch.manual_seed(_seed_of(request.seed, first))  # for the network's dropout
        x_0, labels, keys = _batch(request, data, model, first, part, device)
        t = noise.uniform_integers(noise.hash_keys(keys, _T), model.schedule.num_train_timesteps)
        eps = noise.normal(noise.hash_keys(keys, _EPS), x_0.shape[1:])
        x_t = add_noise(x_0, eps, t, model.schedule)
        target = training_target(x_0, eps, t, model.schedule, model.prediction)
        with autocast(device, precision):
            output = model.network(x_t, t, labels)
        error = (output.float() - target).square().mean(dim=(1, 2, 3))
        weight = loss_weight(t, model.schedule, model.prediction, request.loss_weighting)
        loss = (weight * error).mean() / request.grad_accum
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()

    rate = _learning_rate(request, learner.step)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(learner.unet.parameters(), request.clip_grad)
    learner.step += 1
    if math.isfinite(float(norm)) and math.isfinite(float(total)):
        learner.skipped_in_a_row = 0
        learner.optimizer.step()
        learner.ema.update_parameters(learner.unet)
        learner.loss_sum += float(total)
        learner.loss_count += 1
    else:
        learner.skipped += 1
        learner.skipped_in_a_row += 1
        if learner.skipped_in_a_row > SKIP_LIMIT:
            raise NumericsError(
                f"the gradient was not finite in {learner.skipped_in_a_row} updates in a row; "
                "the last good state is kept.",
                "Begin again with a lower --lr, or with --precision fp32.",
            )
    learner.optimizer.zero_grad(set_to_none=True)


def _batch(
    request: TrainRequest,
    data: Dataset,
    model: Checkpoint,
    first: int,
    count: int,
    device: torch.device,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Pictures first ... first + count - 1 of the run: x_0, labels, and a random key for each."""
    indices = data.training[sample_indices(request.seed, first, count, len(data.training))]
    keys = noise.hash_keys(torch.arange(first, first + count), request.seed)
    flips = noise.uniform(noise.hash_keys(keys, _FLIP)) < 0.5 if request.flip else None
    labels = None
    if data.labels is not None:
        labels = data.labels[indices]
        if model.null_class is not None:
            dropped = noise.uniform(noise.hash_keys(keys, _LABEL)) < request.label_dropout
            labels = labels.masked_fill(dropped, model.null_class)
        labels = labels.to(device)
    x_0 = gather(data.pixels, indices, flips, device)
    return to_training_format(x_0), labels, keys.to(device)


def _learning_rate(request: TrainRequest, step: int) -> float:
    rise = min(1.0, (step + 1) / max(request.warmup, 1))
    if request.lr_decay == "constant":
        return request.lr * rise
    return request.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / request.steps)))


def _log(request: TrainRequest, learner: Learner, rate: float, seconds: float) -> dict[str, str]:
    """Add a record to the metrics; what of it to show."""
    loss = learner.loss_sum / learner.loss_count if learner.loss_count else math.nan
    learner.loss_sum, learner.loss_count = 0.0, 0
    learner.metrics.append(
        {
            "step": learner.step,
            "loss": loss if math.isfinite(loss) else None,
            "lr": _learning_rate(request, learner.step - 1),
            "skipped": learner.skipped,
            "images_per_second": round(rate, 2),
            "seconds": round(seconds, 2),
        }
    )
    return {"loss": f"{loss:.4f}", "images/s": f"{rate:.0f}"}


def _evaluate(learner: Learner, data: Dataset, averaged: Checkpoint, device: torch.device) -> None:
    """Add the EMA network's loss on pictures it learns from and on those held out to the metrics."""
    if not learner.metrics or learner.metrics[-1]["step"] != learner.step:
        learner.metrics.append({"step": learner.step})
    learner.metrics[-1]["train_loss"] = evaluate_loss(averaged, data, data.training, device)
    if len(data.held_out):
        learner.metrics[-1]["holdout_loss"] = evaluate_loss(averaged, data, data.held_out, device)


def _open_run(request: TrainRequest) -> dict[str, Any] | None:
    """The state to go on from, or None to begin."""
    state = newest_state(request.out / "state")
    if state is not None and not request.resume and not request.force:
        raise RequestError(
            f"{request.out} holds a run at step {state['step']}.",
            "Go on with --resume, begin again with --force, or name another --out.",
        )
    if state is None and (request.out / "checkpoint").exists() and not request.force:
        raise RequestError(
            f"{request.out} holds a checkpoint, but no state to go on from.",
            "Write over it with --force, or name another --out.",
        )
    return state if request.resume else None


def _read_data(request: TrainRequest) -> Generator[Event, None, Dataset]:
    def read(report: Any) -> Dataset:
        return load_dataset(
            request.data,
            image_size=request.image_size,
            channels=request.channels,
            background=request.background,
            class_conditional=request.class_conditional,
            holdout=request.holdout,
            strict=request.strict,
            on_progress=report,
        )

    data = yield from with_progress("reading", "pictures", read)
    if data.skipped:
        named = "; ".join(f"{name}: {reason}" for name, reason in data.skipped[:5])
        more = f"; and {len(data.skipped) - 5} more" if len(data.skipped) > 5 else ""
        yield Notice(f"{len(data.skipped)} unreadable pictures left out ({named}{more}).")
    kept = f", {len(data.held_out)} held out" if len(data.held_out) else ""
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    yield Notice(f"{len(data.training)} pictures to learn from{kept}{classes}.")
    return data


def _model(request: TrainRequest, data: Dataset) -> Checkpoint:
    """The network to train with its schedule: fresh, or that of --init."""
    count = len(data.class_names)
    shape = data.sample_shape
    if request.init is None:
        torch.manual_seed(_seed_of(request.seed, -1))
        null_class = count if count and request.label_dropout > 0 else None
        embeds = count + (null_class is not None) if count else None
        config = architecture(request.model or "small", shape, embeds)
        return Checkpoint(
            unet=make_unet(config),
            schedule=make_schedule(request.schedule or "linear"),
            prediction=request.prediction or "eps",
            learned_variance=False,
            sample_shape=shape,
            size_divisor=2 ** (len(config["block_out_channels"]) - 1),
            provenance=Provenance(request.out.name, "diffusers", "ema"),
            num_classes=count or None,
            null_class=null_class,
            class_names=data.class_names,
            background=request.background,
        )
    start = load_checkpoint(request.init)
    if start.learned_variance:
        raise RequestError("--init: checkpoints with a learned variance cannot be trained.")
    if start.sample_shape[0] != shape[0] or (start.num_classes or 0) != count:
        raise RequestError(
            f"--init has {start.sample_shape[0]} channels and {start.num_classes or 0} classes, "
            f"the data {shape[0]} and {count}.",
            "Match them with --channels and --class-conditional.",
        )
    if shape[1] % start.size_divisor or shape[2] % start.size_divisor:
        raise RequestError(
            f"--init does not take pictures of {shape[1]}x{shape[2]}.",
            f"Choose an --image-size divisible by {start.size_divisor}.",
        )
    size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    start.unet.register_to_config(sample_size=size)  # type: ignore[operator]
    return replace(
        start,
        provenance=Provenance(request.out.name, "diffusers", "ema", notes=start.provenance.notes),
        schedule=make_schedule(request.schedule) if request.schedule else start.schedule,
        prediction=request.prediction or start.prediction,
        sample_shape=shape,
        class_names=data.class_names,
        background=request.background,
    )


def _seed_of(seed: int, index: int) -> int:
    key = noise.hash_keys(torch.tensor(seed), index, _DROPOUT)
    return int(key) & noise.MAX_SEED
