"""State dicts in CompVis' layout, made of small random networks."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ddimctl.checkpoints.families.ldm_unet import compvis_names

LATENT = Path(__file__).parents[1] / "data" / "latent"
SINGLE = LATENT / "sd1-single" / "tiny-sd1.safetensors"
SD1 = LATENT / "sd1"
UNET = "model.diffusion_model."
SDXL_TEXT = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")

# As the networks of Stable Diffusion are, but small: 32 groups, linear projections, heads of 64.
_UNET: dict[str, Any] = {
    "sample_size": 96,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 2,
    "use_linear_projection": True,
    "norm_num_groups": 32,
}
SD2_UNET: dict[str, Any] = _UNET | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 64,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 1,
}
SDXL_UNET: dict[str, Any] = _UNET | {
    "sample_size": 128,
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 128,
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": 1,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 48 + 64,
}


def single() -> dict[str, Tensor]:
    """The recorded file of a tiny Stable Diffusion 1."""
    return load_file(SINGLE)


def unet_weights(config: dict[str, Any]) -> dict[str, Tensor]:
    """Random weights of a UNet2DConditionModel, by its own names."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config)
    return {key: torch.randn(tensor.shape) * 0.05 for key, tensor in unet.state_dict().items()}


def compvis_unet(config: dict[str, Any]) -> dict[str, Tensor]:
    """The same with the names that they have in a single file."""
    weights = unet_weights(config)
    names = compvis_names(weights)
    return {UNET + names.of(key): tensor for key, tensor in weights.items()}


def vae() -> dict[str, Tensor]:
    """The recorded file's autoencoder."""
    return {key: t for key, t in single().items() if key.startswith("first_stage_model.")}


def clip(prefix: str, width: int = 64, layers: int = 2) -> dict[str, Tensor]:
    """A random CLIPTextModel."""
    layer = {
        **{f"self_attn.{name}_proj.weight": (width, width) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.bias": (width,) for name in ("q", "k", "v", "out")},
        **{f"layer_norm{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        "mlp.fc1.weight": (96, width),
        "mlp.fc1.bias": (96,),
        "mlp.fc2.weight": (width, 96),
        "mlp.fc2.bias": (width,),
    }
    shapes = {
        "embeddings.token_embedding.weight": (60, width),
        "embeddings.position_embedding.weight": (77, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
        **{f"encoder.layers.{i}.{k}": shape for i in range(layers) for k, shape in layer.items()},
    }
    return {f"{prefix}text_model.{key}": torch.randn(shape) for key, shape in shapes.items()}


def open_clip(prefix: str, width: int = 64, layers: int = 3, pooled: int = 64) -> dict[str, Tensor]:
    """A random text encoder of OpenCLIP."""
    layer = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        **{f"ln_{i}.{kind}": (width,) for i in (1, 2) for kind in ("weight", "bias")},
        "mlp.c_fc.weight": (96, width),
        "mlp.c_fc.bias": (96,),
        "mlp.c_proj.weight": (width, 96),
        "mlp.c_proj.bias": (width,),
    }
    shapes = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (60, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, pooled),
        "logit_scale": (),
        **{
            f"transformer.resblocks.{i}.{key}": shape
            for i in range(layers)
            for key, shape in layer.items()
        },
    }
    return {prefix + key: torch.randn(shape) for key, shape in shapes.items()}


def sd2() -> dict[str, Tensor]:
    """A small Stable Diffusion 2 in one file."""
    return {**compvis_unet(SD2_UNET), **vae(), **open_clip("cond_stage_model.model.")}


def sdxl() -> dict[str, Tensor]:
    """A small SDXL in one file."""
    text = {**clip(SDXL_TEXT[0]), **open_clip(SDXL_TEXT[1])}
    return {**compvis_unet(SDXL_UNET), **vae(), **text}


def config_of(part: str) -> dict[str, Any]:
    """The config of a part of the recorded folder."""
    found: dict[str, Any] = json.loads((SD1 / part / "config.json").read_text(encoding="utf-8"))
    return found
