"""A training run: everything that it needs at hand, made anew or from a saved state."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddimctl.checkpoints import Checkpoint, Provenance, load_checkpoint
from ddimctl.checkpoints.build.architectures import architecture, make_unet
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import RESUME, DataError, RequestError, Stopped
from ddimctl.files.atomic import clean_temporaries
from ddimctl.files.dataset.datasets import Dataset
from ddimctl.files.own_output import check_output, remove_files
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.events import Notice, Report, notify
from ddimctl.jobs.train.data import read_data, seed_of
from ddimctl.jobs.train.request import TrainRequest, check_same_run, settings_of
from ddimctl.jobs.train.state import (
    Learner,
    load_newest_state,
    make_learner,
    remove_states,
    restore,
    saved_steps,
)
from ddimctl.runtime.compilation import compile_for_training
from ddimctl.runtime.device import prepare_for_training, resolve_precision
from ddimctl.runtime.distributed import Ranks
from ddimctl.runtime.signals import StopRequest

_FILES = {"state", "samples", "checkpoint", "tensorboard", "metrics.jsonl", "loss.png"}
_FOLDERS = (".", "state", "samples", "checkpoint", "checkpoint/unet", "checkpoint/scheduler")


@dataclass(frozen=True)
class Run:
    """What is trained, on what and where.

    model: the checkpoint whose unet learns.  averaged: the same with the EMA of its weights.
    record: what the run is known by when it is resumed, as check_same_run wants it.
    network: the same as model, with gradients that are averaged over the processes.
    ranks: the processes that train it; the first has the averaged weights and writes.
    """

    request: TrainRequest
    device: torch.device
    precision: str
    data: Dataset
    model: Checkpoint
    averaged: Checkpoint
    learner: Learner
    network: Checkpoint
    record: JsonObject
    ranks: Ranks

    @property
    def micro_batch(self) -> int:
        """Images in a process's memory at once."""
        return self.request.batch_size // (self.request.grad_accum * self.ranks.count)


def open_run(request: TrainRequest, stop: StopRequest, ranks: Ranks, report: Report) -> Run:
    """The run in request.out to go on with, or a new one; --force removes the states of another.

    request.out is held by the first process.
    Raises Stopped when a signal came before the first step.
    """

    def check_stop() -> None:
        if stop:
            raise Stopped(
                f"{stop.name}: stopped before the first step; what was saved is still there.",
                RESUME,
            )

    device = ranks.device(request.device)
    precision = resolve_precision(request.precision or "auto", device)
    for folder in _FOLDERS if ranks.first else ():  # what a killed run was writing
        if (request.out / folder).is_dir():
            clean_temporaries(request.out / folder)
    state = _state_to_go_on_from(request, report)
    if not ranks.first:  # then they find the images decoded, if they are on its machine
        ranks.barrier(check_stop)
    data = read_data(request, check_stop, report)
    if ranks.first:
        ranks.barrier(check_stop)
    model = model_to_train(request, data)
    check_stop()
    notify(report, model.provenance.notes)
    record = _record(request, precision, data, model) | {"processes": ranks.count}
    if state is not None:
        check_same_run(state["run"], record)
    unet = prepare_for_training(model.unet, device)
    learner = make_learner(unet, request.weight_decay)
    if state is not None:
        restore(learner, state)
        report(Notice(f"continuing from step {learner.step}."))
        _changes(state["run"], record, request, report)
    elif request.force and ranks.first:
        _forget_earlier_run(request.out)
    _check_alike(ranks, learner, record)
    if request.compile:
        compile_for_training(unet)
    averaged = replace(model, unet=learner.ema.module)
    network = replace(model, unet=ranks.parallel(unet))
    return Run(request, device, precision, data, model, averaged, learner, network, record, ranks)


