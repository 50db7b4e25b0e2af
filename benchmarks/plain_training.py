"""The training loop that one writes by hand over diffusers' UNet2DModel.

Prints images a second, of each of three twenties of updates. The network is that of
`ddimctl train --model small`: noise from torch's generator, AdamW, gradients clipped, an average of
the weights by a loop over them.
"""

import copy
import time

import torch

from ddimctl.checkpoints.build.architectures import architecture, make_unet
from ddimctl.diffusion.schedules import make_schedule

BATCH, SHAPE = 16, (3, 32, 32)
unet = make_unet(architecture("small", SHAPE)).train()
average = copy.deepcopy(unet)
optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
alpha_bar = make_schedule().alpha_bar.float()


def step() -> None:
    x_0, eps = torch.rand(BATCH, *SHAPE) * 2 - 1, torch.randn(BATCH, *SHAPE)
    t = torch.randint(0, len(alpha_bar), (BATCH,))
    level = alpha_bar[t].view(-1, 1, 1, 1)
    output = unet(level.sqrt() * x_0 + (1 - level).sqrt() * eps, t, return_dict=False)[0]
    torch.nn.functional.mse_loss(output, eps).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for mean, weight in zip(average.parameters(), unet.parameters(), strict=True):
            mean.lerp_(weight, 1e-4)


def seconds(steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - began


seconds(5)
print(*(BATCH * 20 / seconds(20) for _ in range(3)))
