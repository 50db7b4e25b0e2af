"""The timesteps of --tau auto for the checkpoint in the package: writes the file beside it.

    python examples/bundled_timesteps.py

One probe of 3840 evaluations, then a search for every solver and number of steps; some minutes.
"""

import json

import torch

from ddimctl.checkpoints.load import BUNDLED
from ddimctl.diffusion.multistep import SOLVERS
from ddimctl.diffusion.tau_search import FINE, choose_timesteps
from ddimctl.files.atomic import write_bytes
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.events import ignore
from ddimctl.jobs.requests import CheckpointOptions, SamplerOptions
from ddimctl.jobs.sample.auto_timesteps import BUNDLED_FILE, probe_checkpoint, search_key
from ddimctl.jobs.sample.plan import resolve_sampler

STEPS = range(1, FINE // 2 + 1)

device = torch.device("cpu")
checkpoint = open_checkpoint(CheckpointOptions(ckpt=str(BUNDLED)), {}, device, "fp32")
sampler = resolve_sampler(SamplerOptions(), {}, checkpoint)
shape = checkpoint.sample_shape
probe = probe_checkpoint(sampler, checkpoint, shape, 16, device, ignore)
found: dict[str, dict[str, list[int]]] = {}
for solver in SOLVERS:
    found[solver] = {}
    for steps in STEPS:
        found[solver][str(steps)] = list(
            choose_timesteps(probe, checkpoint.schedule, steps, solver)
        )
        print(solver, steps, *found[solver][str(steps)], flush=True)
lines = [
    f'"{solver}": {{\n'
    + ",\n".join(f'"{steps}": {json.dumps(tau)}' for steps, tau in kinds.items())
    + "\n}"
    for solver, kinds in found.items()
]
key = search_key(sampler, checkpoint, shape)
text = f'{{"key": "{key}",\n"timesteps": {{\n' + ",\n".join(lines) + "\n}}\n"
write_bytes(BUNDLED_FILE, text.encode())
print(BUNDLED_FILE)
