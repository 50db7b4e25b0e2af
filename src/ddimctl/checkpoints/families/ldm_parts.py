"""The autoencoder and the text encoders of a checkpoint in CompVis' layout, in the words of
AutoencoderKL and of transformers."""

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from ddimctl.checkpoints.families.common import Flags, Names, Network, side, wrong
from ddimctl.checkpoints.families.ldm_unet import count, groups, undetermined
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.settings import JsonObject

VAE_PREFIX: Final = "first_stage_model."
VAE_MARK: Final = "decoder.conv_in.weight"

_VAE_LEAVES: Final = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
_TEXT: Final = "text_model."
_LAYERS: Final = f"{_TEXT}encoder.layers."
_HEAD_CHANNELS: Final = 64  # of every CLIP that was published
# OpenCLIP -> transformers, for whole weights, and for what a layer consists of.
_OPEN_CLIP: Final = {
    "positional_embedding": f"{_TEXT}embeddings.position_embedding.weight",
    "token_embedding.weight": f"{_TEXT}embeddings.token_embedding.weight",
    "ln_final.weight": f"{_TEXT}final_layer_norm.weight",
    "ln_final.bias": f"{_TEXT}final_layer_norm.bias",
}
_OPEN_CLIP_LEAVES: Final = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def convert_vae(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any], scaling_factor: float
) -> Network:
    """The AutoencoderKL of weights without VAE_PREFIX; those of its training's loss are left out.

    settings: vae_norm_num_groups, where it is known. Raises as convert_unet.
    """
    if "quantize.embedding.weight" in weights:
        raise CheckpointError(
            f"{flags.file} has a VQ autoencoder, which is not read from single files.",
            "Pass the diffusers folder of this checkpoint.",
        )
    if VAE_MARK not in weights:
        raise CheckpointError(
            f"{flags.file} has no autoencoder (no {VAE_PREFIX}{VAE_MARK}).",
            "Pass the whole checkpoint, which has one.",
        )
    widths = tuple(
        side(weights, f"encoder.down.{i}.block.0.conv1.weight", 0, flags)
        for i in range(count(weights, r"encoder\.down\.(\d{1,2})\."))
    )
    layers = count(weights, r"encoder\.down\.0\.block\.(\d{1,2})\.")
    names = _vae_names(len(widths), layers)
    config = {
        "_class_name": "AutoencoderKL",
        "in_channels": side(weights, "encoder.conv_in.weight", 1, flags),
        "out_channels": side(weights, "decoder.conv_out.weight", 0, flags),
        "latent_channels": side(weights, VAE_MARK, 1, flags),
        "block_out_channels": list(widths),
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "norm_num_groups": groups(flags, settings, "vae_norm_num_groups", widths),
        "scaling_factor": scaling_factor,
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }
    found = {
        names.of(key): _as_linear(tensor) if ".attn_1." in key else tensor
        for key, tensor in weights.items()
        if not key.startswith(("loss.", "model_ema."))
    }
    back = names.inverted()
    return Network(config, found, lambda key: VAE_PREFIX + back.of(key))


