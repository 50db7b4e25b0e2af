"""Samples beside the images they were learned from: each one's nearest.

usage: python examples/compare_with_data.py DATA RUN OUT
DATA: the training images.  RUN: a folder of `ddimctl sample`.  OUT: where to write
data.png (as many random images of DATA) and nearest.png (pairs: sample, nearest image).
"""

import sys
from pathlib import Path

import torch

from ddimctl.diffusion.noise import hash_keys
from ddimctl.files.atomic import open_atomic
from ddimctl.files.dataset.datasets import load_dataset
from ddimctl.files.pictures.grids import make_grid
from ddimctl.files.pictures.images import image_pixels, read_image

source, run, out = map(Path, sys.argv[1:4])
data = load_dataset(source).pixels
samples = torch.stack(
    [image_pixels(read_image(path, 3)) for path in sorted((run / "images").glob("*.png"))]
)
count = len(samples)

distances = torch.cdist(samples.flatten(1).float() / 255, data.flatten(1).float() / 255)
root_mean_square, nearest = (distances / samples[0].numel() ** 0.5).min(dim=1)
pairs = torch.stack((samples, data[nearest]), dim=1).flatten(0, 1)
chosen = hash_keys(torch.arange(len(data)), 0).argsort()[:count]

for name, pixels in (("data", data[chosen]), ("nearest", pairs)):
    with open_atomic(out / f"{name}.png") as file:
        make_grid(pixels, columns=16, scale=2).save(file, "PNG")
print(
    f"nearest image of {count} samples: root mean square difference in [0, 1] "
    f"{root_mean_square.min():.3f} (smallest), {root_mean_square.median():.3f} (median)"
)
