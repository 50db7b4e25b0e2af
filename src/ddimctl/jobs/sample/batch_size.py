"""How many images a network takes at a time where the request does not say."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.files.untrusted.guards import available_memory
from ddimctl.runtime.distributed import number_in

_ENOUGH: Final = {"cpu": 16, "cuda": 256}  # of 32x32: more of them are hardly faster
_MAPS: Final = 26  # working space of an evaluation, in the largest outputs of a layer; as measured


def default_batch_size(
    checkpoint: Checkpoint, shape: tuple[int, int, int], device: torch.device, guidance: float
) -> int:
    """16 images of 32x32 on a CPU, 256 on CUDA, fewer of larger ones by area; at least 1.

    Where so many would take more than half of the free memory (which the processes of a machine
    share), the greatest power of two that does not. shape: (C, H, W).
    """
    area = shape[1] * shape[2]
    enough = max(1, min(_ENOUGH[device.type], _ENOUGH[device.type] * 32 * 32 // area))
    free = _free_memory(device)
    if free is None:
        return enough
    unet: Any = checkpoint.unet
    needed = bytes_per_image(unet.config, shape) * (1 if guidance == 1 else 2)
    room = free // 2 // needed
    return enough if room >= enough else 1 << max(0, room.bit_length() - 1)


def bytes_per_image(config: Mapping[str, Any], shape: tuple[int, int, int]) -> int:
    """Memory that a UNet's evaluation in float32 takes for one image (C, H, W), not by much too little.

    What the way down keeps for the way up, and a multiple of the largest output of a layer.
    config: the network's, with block_out_channels and layers_per_block.
    """
    widths: Sequence[int] = config["block_out_channels"]
    layers: int = config["layers_per_block"]
    area = shape[1] * shape[2]
    maps = [width * (area >> 2 * level) for level, width in enumerate(widths)]
    kept = maps[0] + layers * sum(maps)
    kept += sum(size // 4 for size in maps[:-1])  # what each level hands down
    return 4 * (kept + _MAPS * max(maps))


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = available_memory()
    return None if available is None else available // number_in("LOCAL_WORLD_SIZE", 1)
