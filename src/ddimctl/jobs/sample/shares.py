"""What the processes of a sampling run tell the first one, and are told by it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.errors import DataError, StorageError
from ddimctl.files.atomic import open_atomic
from ddimctl.files.untrusted.guards import Refused, check_plain_file
from ddimctl.files.untrusted.settings import parse_json
from ddimctl.jobs.sample.batches import Group, Smaller, merged, read_smaller
from ddimctl.runtime.ranks import Ranks


def share_work(
    ranks: Ranks,
    manifest: Path,
    complete: bool,
    smaller: Sequence[Smaller],
    groups: Sequence[Group],
) -> tuple[bool, list[Smaller], list[Group]]:
    """What the first process knows, for all: whether all is there, the batches' sizes, what is missing.

    Raises StorageError in a process that does not see the manifest that the first one wrote.
    """
    told: dict[str, Any] = {
        "complete": complete,
        "smaller": [list(change) for change in smaller],
        "groups": [[group.images.start, group.images.stop, group.size] for group in groups],
    }
    told = ranks.share("missing groups", told)
    if not manifest.exists():
        raise StorageError(
            f"{manifest}, which process 0 wrote, is not there.",
            "All machines must reach the same --out, on a shared disk.",
        )
    return (
        told["complete"],
        [Smaller(*change) for change in told["smaller"]],
        [Group(range(start, stop), size) for start, stop, size in told["groups"]],
    )


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


def write_images(
    path: Path, pixels: Mapping[int, Tensor], frames: Mapping[int, list[Tensor]]
) -> None:
    """Hand over pixels (H, W, C) and the animation's frames by image."""
    with open_atomic(path, sync=False) as file:
        torch.save({"pixels": dict(pixels), "frames": dict(frames)}, file)


def read_images(path: Path) -> tuple[dict[int, Tensor], dict[int, list[Tensor]]]:
    """What write_images wrote."""
    found = torch.load(path, weights_only=True)
    return found["pixels"], found["frames"]
