"""Safetensors files from strangers, whose header is checked before anything is mapped."""

import json
import math
from pathlib import Path
from typing import Any, Final, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddimctl.errors import CheckpointError, brief

_MAX_HEADER: Final = 4 * 2**20  # bytes; a tensor takes about 120
_MAX_DIMENSIONS: Final = 16
_BYTES: Final = {
    1: "BOOL U8 I8 F8_E4M3 F8_E5M2",
    2: "U16 I16 F16 BF16",
    4: "U32 I32 F32",
    8: "U64 I64 F64",
}
_SIZES: Final = {kind: size for size, kinds in _BYTES.items() for kind in kinds.split()}


def read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    """The tensors by name, on the CPU, mapped from the file. where: the file, for messages.

    Raises CheckpointError where the header does not describe the rest of the file exactly.
    """
    try:
        _check_file(path, where)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{where} is damaged: {error}.", "Get the file again.") from error
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror}.") from error


def _check_file(path: Path, where: str) -> None:
    def damaged(why: str) -> NoReturn:
        raise CheckpointError(f"{where} is damaged: {why}.", "Get the file again.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):  # readers differ in which of the two they take
            damaged("its header names a weight twice")
        return found

    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            damaged("it ends within its header")
        if length > _MAX_HEADER:
            damaged(f"its header is {length:,} bytes long")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        damaged("its header cannot be read")
    if not isinstance(header, dict):
        damaged("its header cannot be read")
    header.pop("__metadata__", None)
    places = sorted(_place(name, entry, damaged) for name, entry in header.items())
    ends = [0, *(end for _, end in places)]
    if [begin for begin, _ in places] != ends[:-1] or ends[-1] != size - 8 - length:
        damaged("its weights have gaps, overlap, or end where the file does not")


def _place(name: str, entry: Any, damaged: Any) -> tuple[int, int]:
    """(begin, end) of a tensor's bytes."""
    if not isinstance(entry, dict):
        damaged(f"{name} is not described")
    kind, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _SIZES:
        damaged(f"{name} has the unknown type {brief(kind)}")
    if not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2:
        damaged(f"{name} has an impossible shape or place")
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * _SIZES[kind] != place[1] - place[0]:
        damaged(f"{name} does not have the size of its shape")
    return place[0], place[1]


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**48 for n in values)
