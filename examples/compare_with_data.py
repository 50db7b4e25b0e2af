"""Samples beside the images they were learned from: does the checkpoint copy?

    python examples/compare_with_data.py DATA RUN OUT [HELD_OUT]

DATA: the training images.  RUN: a folder of `ddimctl sample`.  OUT: where to write nearest.png
(pairs: a sample and its nearest image of DATA).  HELD_OUT: images of the same kind that were not
trained on, whose distances to DATA are those of a model that copies nothing.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from ddimctl.files.atomic import open_atomic
from ddimctl.files.dataset.datasets import load_dataset
from ddimctl.files.pictures.grids import make_grid
from ddimctl.files.pictures.images import image_pixels, read_image

CHUNK = 2000


def nearest(images: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image: the root mean square difference, in [0, 1], to the nearest one, and its index.

    images, data: (N, H, W, C), (M, H, W, C), uint8; returned: (N,), (N,).
    """
    flat = images.flatten(1).float() / 255
    distances = torch.cat(
        [torch.cdist(flat, part.flatten(1).float() / 255) for part in data.split(CHUNK)], dim=1
    )
    found = (distances / flat.shape[1] ** 0.5).min(dim=1)
    return found.values, found.indices


def read_run(run: Path) -> Tensor:
    """The images (N, H, W, C) of a run, in the order of their seeds."""
    paths = sorted((run / "images").glob("*.png"))
    return torch.stack([image_pixels(read_image(path, 3)) for path in paths])


def main() -> None:
    source, run, out, *held_out = map(Path, sys.argv[1:])
    data = load_dataset(source).pixels
    samples = read_run(run)
    distances, indices = nearest(samples, data)
    pairs = torch.stack((samples, data[indices]), dim=1).flatten(0, 1)
    with open_atomic(out / "nearest.png") as file:
        make_grid(pairs, columns=16, scale=2).save(file, "PNG")
    show("samples", distances)
    for folder in held_out:
        show("held-out images", nearest(load_dataset(folder).pixels, data)[0])


def show(what: str, distances: Tensor) -> None:
    print(
        f"nearest image of {len(distances)} {what}: root mean square difference in [0, 1] "
        f"{distances.min():.3f} (smallest), {distances.median():.3f} (median)"
    )


if __name__ == "__main__":
    main()