def _vae_names(levels: int, layers: int) -> Names:
    blocks = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half, way in (("encoder", "down"), ("decoder", "up")):
        for name in ("conv_in", "conv_out"):
            blocks[f"{half}.{name}"] = f"{half}.{name}"
        blocks[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        blocks[f"{half}.mid.attn_1"] = f"{half}.mid_block.attentions.0"
        for j in (1, 2):
            blocks[f"{half}.mid.block_{j}"] = f"{half}.mid_block.resnets.{j - 1}"
        for i in range(levels):
            source = f"{half}.{way}.{i}"
            ours = f"{half}.{way}_blocks.{i if way == 'down' else levels - 1 - i}"
            for j in range(layers + 1):
                blocks[f"{source}.block.{j}"] = f"{ours}.resnets.{j}"
            blocks[f"{source}.{way}sample.conv"] = f"{ours}.{way}samplers.0.conv"
    return Names(blocks, _VAE_LEAVES)


def _as_linear(tensor: Tensor) -> Tensor:
    """The weight of a 1 x 1 convolution, which diffusers has as a linear layer's."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def convert_clip(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any]
) -> Network:
    """The CLIPTextModel of weights by transformers' names (with or without `text_model.`).

    settings: text_num_heads, where it is known. Raises as convert_unet.
    """
    found = {
        key if key.startswith(_TEXT) else _TEXT + key: tensor
        for key, tensor in weights.items()
        if not key.endswith("position_ids")
    }
    return Network(_text_config(found, flags, settings, "quick_gelu"), found)


def convert_open_clip(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any], *, projected: bool
) -> Network:
    """The text encoder of OpenCLIP's weights: with its projection, whole (SDXL's second), else
    without, and without its last layer, which Stable Diffusion 2 does not run.

    settings: text_num_heads and text_layers, where they are known. Raises as convert_unet.
    """
    there = count(weights, r"transformer\.resblocks\.(\d{1,3})\.")
    usual = there if projected or there == 23 else there - 1  # some files have dropped it already
    layers = usual if projected else settings.get("text_layers", usual)
    found: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        if key in _OPEN_CLIP:
            found[_OPEN_CLIP[key]] = tensor
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d{1,3})\.(.+)", key):
            if int(match[1]) < layers:
                found |= _layer_weight(f"{_LAYERS}{match[1]}.", match[2], tensor, key, flags)
        elif projected and key == "text_projection":
            found["text_projection.weight"] = tensor.T.contiguous()
        elif projected and key == "text_projection.weight":
            found[key] = tensor
    config = _text_config(found, flags, settings, "gelu")
    if projected:
        width = side(found, "text_projection.weight", 0, flags)
        config |= {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": width}
    return Network(config, found)


def _layer_weight(
    ours: str, leaf: str, tensor: Tensor, key: str, flags: Flags
) -> dict[str, Tensor]:
    if leaf in ("attn.in_proj_weight", "attn.in_proj_bias"):
        if not len(tensor.shape) or tensor.shape[0] % 3:
            shape = tuple(tensor.shape)
            raise CheckpointError(f"{flags.file} is damaged: {key} has the shape {shape}.")
        kind = leaf.rpartition("_")[2]
        parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
        return {f"{ours}self_attn.{name}.{kind}": part for name, part in parts}
    module, _, kind = leaf.rpartition(".")
    return {f"{ours}{_OPEN_CLIP_LEAVES.get(module, module)}.{kind}": tensor}


def _text_config(
    weights: Mapping[str, Tensor], flags: Flags, settings: Mapping[str, Any], act: str
) -> JsonObject:
    embeddings = f"{_TEXT}embeddings"
    width = side(weights, f"{embeddings}.token_embedding.weight", 1, flags)
    heads = settings.get("text_num_heads", width // _HEAD_CHANNELS)
    if heads < 1 or width % heads:
        if "text_num_heads" not in settings:
            raise undetermined(flags, "text_num_heads")
        cause = f"{width} channels of attention cannot be split into {heads} heads."
        raise wrong(flags, "text_num_heads", cause)
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": act,
        "hidden_size": width,
        "intermediate_size": side(weights, f"{_LAYERS}0.mlp.fc1.weight", 0, flags),
        "num_hidden_layers": count(weights, re.escape(_LAYERS) + r"(\d{1,3})\."),
        "num_attention_heads": heads,
        "max_position_embeddings": side(
            weights, f"{embeddings}.position_embedding.weight", 0, flags
        ),
        "vocab_size": side(weights, f"{embeddings}.token_embedding.weight", 0, flags),
        "layer_norm_eps": 1e-5,
        "projection_dim": width,
        "bos_token_id": 0,
        "eos_token_id": 2,  # in transformers: the largest id of a row is its end
        "pad_token_id": 1,
    }
