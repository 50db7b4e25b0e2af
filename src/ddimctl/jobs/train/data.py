"""The images of a training run, and everything random about them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion import noise
from ddimctl.files.dataset.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.jobs.events import Notice, Progress, Report, notify
from ddimctl.jobs.train.request import TrainRequest
from ddimctl.runtime.device import to_training_format
from ddimctl.runtime.transfer import to_device

# what a random number in training is for
_T, _EPS, _FLIP, _LABEL, _DROPOUT = range(5)


class Batch(NamedTuple):
    """x_0, eps: (B, C, H, W), float32.  t: (B,), int64.  labels: (B,), int64, or None."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    labels: Tensor | None


def read_data(request: TrainRequest, check: Callable[[], None], report: Report) -> Dataset:
    """The data set that is asked for, and what to say of it. check may raise to end the reading."""

    def on_progress(done: int, total: int) -> None:
        check()
        report(Progress("reading", done, total, "pictures"))

    data = load_dataset(
        request.data,
        image_size=request.image_size,
        channels=request.channels,
        background=request.background,
        class_conditional=request.class_conditional,
        holdout=request.holdout,
        strict=request.strict,
        on_progress=on_progress,
    )
    if data.skipped:
        named = "; ".join(f"{name}: {reason}" for name, reason in data.skipped[:5])
        more = f"; and {len(data.skipped) - 5} more" if len(data.skipped) > 5 else ""
        report(Notice(f"{len(data.skipped)} unreadable images left out ({named}{more})."))
    notify(report, data.notes)
    kept = f", {len(data.held_out)} held out" if len(data.held_out) else ""
    classes = f", {len(data.class_names)} classes" if data.class_names else ""
    report(Notice(f"{len(data.training)} training images{kept}{classes}."))
    return data


def make_batch(
    request: TrainRequest,
    data: Dataset,
    model: Checkpoint,
    first: int,
    count: int,
    device: torch.device,
) -> Batch:
    """Images first ... first + count - 1 of the run, each random as (seed, its number) decides."""
    indices = data.training[sample_indices(request.seed, first, count, len(data.training))]
    keys = noise.hash_keys(torch.arange(first, first + count), request.seed)
    flips = noise.uniform(noise.hash_keys(keys, _FLIP)) < 0.5 if request.flip else None
    labels = None
    if data.labels is not None:
        labels = data.labels[indices]
        if model.null_class is not None:
            dropped = noise.uniform(noise.hash_keys(keys, _LABEL)) < request.label_dropout
            labels = labels.masked_fill(dropped, model.null_class)
        labels = to_device(labels, device)
    x_0 = to_training_format(gather(data.pixels, indices, flips, device))
    keys = to_device(keys, device)
    t = noise.uniform_integers(noise.hash_keys(keys, _T), model.schedule.num_train_timesteps)
    eps = noise.normal(noise.hash_keys(keys, _EPS), x_0.shape[1:])
    return Batch(x_0, eps, t, labels)


def seed_of(seed: int, index: int) -> int:
    """The seed of torch's own generator for the pass that begins with that image of the run.

    What modules draw, such as dropout, comes from there; index -1 is for fresh weights.
    """
    key = noise.hash_keys(torch.tensor(seed), index, _DROPOUT)
    return int(key) & noise.MAX_SEED
