"""Networks built from untrusted settings, and what their configs cannot say about them."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ddimctl.checkpoints.build.autoencoder_config import AUTOENCODERS, check_autoencoder_config
from ddimctl.checkpoints.build.diffusers_import import import_network, import_parts
from ddimctl.checkpoints.build.lucidrains_unet import CLASS_NAME as LUCIDRAINS
from ddimctl.checkpoints.build.lucidrains_unet import LucidrainsUNet, read_config
from ddimctl.checkpoints.build.unet_config import check_condition_config, check_unet_config
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.settings import JsonObject

_MOST_PARAMETERS: Final = 20_000_000_000


@dataclass(frozen=True)
class UNetPatches:
    """What a converted network has that UNet2DModel's config has no word for.

    heads:           of every attention; None leaves attention_head_dim to decide.
    heads_up:        of those on the way up, where they differ.
    stem_channels:   the width of the first convolution, where it is not the first level's.
    time_channels:   the width of the sinusoidal embedding, where it is not the first level's.
    resample_conv:   False: levels are pooled and repeated without convolutions.
    timestep_scale:  timesteps are multiplied by it before they are embedded (1000 / T of networks
                     trained with rescale_timesteps).
    """

    heads: int | None = None
    heads_up: int | None = None
    stem_channels: int | None = None
    time_channels: int | None = None
    resample_conv: bool = True
    timestep_scale: float = 1.0

    def settings(self) -> JsonObject:
        """Those that are not as usual, as plain values."""
        usual = asdict(UNetPatches())
        return {key: value for key, value in asdict(self).items() if value != usual[key]}


class Built(NamedTuple):
    """unet: without weights. config: its full settings. unknown: those that it does not know."""

    unet: nn.Module
    config: Any
    unknown: tuple[str, ...]


def build_unet(config: Mapping[str, Any], patches: UNetPatches, where: str) -> Built:
    """A UNet2DModel, or a UNet2DConditionModel where its _class_name says so, on the meta device,
    where it takes no memory.

    where: the settings' origin, for messages. Raises CheckpointError for settings that describe
    no network, or one beyond every measure.
    """
    if config.get("_class_name") == LUCIDRAINS:
        with torch.device("meta"), _Uninitialised(), _described(where):
            network = LucidrainsUNet(read_config(config))
        return _measured(network, (), where)
    if takes_embeddings(config):
        return _build("UNet2DConditionModel", config, where, check_condition_config)
    built = _build("UNet2DModel", config, where, check_unet_config)
    with torch.device("meta"), _Uninitialised(), _described(where):
        _apply_patches(built.unet, patches)
    return built


def takes_embeddings(config: Mapping[str, Any]) -> bool:
    """Whether the UNet of these settings attends to embeddings (of text, or of a class)."""
    return str(config.get("_class_name")).endswith("UNet2DConditionModel")


def build_autoencoder(config: Mapping[str, Any], where: str) -> Built:
    """The same for an AutoencoderKL or VQModel."""
    check_autoencoder_config(config, where)
    name = AUTOENCODERS[config["_class_name"]]
    return _build(name, config, where, check_autoencoder_config)


def _build(
    name: str,
    config: Mapping[str, Any],
    where: str,
    check: Callable[[Mapping[str, Any], str], None],
) -> Built:
    network_class = import_network(name)
    known = inspect.signature(network_class.__init__).parameters
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    settings = {key: value for key, value in given.items() if key in known}
    check(config, where)
    with torch.device("meta"), _Uninitialised(), _described(where):
        network: nn.Module = network_class(**settings)
    return _measured(network, tuple(sorted(given.keys() - known.keys())), where)


def _measured(network: nn.Module, unknown: tuple[str, ...], where: str) -> Built:
    count = sum(weight.numel() for weight in network.parameters())
    if count > _MOST_PARAMETERS:
        raise CheckpointError(f"{where} describes a network of {count:.1e} parameters.")
    full: Any = network.config
    return Built(network, full, unknown)


@contextmanager
def _described(where: str) -> Iterator[None]:
    """Within, what diffusers raises on its settings is a CheckpointError."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{where} does not describe a network: {reason}") from error
    except ArithmeticError as error:
        raise CheckpointError(f"{where} does not describe a network: a width is 0.") from error


class _Uninitialised(TorchFunctionMode):
    """Within, new layers keep the weights that they were made with: others take their place.

    On the meta device initialising one has no effect, but drawing its normal numbers imports
    torch's whole compiler, which takes longer than sampling an image.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def compute_buffers(unet: Any) -> None:
    """Give a network from build_unet the buffers that are computed, not loaded (filter kernels)."""
    if not any(buffer.is_meta for buffer in unet.buffers()):
        return
    computed = dict(type(unet)(**unet.config).named_buffers())
    for name, module in unet.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, key, computed[f"{name}.{key}" if name else key])


def _apply_patches(unet: Any, patches: UNetPatches) -> None:
    """Change the network where its config had no word for what it should be."""
    parts = import_parts()
    if patches.time_channels is not None:
        width = patches.time_channels
        unet.time_proj.num_channels = width
        unet.time_embedding = parts.TimestepEmbedding(
            width, unet.time_embedding.linear_2.out_features
        )
    if patches.stem_channels is not None:
        _widen_stem(unet, patches.stem_channels, parts)
    if not patches.resample_conv:
        for block in unet.down_blocks:
            if block.downsamplers is not None:
                block.downsamplers = nn.ModuleList([parts.Downsample2D(_width(block))])
        for block in unet.up_blocks:
            if block.upsamplers is not None:
                block.upsamplers = nn.ModuleList([parts.Upsample2D(_width(block))])
    for way, attention in _attentions(unet):
        heads = patches.heads_up if way == "up" and patches.heads_up else patches.heads
        if heads is not None:
            if heads < 1 or attention.inner_dim % heads:
                raise ValueError(
                    f"{attention.inner_dim} channels cannot be split into {heads} heads."
                )
            attention.heads = heads
            attention.scale = (attention.inner_dim // heads) ** -0.5


def _widen_stem(unet: Any, width: int, parts: Any) -> None:
    """A first convolution of another width than the first level: it feeds the first and last block."""
    old = unet.conv_in
    unet.conv_in = nn.Conv2d(old.in_channels, width, old.kernel_size, padding=old.padding)
    first, last = unet.down_blocks[0].resnets[0], unet.up_blocks[-1].resnets[-1]
    level = unet.config.block_out_channels[0]
    for blocks, resnet, taken in (
        (unet.down_blocks[0].resnets, first, width),
        (unet.up_blocks[-1].resnets, last, level + width),
    ):
        blocks[-1 if resnet is last else 0] = parts.ResnetBlock2D(
            in_channels=taken,
            out_channels=resnet.out_channels,
            temb_channels=unet.time_embedding.linear_2.out_features,
            eps=unet.config.norm_eps,
            groups=unet.config.norm_num_groups,
            dropout=unet.config.dropout,
            time_embedding_norm=resnet.time_embedding_norm,
            non_linearity=unet.config.act_fn,
        )


def _width(block: Any) -> int:
    return int(block.resnets[-1].out_channels)


def _attentions(unet: Any) -> Iterator[tuple[str, Any]]:
    """Every attention with the way that it is on."""
    for way, blocks in (
        ("down", unet.down_blocks),
        ("middle", [unet.mid_block]),
        ("up", unet.up_blocks),
    ):
        for block in blocks:
            for attention in getattr(block, "attentions", None) or ():
                if attention is not None:
                    yield way, attention