def _state_to_go_on_from(request: TrainRequest, report: Report) -> JsonObject | None:
    """The state to go on from, or None to begin.

    Raises RequestError where the folder holds other things.
    """
    check_output(request.out, force=True, data=request.data)
    steps = saved_steps(request.out / "state")
    if request.resume and steps:
        state, damaged = load_newest_state(request.out / "state")
        for problem in damaged:
            report(Notice(f"{problem} The state before it is used."))
        return state
    if request.force:
        return None
    if steps:
        raise RequestError(
            f"{request.out} holds a run at step {steps[-1]}.",
            "Continue with --resume, start again with --force, or name another --out.",
        )
    if (request.out / "checkpoint").exists():
        raise RequestError(
            f"{request.out} holds a checkpoint, but no state to continue from.",
            "Overwrite it with --force, or name another --out.",
        )
    names = {entry.name for entry in request.out.iterdir() if not entry.name.startswith(".")}
    held = "the beginning of a run" if names <= _FILES else None
    check_output(request.out, held, resume=request.resume)
    return None


def _forget_earlier_run(out: Path) -> None:
    """Remove states and samples; the checkpoint stays until the first save writes over it."""
    remove_states(out / "state")
    remove_files(out, (out / "samples").glob("step-*.png"))


def _record(request: TrainRequest, precision: str, data: Dataset, model: Checkpoint) -> JsonObject:
    settings = settings_of(request, precision) | {
        "prediction": model.prediction,  # that of --init, where it brings one
        "schedule": model.schedule.settings,
    }
    config = json.loads(model.unet.to_json_string())  # type: ignore[operator]
    images = {
        "pictures": len(data.training),
        "held_out": len(data.held_out),
        "fingerprint": data.fingerprint,
    }
    network = {name: value for name, value in config.items() if not name.startswith("_")}
    return {
        "settings": settings,
        "network": network,
        "data": images,
        "steps": request.steps,
    }


def _check_alike(ranks: Ranks, learner: Learner, record: JsonObject) -> None:
    """Raise DataError unless this process begins with what the first one begins with."""
    mine = {"step": learner.step, "run": record}
    theirs = ranks.share(mine)
    if theirs != mine:
        differs = [name for name in mine if mine[name] != theirs[name]]
        raise DataError(
            f"this process starts with another {' and '.join(differs)} than process 0.",
            "Give all processes the same command, and the same images and run folder on a shared disk.",
        )


def _changes(was: JsonObject, now: JsonObject, request: TrainRequest, report: Report) -> None:
    steps, processes = was["steps"], was.get("processes", 1)
    if processes != now["processes"]:
        report(
            Notice(
                f"the run had {processes} process{'es' * (processes > 1)} and now has {now['processes']}: "
                "results differ by rounding and dropout masks."
            )
        )
    if steps != request.steps and request.lr_decay == "cosine":
        report(
            Notice(
                f"--steps was {steps}, is {request.steps}: the learning rate now decays towards that step."
            )
        )


def model_to_train(request: TrainRequest, data: Dataset) -> Checkpoint:
    """A fresh network, or that of --init, for the images. Raises RequestError, CheckpointError."""
    if request.init is None:
        return _fresh(request, data)
    return _adapted(load_checkpoint(request.init), request, data)


def _fresh(request: TrainRequest, data: Dataset) -> Checkpoint:
    count, shape = len(data.class_names), data.sample_shape
    torch.manual_seed(seed_of(request.seed, -1))
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


def _adapted(start: Checkpoint, request: TrainRequest, data: Dataset) -> Checkpoint:
    count, shape = len(data.class_names), data.sample_shape
    if start.codec is not None or start.conditioner is not None:
        raise RequestError(
            "--init: networks that work on latents or take text cannot be trained here.",
            "Start from a network of pixels.",
        )
    if start.provenance.family == "lucidrains":
        raise RequestError("--init: networks of lucidrains cannot be trained here.")
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
            f"--init does not fit images of {shape[1]}x{shape[2]}.",
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
