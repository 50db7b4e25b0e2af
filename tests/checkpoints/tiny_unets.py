"""Tiny diffusers folders, written by diffusers or by hand."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from safetensors.torch import save_file

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def tiny_unet(seed: int = 0, **settings: Any) -> UNet2DModel:
    """A UNet2DModel of 16 x 16 with attention in both halves and fixed random weights."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "block_out_channels": (32, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**(config | settings)).eval()


def old_names(unet: UNet2DModel) -> dict[str, torch.Tensor]:
    """The state dict with the attention names of the google/ddpm-* files."""
    renamed = {}
    for key, tensor in unet.state_dict().items():
        for new, old in OLD_NAMES.items():
            key = key.replace(f".{new}.", f".{old}.")
        renamed[key] = tensor
    return renamed


def write_flat(
    folder: Path, unet: UNet2DModel, weights: dict[str, torch.Tensor] | None = None
) -> Path:
    """config.json and safetensors side by side; weights: instead of the unet's own."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    tensors = {key: tensor.contiguous() for key, tensor in (weights or unet.state_dict()).items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def write_json(path: Path, **values: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def output(network: Any, labels: torch.Tensor | None = None, channels: int = 3) -> torch.Tensor:
    """What a network or a Checkpoint's network gives for a fixed input at t = 0 and t = 700."""
    x = torch.randn(2, channels, 16, 16, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0, 700])
    with torch.inference_mode():
        if hasattr(network, "network"):
            return network.network(x, t, labels)
        return network(x, t, class_labels=labels, return_dict=False)[0]
