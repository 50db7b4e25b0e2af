"""What a training run shows of itself: held-out loss, sample grids, the loss curve, the checkpoint."""

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, checkpoint_files
from ddimctl.diffusion import noise
from ddimctl.diffusion.objective import add_noise, training_target
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.files.atomic import open_atomic, write_bytes
from ddimctl.files.dataset.datasets import gather
from ddimctl.files.own_output import remove_files
from ddimctl.files.pictures.grids import make_grid
from ddimctl.files.pictures.images import to_uint8
from ddimctl.files.pictures.plots import Plot, encode_plots
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import JsonObject, read_json
from ddimctl.jobs.train.request import TrainRequest
from ddimctl.jobs.train.run import Run
from ddimctl.jobs.train.state import Learner
from ddimctl.runtime.signals import StopRequest

EVALUATED = 256  # images; enough for two digits of the loss
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
            "lr": request.learning_rate(learner.step - 1),
            "skipped": learner.skipped,
            "images_per_second": round(rate, 2),
            "seconds": round(seconds, 2),
        }
    )
    return {"loss": f"{loss:.4f}", "images/s": f"{rate:.0f}"}


def add_evaluation(run: Run, stop: StopRequest) -> None:
    """Add the EMA network's loss on images it learns from and on those held out to the metrics.

    Nothing is added when a signal comes before the end, or where it has been done.
    """
    learner, data = run.learner, run.data
    if is_evaluated(learner):
        return
    found = {"train_loss": evaluate_loss(run, data.training, stop)}
    if len(data.held_out):
        found["holdout_loss"] = evaluate_loss(run, data.held_out, stop)
    if stop:
        return
    if not learner.metrics or learner.metrics[-1]["step"] != learner.step:
        learner.metrics.append({"step": learner.step})
    learner.metrics[-1] |= found


def is_evaluated(learner: Learner) -> bool:
    """Whether the metrics hold an evaluation of this step."""
    last = learner.metrics[-1] if learner.metrics else {}
    return last.get("step") == learner.step and "train_loss" in last


@torch.inference_mode()
def evaluate_loss(run: Run, indices: Tensor, stop: StopRequest) -> float | None:
    """L_simple of the EMA network over up to 256 of the images, t spread evenly over 0 ... T-1.

    Images, timesteps and noise are the same at every call, so that a curve of it is smooth.
    None where it is not finite, and when a signal came before the end.
    """
    data, device, checkpoint = run.data, run.device, run.averaged
    order = noise.hash_keys(torch.arange(len(indices))).argsort()  # a folder's first are alike
    chosen = indices[order[:EVALUATED]]
    schedule, total = checkpoint.schedule, 0.0
    size = _batch_size(run, _BATCH)
    for start in range(0, len(chosen), size):
        if stop:
            return None
        batch = chosen[start : start + size]
        place = torch.arange(start, start + len(batch))
        t = (place * schedule.num_train_timesteps // len(chosen)).to(device)
        x_0 = gather(data.pixels, batch, None, device)
        eps = noise.seeded_noise(place, x_0.shape[1:], device=device)
        labels = None if data.labels is None else data.labels[batch].to(device)
        x_t = add_noise(x_0, eps, t, schedule)
        output = checkpoint.network(x_t, t, labels)
        target = training_target(x_0, eps, t, schedule, checkpoint.prediction)
        total += float((output - target).square().mean(dim=(1, 2, 3)).sum())
    return total / len(chosen) if math.isfinite(total) else None


def _batch_size(run: Run, most: int) -> int:
    """What fits where a part of a training batch does: no pass back keeps every layer's values."""
    return min(4 * run.micro_batch, most)


@torch.inference_mode()
def write_samples(path: Path, run: Run, stop: StopRequest) -> bool:
    """A grid of the same 32 seeds each time, DDIM with 20 steps; whether no signal cut it short.

    Values that are not finite are drawn as gray and black and white, since training goes on.
    """
    checkpoint, size = run.averaged, _batch_size(run, SAMPLES)
    labels, names = None, None
    if checkpoint.num_classes:
        labels = torch.arange(SAMPLES) * checkpoint.num_classes // SAMPLES
        names = [checkpoint.class_name(label) for label in labels.tolist()]
        labels = labels.to(run.device)
    tau = timesteps("linspace", SAMPLE_STEPS, checkpoint.schedule.num_train_timesteps)
    denoise = make_denoiser(checkpoint, 1.0, "none")
    done = list[Tensor]()
    for start in range(0, SAMPLES, size):
        seeds = range(start, min(start + size, SAMPLES))
        x = noise.seeded_noise(seeds, checkpoint.sample_shape, device=run.device)
        chosen = None if labels is None else labels[seeds.start : seeds.stop]
        for step in trajectory(denoise, x, checkpoint.schedule, tau, labels=chosen):
            if stop:
                return False
            x = step.x
        done.append(to_uint8(x.nan_to_num().cpu()))
    with open_atomic(path) as file:
        make_grid(torch.cat(done), labels=names).save(file, "PNG")
    return True


def write_checkpoint(
    out: Path, checkpoint: Checkpoint, training: JsonObject, weights_dtype: str
) -> None:
    """RUN/checkpoint: a diffusers folder with the EMA weights.

    File by file, so a reader at the same time, or after a kill, may find the configs of this save
    beside the weights of the one before, which they fit. Weights of another run, which they might
    not, go first: until the new ones are there, the folder has none.
    """
    files = checkpoint_files(checkpoint, training=training, dtype=_DTYPES[weights_dtype])
    folder = out / "checkpoint"
    configs = [name for name in files if name.endswith(".json")]
    weights = [name for name in files if name not in configs]
    if not all(_agrees(folder / name, files[name]) for name in configs):
        remove_files(out, [folder / name for name in weights])
    for name in (*configs, *weights):
        write_bytes(folder / name, files[name])


def _agrees(path: Path, content: bytes) -> bool:
    """Whether the file says the same already, but for the record of the training."""
    try:
        found = read_json(path, paths=True)
    except (Refused, OSError):
        return False
    return bool(found | {"training": 0} == json.loads(content) | {"training": 0})


def write_report(out: Path, metrics: list[JsonObject]) -> None:
    """RUN/metrics.jsonl and RUN/loss.png."""
    lines = (json.dumps(record, allow_nan=False) + "\n" for record in metrics)
    write_bytes(out / "metrics.jsonl", "".join(lines).encode())
    names = {"loss": "loss", "train_loss": "EMA, training", "holdout_loss": "EMA, held out"}
    series = {
        title: [(record["step"], record[key]) for record in metrics if record.get(key) is not None]
        for key, title in names.items()
    }
    plot = Plot({title: points for title, points in series.items() if points}, "step", "loss")
    write_bytes(out / "loss.png", encode_plots([plot]))
