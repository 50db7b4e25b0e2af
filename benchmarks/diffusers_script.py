"""What a user of diffusers would write: a checkpoint folder in, N pictures out, 20 steps of DDIM."""

import sys
from pathlib import Path

import torch
from diffusers import DDIMPipeline

folder, count, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
pipeline = DDIMPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(
    batch_size=count,
    generator=torch.Generator().manual_seed(0),
    num_inference_steps=20,
).images
out.mkdir(parents=True, exist_ok=True)
for index, image in enumerate(images):
    image.save(out / f"{index:06d}.png")
