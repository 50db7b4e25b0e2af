"""The error of checkpoints on images that they were not trained on, by class.

    python benchmarks/held_out_error.py runs/held-out bundled other-run/checkpoint

The mean squared error of the predicted x_0 (images in [-1, 1]), averaged over 20 timesteps with
weight min(alpha_bar / (1 - alpha_bar), 5). All checkpoints get the same images and the same noise.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.files.dataset.datasets import Dataset, load_dataset
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.requests import CheckpointOptions

BATCH = 60
LIMIT = 5.0  # of the weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="class folders of images")
    parser.add_argument("checkpoints", nargs="+", help="bundled, folders, files")
    parser.add_argument("--per-class", type=int, default=60, help="images of each class (60)")
    options = parser.parse_args()
    data = load_dataset(options.data, class_conditional=True)
    means = []
    for name in options.checkpoints:
        checkpoint = open_checkpoint(CheckpointOptions(ckpt=name), {}, torch.device("cpu"), "fp32")
        errors = errors_by_class(checkpoint, data, options.per_class)
        means.append(sum(errors) / len(errors))
        shown = ", ".join(f"{c} {e:.4f}" for c, e in zip(data.class_names, errors, strict=True))
        print(
            f"{name}: {means[-1]:.4f} ({shown}); {means[-1] / means[0]:.3f} of the first",
            flush=True,
        )


def first_of_each_class(data: Dataset, count: int) -> torch.Tensor:
    """Indices of the first `count` images of every class, class by class."""
    assert data.labels is not None
    return torch.cat(
        [(data.labels == c).nonzero().flatten()[:count] for c in range(len(data.class_names))]
    )


@torch.inference_mode()
def errors_by_class(checkpoint: Checkpoint, data: Dataset, per_class: int) -> Sequence[float]:
    """The weighted error of each class, averaged over its images and the timesteps."""
    assert data.labels is not None
    chosen = first_of_each_class(data, per_class)
    x_0 = data.pixels[chosen].permute(0, 3, 1, 2).float() / 127.5 - 1
    eps = seeded_noise(range(len(chosen)), checkpoint.sample_shape)
    labels = data.labels[chosen]
    denoiser = make_denoiser(checkpoint)
    T = checkpoint.schedule.num_train_timesteps
    total = torch.zeros(len(chosen))
    timesteps = range(T // 40, T, T // 20)
    for t in timesteps:
        alpha_bar = checkpoint.schedule.at(torch.tensor([t]))[0]
        weight = min(float(alpha_bar / (1 - alpha_bar)), LIMIT)
        x_t = (alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps).float()
        for i in range(0, len(chosen), BATCH):
            part = slice(i, i + BATCH)
            found = denoiser(x_t[part], torch.full((len(x_t[part]),), t), labels[part]).x_0
            total[part] += weight * (found - x_0[part]).square().mean((1, 2, 3)) / len(timesteps)
    return [float(total[labels == c].mean()) for c in range(len(data.class_names))]


if __name__ == "__main__":
    main()
