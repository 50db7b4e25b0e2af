"""One update of a network in training."""

import math

import torch
from torch import Tensor

from ddimctl.diffusion.objective import add_noise, loss_weight, training_target
from ddimctl.errors import NumericsError
from ddimctl.jobs.training_data import make_batch, seed_of
from ddimctl.jobs.training_request import TrainRequest
from ddimctl.jobs.training_run import Run
from ddimctl.runtime.device import autocast

SKIP_LIMIT = 100


def update(run: Run) -> None:
    """One step of AdamW on request.batch_size pictures; none where its gradient is not finite.

    Raises NumericsError when that has happened too often in a row.
    """
    request, learner = run.request, run.learner
    loss = _backward(run)
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(request, learner.step)
    most = request.clip_grad or math.inf
    norm = torch.nn.utils.clip_grad_norm_(learner.unet.parameters(), most)
    learner.step += 1
    if math.isfinite(float(norm)) and math.isfinite(loss):
        learner.skipped_in_a_row = 0
        learner.optimizer.step()
        if run.ranks.first:
            learner.ema.update_parameters(learner.unet)
        learner.loss_sum += loss
        learner.loss_count += 1
    else:
        _skip(run)
    learner.optimizer.zero_grad(set_to_none=True)


def learning_rate(request: TrainRequest, step: int) -> float:
    """The rate of the update that follows that many others."""
    rise = min(1.0, (step + 1) / max(request.warmup, 1))
    if request.lr_decay == "constant":
        return request.lr * rise
    return request.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / request.steps)))


def _backward(run: Run) -> float:
    """Gradients of the mean loss over a batch, in passes; returns that loss.

    Each process makes grad_accum of the passes, and all get the sum.
    """
    request, model = run.request, run.model
    part, passes = run.micro_batch, request.grad_accum * run.ranks.count
    total = torch.zeros((), device=run.device)
    for micro in range(request.grad_accum):
        number = run.ranks.rank * request.grad_accum + micro
        first = run.learner.step * request.batch_size + number * part
        torch.manual_seed(seed_of(request.seed, first))  # for the network's dropout
        batch = make_batch(request, run.data, model, first, part, run.device)
        x_t = add_noise(batch.x_0, batch.eps, batch.t, model.schedule)
        target = training_target(batch.x_0, batch.eps, batch.t, model.schedule, model.prediction)
        with autocast(run.device, run.precision):
            output = model.network(x_t, batch.t, batch.labels)
        loss = _weighted(run, output.float() - target, batch.t) / passes
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    gradients = [weights.grad for weights in run.learner.unet.parameters()]
    run.ranks.sum([total, *(gradient for gradient in gradients if gradient is not None)])
    return float(total)


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
            f"the gradient was not finite in {learner.skipped_in_a_row} updates in a row; "
            "the last good state is kept.",
            "Begin again with a lower --lr, or with --precision fp32.",
        )
