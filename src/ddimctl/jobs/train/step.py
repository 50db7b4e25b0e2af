"""One update of a network in training."""

import math
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from ddimctl.diffusion.objective import add_noise, loss_weight, training_target
from ddimctl.errors import NumericsError
from ddimctl.jobs.train.data import make_batch, seed_of
from ddimctl.jobs.train.run import Run
from ddimctl.jobs.train.state import average, begin_average
from ddimctl.runtime.autocast import autocast
from ddimctl.runtime.transfer import AHEAD, ToHost

SKIP_LIMIT = 100


def update(run: Run) -> None:
    """One step of AdamW on request.batch_size images; none where its gradient is not finite.

    Raises NumericsError when that has happened too often in a row.
    """
    request, learner = run.request, run.learner
    loss = _backward(run)  # from here on nothing waits for the device
    for group in learner.optimizer.param_groups:
        group["lr"] = request.learning_rate(learner.step)
    most = request.clip_grad or math.inf
    norm = torch.nn.utils.clip_grad_norm_(learner.unet.parameters(), most)
    finite = norm.isfinite() & loss.isfinite()
    # where this is 1, the fused optimizer leaves everything as it is
    learner.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.step += 1
    learner.under_way.append(ToHost(loss, finite))
    if run.ranks.first:
        _average(run, finite)
    count_updates(run, AHEAD)


def count_updates(run: Run, ahead: int = 0) -> None:
    """Count the losses of the updates that the device has made, of all but the newest `ahead`.

    Raises as update does; DeviceError where another process has died, which the device waits for.
    """
    learner = run.learner
    while learner.under_way and (
        len(learner.under_way) > ahead or learner.under_way[0].are_there()
    ):
        loss, finite = learner.under_way[0].tensors(run.ranks.check)
        learner.under_way.popleft()
        if finite:
            learner.skipped_in_a_row = 0
            learner.loss_sum += float(loss)
            learner.loss_count += 1
        else:
            _skip(run)


def _average(run: Run, finite: Tensor) -> None:
    """Let the average follow this update, the newest of those under way."""
    learner = run.learner
    if learner.step - len(learner.under_way) > learner.skipped:  # it has followed one
        average(learner, run.request.ema, finite)
        return
    count_updates(run)
    if learner.step - learner.skipped == 1:
        begin_average(learner)


def _backward(run: Run) -> Tensor:
    """Gradients of the mean loss over a batch, in passes; returns that loss, on the device.

    Each process makes grad_accum of the passes; after the last, all have the mean over the processes.
    """
    request, model, passes = run.request, run.network, run.request.grad_accum
    part, unet = run.micro_batch, cast(Any, run.network.unet)
    total = torch.zeros((), device=run.device)
    for micro in range(passes):
        number = run.ranks.rank * passes + micro
        first = run.learner.step * request.batch_size + number * part
        torch.manual_seed(seed_of(request.seed, first))  # for the network's dropout
        batch = make_batch(request, run.data, model, first, part, run.device)
        x_t = add_noise(batch.x_0, batch.eps, batch.t, model.schedule)
        target = training_target(batch.x_0, batch.eps, batch.t, model.schedule, model.prediction)
        waits = run.ranks.count > 1 and micro < passes - 1
        with run.ranks.errors(), unet.no_sync() if waits else nullcontext():
            with autocast(run.device, run.precision):
                output = model.network(x_t, batch.t, batch.labels)
            loss = _weighted(run, output.float() - target, batch.t) / passes
            loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    run.ranks.average(total)
    return total


def _weighted(run: Run, difference: Tensor, t: Tensor) -> Tensor:
    error = difference.square().mean(dim=(1, 2, 3))
    weighting = run.request.loss_weighting
    weight = loss_weight(t, run.model.schedule, run.model.prediction, weighting)
    return (weight * error).mean()


def _skip(run: Run) -> None:
    learner = run.learner
    learner.skipped += 1
    learner.skipped_in_a_row += 1
    if learner.skipped_in_a_row > SKIP_LIMIT:
        raise NumericsError(
            f"the gradient was not finite in {learner.skipped_in_a_row} consecutive updates; "
            "the last good state is kept.",
            "Start again with a lower --lr, or with --precision fp32.",
        )
