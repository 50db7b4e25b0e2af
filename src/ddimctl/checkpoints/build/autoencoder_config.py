"""The settings of a stranger's autoencoder, checked before a network is made of them."""

from collections.abc import Mapping
from typing import Any, Final

from ddimctl.checkpoints.build.rules import (
    CHANNELS,
    FLAG,
    TEXT,
    Rule,
    check_rules,
    each,
    either,
    one_of,
    or_none,
    real,
    whole,
)
from ddimctl.errors import CheckpointError

AUTOENCODERS: Final = {
    "AutoencoderKL": "AutoencoderKL",
    "FlaxAutoencoderKL": "AutoencoderKL",
    "VQModel": "VQModel",
}
"""diffusers' classes that can be run, and those that run them."""

_NORMALISED: Final = "its latents are normalised by channel (latents_mean, latents_std)"

_RULES: Final[dict[str, Rule]] = {
    "in_channels": whole(1, 4),
    "out_channels": whole(1, 4),
    "down_block_types": each(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    "up_block_types": each(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    "block_out_channels": each(CHANNELS),
    "layers_per_block": whole(1, 16),
    "act_fn": TEXT,
    "latent_channels": whole(1, 1024),
    "norm_num_groups": CHANNELS,
    "sample_size": either(CHANNELS, each(CHANNELS)),
    "scaling_factor": real(1e-6, 1e6),
    "shift_factor": or_none(real(-1e6, 1e6)),
    "use_quant_conv": FLAG,
    "use_post_quant_conv": FLAG,
    "mid_block_add_attention": FLAG,
    "num_vq_embeddings": whole(1, 2**20),
    "vq_embed_dim": or_none(whole(1, 2**16)),
    "norm_type": one_of("group"),
}


def check_autoencoder_config(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for an autoencoder that cannot be run, or settings that none has."""
    kind = config.get("_class_name")
    if kind not in AUTOENCODERS:
        raise CheckpointError(
            f"{where}: the autoencoder is a {kind!s:.60}, which cannot be run.",
            f"Known are {', '.join(AUTOENCODERS)}; name another one with --vae.",
        )
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise CheckpointError(f"{where} ({kind}) cannot be used: {_NORMALISED}.")
    check_rules(config, _RULES, where)
    if config.get("in_channels", 3) != config.get("out_channels", 3):
        raise CheckpointError(
            f"{where}: {config.get('in_channels')} channels in and {config.get('out_channels')} out."
        )
