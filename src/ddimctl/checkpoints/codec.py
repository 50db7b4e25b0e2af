"""Between images and the space that a latent network works in: an autoencoder, in float32."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.errors import NumericsError
from ddimctl.files.untrusted.guards import available_memory

SD_SCALE: Final = 0.18215
"""AutoencoderKL's scaling_factor where its file says none."""

_MAPS: Final = 5  # of the largest size, which a decode holds at once
_TILE: Final = 512  # pixels


@dataclass(frozen=True, eq=False)
class Codec:
    """An AutoencoderKL or a VQModel.

    model:    float32, on the device that it works on.
    factor:   how many pixels a side of the latent stands for.
    channels: of the image; latent_channels: of the latent.
    settings: plain values for metadata: class, scaling_factor, shift_factor.
    """

    model: nn.Module
    factor: int
    channels: int
    latent_channels: int
    settings: Mapping[str, Any]

    def encode(self, images: Tensor) -> Tensor:
        """Latents (N, C, h, w), float32, in the network's units, of images (N, channels, H, W) in
        [-1, 1]: of an AutoencoderKL, the mean of the posterior; of a VQModel, before quantising.

        Raises NumericsError where finite images give numbers that are not.
        """
        return self._one_by_one(self._encode, images, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (N, channels, H, W), float32, in [-1, 1] nominal, not clamped, of latents
        (N, C, h, w) in the network's units. One image at a time: the numbers do not depend on N.

        Raises NumericsError where finite latents give numbers that are not.
        """
        return self._one_by_one(self._decode, latents, self.factor)

    def needs_tiles(self, height: int, width: int) -> bool:
        """Whether an image of height x width pixels exceeds the memory that is free, so that it is
        decoded in overlapping tiles, whose seams may show.
        """
        tiles = hasattr(self.model, "tile_latent_min_size") and max(height, width) > _TILE
        free = _free_memory(self._device)
        return tiles and free is not None and self.memory(height, width) > free

    def memory(self, height: int, width: int) -> int:
        """Bytes that decoding one image of height x width pixels takes, about."""
        config: Any = self.model.config
        return _MAPS * height * width * int(config.block_out_channels[:2][-1]) * 4

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _one_by_one(self, work: Any, batch: Tensor, scale: int) -> Tensor:
        height, width = batch.shape[2] * scale, batch.shape[3] * scale
        self._set_tiles(self.needs_tiles(height, width))
        device = self._device
        with torch.no_grad(), ieee_float32(), torch.autocast(device.type, enabled=False):
            made = torch.cat([work(each[None].to(device, torch.float32)) for each in batch])
        if not bool(made.isfinite().all()) and bool(batch.isfinite().all()):
            raise NumericsError(
                f"the autoencoder ({self.settings['class']}) gave values that are not finite.",
                "Pass another one with --vae.",
            )
        return made

    def _set_tiles(self, tiles: bool) -> None:
        model: Any = self.model
        if tiles:
            model.tile_sample_min_size = _TILE
            model.tile_latent_min_size = _TILE // self.factor
        model.use_tiling = tiles

    def _encode(self, image: Tensor) -> Tensor:
        model: Any = self.model
        found = model.encode(image)
        latent: Tensor = found.latents if "latents" in found else found.latent_dist.mean
        return (latent - self._shift) * self._scale

    def _decode(self, latent: Tensor) -> Tensor:
        model: Any = self.model
        image: Tensor = model.decode(latent / self._scale + self._shift)[0]
        return image

    @property
    def _scale(self) -> float:
        return float(self.settings["scaling_factor"])

    @property
    def _shift(self) -> float:
        return float(self.settings["shift_factor"] or 0.0)


def make_codec(model: nn.Module, config: Mapping[str, Any]) -> Codec:
    """The codec of an autoencoder from build_autoencoder, with its weights; config: its file's."""
    full: Any = getattr(model, "config")  # noqa: B009, unknown to nn.Module
    kind = type(model).__name__
    scale = config.get("scaling_factor")
    if scale is None:
        # diffusers takes 0.18215 for a VQModel, too, which spoils CompVis/ldm-celebahq-256
        scale = SD_SCALE if kind == "AutoencoderKL" else 1.0
    return Codec(
        model,
        factor=2 ** (len(full.block_out_channels) - 1),
        channels=full.in_channels,
        latent_channels=full.latent_channels,
        settings={
            "class": kind,
            "scaling_factor": float(scale),
            "shift_factor": config.get("shift_factor"),
        },
    )


def _free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; None if unknown."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    return available_memory()
