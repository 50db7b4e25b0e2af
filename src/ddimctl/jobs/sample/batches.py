"""Batches: how large they are, and which images are in each, also after memory ran out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, DeviceError
from ddimctl.files.untrusted.guards import Refused, available_memory, check_plain_file
from ddimctl.files.untrusted.settings import parse_json
from ddimctl.runtime.device import is_out_of_memory
from ddimctl.runtime.distributed import number_in

_ENOUGH: Final = {"cpu": 16, "cuda": 256}  # of 32x32: more of them are hardly faster
_MAPS: Final = 26  # working space of an evaluation, in the largest outputs of a layer; as measured


class Smaller(NamedTuple):
    """From image `start` on, groups have `size` images."""

    start: int
    size: int


class Group(NamedTuple):
    """Some images of a plan, by their places, padded to `size` with the last of them."""

    images: range
    size: int


def batch_groups(count: int, batch_size: int, smaller: Sequence[Smaller]) -> Iterator[Group]:
    """All of count images in order, in groups of batch_size and then of the smaller sizes."""
    start, size, changes = 0, batch_size, list(smaller)
    while start < count:
        while changes and changes[0].start <= start:
            size = changes.pop(0).size
        stop = min(start + size, count, changes[0].start if changes else count)
        yield Group(range(start, stop), size)
        start = stop


def dealt(groups: Sequence[Group], rank: int, count: int) -> list[Group]:
    """The share of one of `count` processes: a stretch of the groups, as long as the others'."""
    return list(groups[len(groups) * rank // count : len(groups) * (rank + 1) // count])


def bounded(smaller: Sequence[Smaller], batch_size: int, stop: int) -> list[Smaller]:
    """The same changes with one at image `stop`, where a stretch ends, to the size there is."""
    if any(change.start == stop for change in smaller):
        return list(smaller)
    sizes = [change.size for change in smaller if change.start < stop]
    return sorted([*smaller, Smaller(stop, sizes[-1] if sizes else batch_size)])


def halved(smaller: Sequence[Smaller], group: Group, stop: int | None = None) -> list[Smaller]:
    """The changes of size after this group was too large: it and all that follow have at most half.

    stop: where the stretch of those that follow ends, if not with the last; from there on all
    stays as it was.
    """
    start, half = group.images.start, group.size // 2
    before = [change for change in smaller if change.start < start]
    after = [change for change in smaller if change.start > start]
    inside = [change for change in after if stop is None or change.start < stop]
    small = [change for change in inside if change.size < half]
    return [*before, Smaller(start, half), *small, *after[len(inside) :]]


def merged(smaller: Sequence[Smaller], stretch: Sequence[Smaller]) -> list[Smaller]:
    """The changes with those of a stretch in place of theirs; its last is where it ends."""
    first, last = stretch[0].start, stretch[-1].start
    rest = [change for change in smaller if not first <= change.start < last]
    ends = any(change.start == last for change in rest)
    return sorted([*rest, *stretch[: len(stretch) - ends]])


def with_parts(smaller: Sequence[Smaller], parts: Iterable[Path]) -> list[Smaller]:
    """The changes of size with those that other processes noted. Raises DataError."""
    changes = list(smaller)
    for path in parts:
        try:
            check_plain_file(path)
            part = read_smaller(parse_json(path.read_bytes()))
        except (OSError, Refused):
            part = None
        if not part:
            raise DataError(f"{path} is not a record of ddimctl.", "Begin with --force.")
        changes = merged(changes, part)
    return changes


def read_smaller(found: Any) -> list[Smaller] | None:
    """The changes of size that a manifest records, or None where a stranger wrote nonsense."""
    if not isinstance(found, list):
        return None
    pairs = [tuple(pair) if isinstance(pair, list) else () for pair in found]
    if not all(len(pair) == 2 and all(type(each) is int for each in pair) for pair in pairs):
        return None
    changes = [Smaller(*pair) for pair in pairs]
    starts = [change.start for change in changes]
    in_order = all(a < b for a, b in zip([-1, *starts], starts, strict=False))
    return changes if in_order and all(change.size >= 1 for change in changes) else None


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
    if (codec := checkpoint.codec) is not None:  # which decodes one image at a time
        free -= codec.memory(shape[1] * codec.factor, shape[2] * codec.factor)
    room = max(free, 0) // 2 // needed
    return enough if room >= enough else 1 << max(0, room.bit_length() - 1)


@contextmanager
def suppress_out_of_memory(size: int, remedy: str) -> Iterator[None]:
    """End a body for which the device has no memory, so that what follows tries smaller batches.

    Raises DeviceError, with the remedy, where the batch had one image.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if size == 1:
            raise DeviceError(
                "the device is out of memory with one image at a time.", remedy
            ) from error


def bytes_per_image(config: Mapping[str, Any], shape: tuple[int, int, int]) -> int:
    """Memory that a UNet's evaluation in float32 takes for one image (C, H, W), not by much too little.

    What the way down keeps for the way up, and a multiple of the largest output of a layer.
    config: the network's, with block_out_channels and layers_per_block.
    """
    widths: Sequence[int] = config["block_out_channels"]
    layers = config["layers_per_block"]
    layers = layers if isinstance(layers, int) else max(layers)
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
