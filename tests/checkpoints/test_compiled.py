"""Converted networks compile to one graph each, what no config of diffusers says included."""

from pathlib import Path
from typing import Any

import peer_files
import pytest
import torch

from ddimctl.api.sampling import sample
from ddimctl.checkpoints import load_checkpoint
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.runtime.device import prepare_for_inference

UNUSUAL = {
    "class_cond": True,
    "learn_sigma": True,
    "rescale_timesteps": True,
    "diffusion_steps": 100,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "use_new_attention_order": True,
}


@pytest.mark.parametrize(
    ("family", "changed"), [("ermongroup", {}), ("openai", {}), ("openai", UNUSUAL)]
)
def test_one_graph_for_all_steps(tmp_path: Path, family: str, changed: dict[str, Any]) -> None:
    from torch._dynamo.testing import CompileCounter

    peer = getattr(peer_files, family)(tmp_path, **changed)
    checkpoint = load_checkpoint(peer.path)
    prepare_for_inference(checkpoint.unet, compiled=True)
    x_T = seeded_noise(range(2), checkpoint.sample_shape)
    labels = torch.tensor([1, 4]) if checkpoint.num_classes else None
    tau = [0, 40, 99]
    eager = sample(checkpoint, x_T, timesteps=tau, labels=labels)
    torch._dynamo.reset()
    counter = CompileCounter()
    checkpoint.unet.compile(backend=counter, fullgraph=True, dynamic=False)
    try:
        assert torch.equal(sample(checkpoint, x_T, timesteps=tau, labels=labels), eager)
        sample(checkpoint, x_T, timesteps=tau[1:], labels=labels)
        assert counter.frame_count == 1
    finally:
        torch._dynamo.reset()
