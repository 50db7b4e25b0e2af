"""Files of torch.save from strangers, read without running anything in them."""

import io
import math
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_content
from ddimctl.files.untrusted.memory import check_memory
from ddimctl.files.untrusted.pickle_calls import Storage
from ddimctl.files.untrusted.pickle_scan import GET_PLAIN, MAX_BYTES, scan_pickle
from ddimctl.files.untrusted.zip_members import stored_members

_MAX_DEPTH: Final = 100
_MAX_VISITS: Final = 10_000_000
_LEAVES: Final = (
    *(str, bytes, int, float, bool, type(None)),
    *(torch.Size, torch.device, torch.dtype),
)
# What torch.load raises on damaged files.
_READING_ERRORS: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError),
    *(AttributeError, ArithmeticError, AssertionError, MemoryError, OSError, struct.error),
)


def read_torch(path: Path, where: str) -> Any:
    """What a file of torch.save holds: dicts, lists, tuples, plain values and tensors on the CPU.

    An argparse.Namespace comes as a dict, a numpy scalar as a number. Tensors are dense, are no
    larger than what the file holds for them, and are mapped from a zip file, not copied. The tree
    is finite: it can be walked without care. where: the file, for messages.

    Raises CheckpointError for all other files: damaged, of another format, or such that they would
    call anything that a state dict does not need, which is then named.
    """
    kind = check_content(path, where)
    try:
        if kind == "torch":
            _check_zip(path, where)
        elif kind == "legacy":
            _check_legacy(path, where)
        elif kind == "pickle":
            with path.open("rb") as file:
                scan_pickle(file, where)
            raise CheckpointError(f"{where} is a bare pickle, not a file of torch.save.", GET_PLAIN)
        else:
            raise CheckpointError(
                f"{where} is damaged, or not a weight file at all.", "Get the file again."
            )
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror}.") from error
    tree = _load(path, where, zipped=kind == "torch")
    _measure(tree, where)
    return tree


def _check_zip(path: Path, where: str) -> None:
    members = stored_members(path, where)
    found = members.get("data.pkl")
    if found is None or found.size > MAX_BYTES:
        raise CheckpointError(f"{where} is no archive of weights.", GET_PLAIN)
    with path.open("rb") as file:
        file.seek(found.offset)
        content = io.BytesIO(file.read(found.size))
    for storage in scan_pickle(content, where).storages.values():
        member = members.get(f"data/{storage.key}")
        if member is None or member.size != storage.nbytes:
            raise CheckpointError(
                f"{where} is damaged: the weights {storage.key!r} do not have the size announced.",
                "Get the file again.",
            )


def _check_legacy(path: Path, where: str) -> None:
    """The old format: three pickles of headers, the object, a list of storages, then their bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(3):
            scan_pickle(file, where)
        storages = scan_pickle(file, where).storages
        keys = scan_pickle(file, where).value
        known = type(keys) is list and all(type(key) is str for key in keys)
        if not known or len(keys) != len(storages) or set(keys) != storages.keys():
            raise CheckpointError(
                f"{where} is damaged: its list of weights is wrong.", "Get the file again."
            )
        for key in keys:
            _skip_storage(file, storages[key], size, where)
    check_memory(sum(storage.nbytes for storage in storages.values()), where)


def _skip_storage(file: io.BufferedReader, storage: Storage, size: int, where: str) -> None:
    count = int.from_bytes(file.read(8), "little")
    if count != storage.numel or file.tell() + storage.nbytes > size:
        raise CheckpointError(
            f"{where} is damaged: the weights {storage.key!r} do not have the size announced.",
            "Get the file again.",
        )
    file.seek(storage.nbytes, io.SEEK_CUR)


def _load(path: Path, where: str, *, zipped: bool) -> Any:
    mapped = zipped and path.suffix != ".safetensors"  # torch.load would go by that name
    try:
        with torch.serialization.safe_globals(_SAFE), path.open("rb") as file:
            return torch.load(
                path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except _READING_ERRORS as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise CheckpointError(f"{where} cannot be read: {reason}.", GET_PLAIN) from error


class _Namespace(dict[str, Any]):
    """What an argparse.Namespace becomes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class _Dtype:
    """What a numpy.dtype becomes: enough of one to read a number."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


# numpy's names of number types, and struct's.
_CODES: Final = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_NUMBERS: Final = dict(zip(_CODES, "?bhiqBHIQefd", strict=True))


def _scalar(dtype: _Dtype, data: bytes) -> Any:
    return struct.unpack(dtype.order + _NUMBERS[dtype.code], data)[0]


# Where a pickle names the right, it gets the left, so that numpy need not be there.
_SAFE: Final[list[Any]] = [
    (_Namespace, "argparse.Namespace"),
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def _measure(tree: Any, where: str) -> None:
    """Refuse all but plain values and tensors, and trees without an end: deep, cyclic, or a few
    containers that hold each other so often that a walk would never finish.
    """
    known: dict[int, tuple[int, int]] = {}

    def extent(value: Any, level: int) -> tuple[int, int]:
        """(height, visits of a walk that remembers nothing) of what hangs on value."""
        if isinstance(value, Tensor):
            _check_tensor(value, where)
            return 0, 1
        kind = type(value)
        if kind in _LEAVES:
            return 0, 1
        if kind not in (dict, OrderedDict, list, tuple, _Namespace):
            raise CheckpointError(
                f"{where} holds a {kind.__name__}, which is not supported.", GET_PLAIN
            )
        height, visits = known.get(id(value), (0, 0))
        if not visits and level <= _MAX_DEPTH:
            children = [extent(child, level + 1) for child in _children(value)]
            height = 1 + max((height for height, _ in children), default=0)
            visits = 1 + sum(visits for _, visits in children)
            known[id(value)] = height, visits
        if level + height > _MAX_DEPTH or visits > _MAX_VISITS:
            raise CheckpointError(f"{where} is nested too deeply for a checkpoint.", GET_PLAIN)
        return height, visits

    extent(tree, 0)


def _children(value: Any) -> list[Any]:
    inside = list(dict.values(value)) if isinstance(value, dict) else list(value)
    return inside + list(getattr(value, "__dict__", {}).values())  # a state dict's _metadata


def _check_tensor(tensor: Tensor, where: str) -> None:
    if (
        type(tensor) not in (Tensor, nn.Parameter)
        or tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
        or tensor._backward_hooks
        or math.prod(tensor.shape) * tensor.itemsize > tensor.untyped_storage().nbytes()
    ):
        raise CheckpointError(f"{where} holds a tensor that is not plain and dense.", GET_PLAIN)
