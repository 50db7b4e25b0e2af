"""A training run: everything that it needs at hand, made anew or from a saved state."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError
from ddimctl.files.datasets import Dataset
from ddimctl.jobs.events import Event, Notice
from ddimctl.jobs.training_data import read_data
from ddimctl.jobs.training_model import model_to_train
from ddimctl.jobs.training_request import TrainRequest, check_same_run, identity_of
from ddimctl.jobs.training_state import (
    Learner,
    make_learner,
    newest_state,
    remove_states,
    restore,
)
from ddimctl.runtime.device import prepare_for_training, resolve_device, resolve_precision


@dataclass(frozen=True)
class Run:
    """What is trained, on what and where.

    model: the checkpoint whose unet learns.  averaged: the same with the EMA of its weights.
    identity: what makes another run the same as this one, plain values.
    """

    request: TrainRequest
    device: torch.device
    precision: str
    data: Dataset
    model: Checkpoint
    averaged: Checkpoint
    learner: Learner
    identity: dict[str, Any]


def open_run(request: TrainRequest) -> Generator[Event, None, Run]:
    """The run in request.out to go on with, or a new one."""
    device = resolve_device(request.device)
    precision = resolve_precision(request.precision, device)
    state = _state_to_go_on_from(request)
    data = yield from read_data(request)
    model = model_to_train(request, data)
    yield from map(Notice, model.provenance.notes)
    unet = prepare_for_training(model.unet, device)
    learner = make_learner(unet, request.ema, request.weight_decay)
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
    averaged = replace(model, unet=learner.ema.module)
    return Run(request, device, precision, data, model, averaged, learner, identity)


def _state_to_go_on_from(request: TrainRequest) -> dict[str, Any] | None:
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
