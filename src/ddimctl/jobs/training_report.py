"""What a training run shows of itself: held-out loss, sample grids, the loss curve, the checkpoint."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, checkpoint_files
from ddimctl.diffusion import noise
from ddimctl.diffusion.objective import add_noise, training_target
from ddimctl.diffusion.sampling import sample
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.files.atomic import open_atomic, write_bytes
from ddimctl.files.datasets import Dataset, gather
from ddimctl.files.grids import make_grid
from ddimctl.files.images import to_uint8
from ddimctl.files.plots import line_plot
from ddimctl.jobs.training_request import TrainRequest
from ddimctl.jobs.training_state import Learner
from ddimctl.jobs.training_update import learning_rate

EVALUATED = 256  # pictures; enough for two digits of the loss
SAMPLES, SAMPLE_STEPS = 32, 20
_BATCH = 64
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def add_record(
    request: TrainRequest, learner: Learner, rate: float, seconds: float
) -> dict[str, str]:
    """Add a record to the metrics; what of it to show."""
    loss = learner.loss_sum / learner.loss_count if learner.loss_count else math.nan
    learner.loss_sum, learner.loss_count = 0.0, 0
    learner.metrics.append(
        {
            "step": learner.step,
            "loss": loss if math.isfinite(loss) else None,
            "lr": learning_rate(request, learner.step - 1),
            "skipped": learner.skipped,
            "images_per_second": round(rate, 2),
            "seconds": round(seconds, 2),
        }
    )
    return {"loss": f"{loss:.4f}", "images/s": f"{rate:.0f}"}


def add_evaluation(
    learner: Learner, data: Dataset, averaged: Checkpoint, device: torch.device
) -> None:
    """Add the EMA network's loss on pictures it learns from and on those held out to the metrics."""
    if not learner.metrics or learner.metrics[-1]["step"] != learner.step:
        learner.metrics.append({"step": learner.step})
    learner.metrics[-1]["train_loss"] = evaluate_loss(averaged, data, data.training, device)
    if len(data.held_out):
        learner.metrics[-1]["holdout_loss"] = evaluate_loss(averaged, data, data.held_out, device)


@torch.inference_mode()
def evaluate_loss(
    checkpoint: Checkpoint, data: Dataset, indices: Tensor, device: torch.device
) -> float:
    """L_simple of the checkpoint over up to 256 of the pictures, with t spread evenly over 0 ... T-1.

    Pictures, timesteps and noise are the same at every call, so that a curve of it is smooth.
    """
    order = noise.hash_keys(torch.arange(len(indices))).argsort()  # a folder's first are alike
    chosen = indices[order[:EVALUATED]]
    schedule, total = checkpoint.schedule, 0.0
    for start in range(0, len(chosen), _BATCH):
        batch = chosen[start : start + _BATCH]
        place = torch.arange(start, start + len(batch))
        t = (place * schedule.num_train_timesteps // len(chosen)).to(device)
        x_0 = gather(data.pixels, batch, None, device)
        eps = noise.seeded_noise(place, x_0.shape[1:], device=device)
        labels = None if data.labels is None else data.labels[batch].to(device)
        x_t = add_noise(x_0, eps, t, schedule)
        output = checkpoint.network(x_t, t, labels)
        target = training_target(x_0, eps, t, schedule, checkpoint.prediction)
        total += float((output - target).square().mean(dim=(1, 2, 3)).sum())
    return total / len(chosen)


def write_samples(out: Path, checkpoint: Checkpoint, step: int, device: torch.device) -> Path:
    """RUN/samples/step-NNNNNNNN.png: the same 32 seeds each time, DDIM with 20 steps."""
    labels, names = None, None
    if checkpoint.num_classes:
        labels = torch.arange(SAMPLES, device=device) * checkpoint.num_classes // SAMPLES
        names = [checkpoint.class_name(int(label)) for label in labels]
    x_T = noise.seeded_noise(range(SAMPLES), checkpoint.sample_shape, device=device)
    tau = timesteps("linspace", SAMPLE_STEPS, checkpoint.schedule.num_train_timesteps)
    x_0 = sample(checkpoint, x_T, timesteps=tau, labels=labels)
    path = out / "samples" / f"step-{step:08d}.png"
    with open_atomic(path) as file:
        make_grid(to_uint8(x_0.cpu()), labels=names).save(file, "PNG")
    return path


def write_checkpoint(
    out: Path, checkpoint: Checkpoint, training: dict[str, Any], weights_dtype: str
) -> None:
    """RUN/checkpoint: a diffusers folder with the EMA weights."""
    files = checkpoint_files(checkpoint, training=training, dtype=_DTYPES[weights_dtype])
    for name, content in files.items():
        write_bytes(out / "checkpoint" / name, content)


def write_report(out: Path, metrics: list[dict[str, Any]]) -> None:
    """RUN/metrics.jsonl and RUN/loss.png."""
    lines = (json.dumps(record, allow_nan=False) + "\n" for record in metrics)
    write_bytes(out / "metrics.jsonl", "".join(lines).encode())
    names = {"loss": "loss", "train_loss": "EMA, training", "holdout_loss": "EMA, held out"}
    series = {
        title: [(record["step"], record[key]) for record in metrics if record.get(key) is not None]
        for key, title in names.items()
    }
    with open_atomic(out / "loss.png") as file:
        plot = line_plot(
            {title: points for title, points in series.items() if points}, "step", "loss"
        )
        plot.save(file, "PNG")
