"""Untrusted safetensors files, whose header is checked before anything is mapped."""

import math
from pathlib import Path
from typing import Any, Final, TypeGuard

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddimctl.errors import brief
from ddimctl.files.untrusted.guards import Refused, damaged, is_utf8, reason
from ddimctl.files.untrusted.settings import parse_json

_MAX_HEADER: Final = 5 * 2**20  # bytes; a tensor takes about 120
_MAX_DIMENSIONS: Final = 16
_BYTES: Final = {
    1: "BOOL U8 I8 F8_E4M3 F8_E5M2",
    2: "U16 I16 F16 BF16",
    4: "U32 I32 F32",
    8: "U64 I64 F64",
}
_SIZES: Final = {kind: size for size, kinds in _BYTES.items() for kind in kinds.split()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, on the CPU, mapped from the file, and the texts in its header.

    Raises Refused where the header does not describe the rest of the file exactly, and OSError.
    """
    if not is_utf8(path):
        raise Refused("cannot be read: its path is not UTF-8.", "Rename the file or its folder.")
    texts = _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError) as error:
        raise damaged(reason(error)) from error
    return tensors, texts


def _check_header(path: Path) -> dict[str, str]:
    """The texts in it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise damaged("it ends within its header")
        if length > _MAX_HEADER:
            raise damaged(f"its header is {length:,} bytes long")
        header = parse_json(file.read(length))
    texts = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise damaged("its header is not one of safetensors")
    places = sorted(_place(brief(name), entry) for name, entry in header.items())
    ends = [0, *(end for _, end in places)]
    if [begin for begin, _ in places] != ends[:-1] or ends[-1] != size - 8 - length:
        raise damaged("its tensors have gaps, overlap, or end where the file does not")
    return texts


def _place(name: str, entry: Any) -> tuple[int, int]:
    """(begin, end) of a tensor's bytes."""
    if not isinstance(entry, dict):
        raise damaged(f"{name} has no description")
    kind, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(kind, str) or kind not in _SIZES:
        raise damaged(f"{name} has the unknown type {brief(kind)}")
    if not _are_sizes(shape) or not _are_sizes(place) or len(place) != 2:
        raise damaged(f"{name} has an invalid shape or offset")
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * _SIZES[kind] != place[1] - place[0]:
        raise damaged(f"the size of {name} does not match its shape")
    return place[0], place[1]


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**48 for n in values)
