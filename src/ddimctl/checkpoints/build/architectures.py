"""The networks that `ddimctl train` can start from."""

from pathlib import Path
from typing import Final

from torch import nn

from ddimctl.checkpoints.build.unet_config import check_unet_config
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.untrusted.guards import refusals
from ddimctl.files.untrusted.settings import JsonObject, read_json

# Ho et al. 2020, appendix B, as diffusers' UNet2DModel spells them; tiny and small are ours, for
# CPUs and small images: most of their channels work at low resolution, where arithmetic is cheap.
_PAPER: Final[JsonObject] = {
    "layers_per_block": 2,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
_OURS: Final[JsonObject] = {
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 32,
}

ARCHITECTURES: Final[dict[str, JsonObject]] = {
    "tiny": _OURS | {"block_out_channels": [16, 32, 64, 64], "attention": [2, 3]},
    "small": _OURS | {"block_out_channels": [32, 64, 128, 128], "attention": [2, 3]},
    "cifar10": _PAPER
    | {"block_out_channels": [128, 256, 256, 256], "attention": [1], "dropout": 0.1},
    "celebahq256": _PAPER
    | {"block_out_channels": [128, 128, 256, 256, 512, 512], "attention": [4]},
}


def architecture(
    model: str, sample_shape: tuple[int, int, int], num_class_embeds: int | None = None
) -> JsonObject:
    """The UNet2DModel config of a name in ARCHITECTURES, or of a config.json, for (C, H, W) images.

    num_class_embeds: rows of the class embedding, the null class included; None without classes.
    Raises RequestError when the name is unknown, the file does not fit, or the size does not divide.
    """
    known = ARCHITECTURES.get(model)
    config = _spell_out(known) if known else _read_config(model)
    channels, height, width = sample_shape
    divisor = 2 ** (len(config["block_out_channels"]) - 1)
    if height % divisor or width % divisor:
        raise RequestError(
            f"--model {model} halves images {len(config['block_out_channels']) - 1} times, "
            f"so {height}x{width} does not fit.",
            f"Choose an --image-size divisible by {divisor}.",
        )
    config |= {
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels,
        "num_class_embeds": num_class_embeds,
    }
    return config


def make_unet(config: JsonObject) -> nn.Module:
    """A UNet2DModel with fresh weights. Raises CheckpointError when diffusers refuses the config."""
    from ddimctl.checkpoints.build.diffusers_import import import_unet

    check_unet_config(config, "--model")
    try:
        unet: nn.Module = import_unet()(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the config does not describe a UNet2DModel: {error}") from error
    return unet


def _spell_out(short: JsonObject) -> JsonObject:
    config = {key: value for key, value in short.items() if key != "attention"}
    levels = range(len(config["block_out_channels"]))
    with_attention = short["attention"]
    config["down_block_types"] = [
        "AttnDownBlock2D" if i in with_attention else "DownBlock2D" for i in levels
    ]
    config["up_block_types"] = [
        "AttnUpBlock2D" if i in with_attention else "UpBlock2D" for i in reversed(levels)
    ]
    return config


def _read_config(path: str) -> JsonObject:
    with refusals(f"--model {path}", RequestError):
        try:
            config = read_json(Path(path))
        except FileNotFoundError as error:
            raise RequestError(
                f"--model {path} is neither a file nor one of {', '.join(ARCHITECTURES)}."
            ) from error
    if not isinstance(config.get("block_out_channels"), list):
        raise RequestError(f"--model {path} is not a UNet2DModel config.json.")
    return {key: value for key, value in config.items() if not key.startswith("_")}
