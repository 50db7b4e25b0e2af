"""What a user of diffusers would write: a checkpoint folder in, N images out, 20 steps of DDIM.

With a fourth argument so many batches of N.
"""

import sys
from pathlib import Path

import torch
from diffusers import DDIMPipeline

folder, count, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
pipeline = DDIMPipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
out.mkdir(parents=True, exist_ok=True)
for batch in range(int(sys.argv[4]) if len(sys.argv) > 4 else 1):
    images = pipeline(
        batch_size=count,
        generator=torch.Generator().manual_seed(batch),
        num_inference_steps=20,
    ).images
    for index, image in enumerate(images):
        image.save(out / f"{batch * count + index:06d}.png")
