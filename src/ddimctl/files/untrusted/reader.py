"""The one reader of untrusted tensor files, of torch.save and safetensors: nothing in them runs."""

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from ddimctl.errors import brief
from ddimctl.files.untrusted.content import check_kind, sniff
from ddimctl.files.untrusted.guards import Refused, check_memory, damaged, is_utf8
from ddimctl.files.untrusted.pickle_calls import LIGHTNING, Storage
from ddimctl.files.untrusted.pickle_scan import MAX_BYTES, scan_pickle
from ddimctl.files.untrusted.safetensors_file import read_safetensors
from ddimctl.files.untrusted.zip_members import check_sums, stored_members

_MAX_DEPTH: Final = 100
_LEAVES: Final = (
    *(str, bytes, int, float, bool, type(None)),
    *(Tensor, nn.Parameter, torch.Size, torch.device, torch.dtype),
)
# What torch.load raises on damaged files.
_READING_ERRORS: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError),
    *(AttributeError, ArithmeticError, AssertionError, MemoryError, OSError, struct.error),
)


class TensorFile(NamedTuple):
    """content: what read_torch gives, or the tensors of a safetensors file by name. texts: those in
    a safetensors header; None for other files."""

    content: Any
    texts: dict[str, str] | None = None


def read_tensor_file(path: Path) -> TensorFile:
    """What a file of torch.save or safetensors holds, whatever its name. Raises as read_torch."""
    if sniff(path) == "safetensors":
        return TensorFile(*read_safetensors(path))
    return TensorFile(read_torch(path))


def read_torch(path: Path, behind: int = 0, max_pickle: int = MAX_BYTES) -> Any:
    """What a file of torch.save holds: dicts, lists, tuples, plain values and tensors on the CPU.

    An argparse.Namespace comes as a dict, a numpy scalar as a number. Tensors are dense, are no
    larger than what the file holds for them, and are mapped from a zip file, not copied. The tree
    is finite: it can be walked without care. A zip file has the checksums that it records.

    behind: bytes of the file behind a zip archive, which is then read into memory. max_pickle:
    bytes of what the file holds besides the numbers of its tensors. Raises Refused for all other
    files: damaged, of another format, or such that they would call anything that plain values and
    tensors do not need, which is then named. Raises OSError.
    """
    kind = sniff(path)
    check_kind(kind)
    if kind == "torch":
        _check_zip(path, behind, max_pickle)
    elif kind == "legacy":
        _check_legacy(path)
    elif kind == "pickle":
        with path.open("rb") as file:
            scan_pickle(file)
        raise Refused("is a bare pickle, not a file of torch.save.")
    else:
        raise Refused(
            "cannot be read: it is damaged, or not a file of tensors.", "Get the file again."
        )
    # torch.load goes by the suffix
    mappable = kind == "torch" and path.suffix != ".safetensors" and is_utf8(path)
    tree = _load(path, mapped=mappable and not behind)
    _measure(tree, max_pickle)
    return tree


def _check_zip(path: Path, behind: int, max_pickle: int) -> None:
    members = stored_members(path, behind)
    found = members.get("data.pkl")
    if found is None or found.size > max_pickle:
        raise Refused("is not an archive of tensors.")
    with path.open("rb") as file:
        file.seek(found.offset)
        content = io.BytesIO(file.read(found.size))
    for storage in scan_pickle(content, max_pickle).storages.values():
        member = members.get(f"data/{storage.key}")
        if member is None or member.size != storage.nbytes:
            raise _wrong_size(storage)
    check_sums(path, members)


def _check_legacy(path: Path) -> None:
    """The old format: three pickles of headers, the object, a list of storages, then their bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(3):
            scan_pickle(file)
        storages = scan_pickle(file).storages
        keys = scan_pickle(file).value
        known = type(keys) is list and all(type(key) is str for key in keys)
        if not known or len(keys) != len(storages) or set(keys) != storages.keys():
            raise damaged("its list of tensors is wrong")
        for key in keys:
            count = int.from_bytes(file.read(8), "little")
            if count != storages[key].numel or file.tell() + storages[key].nbytes > size:
                raise _wrong_size(storages[key])
            file.seek(storages[key].nbytes, io.SEEK_CUR)
        if file.tell() != size:
            raise damaged("it has extra bytes after its tensors")
    check_memory(sum(storage.nbytes for storage in storages.values()))


def _wrong_size(storage: Storage) -> Refused:
    return damaged(f"the storage {brief(storage.key)} does not have the recorded size")


def _load(path: Path, mapped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE), path.open("rb") as file:
            return torch.load(
                path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped
            )
    except _READING_ERRORS as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise Refused(f"cannot be read: {why.rstrip('.')}.") from error


class _Namespace(dict[str, Any]):
    """What an argparse.Namespace becomes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class _Callback:
    """What a class of pytorch_lightning becomes, which is only a key."""


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
    (_Callback, LIGHTNING),
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]


def _measure(tree: Any, max_visits: int) -> None:
    """Refuse all but plain values and tensors, and trees without an end: deep, cyclic, or a few
    containers that hold each other so often that a walk would never finish.
    """
    known: dict[int, tuple[int, int]] = {}

    def extent(value: Any, level: int) -> tuple[int, int]:
        """(height, visits of a walk that remembers nothing) of what hangs on value."""
        kind = type(value)
        if kind in _LEAVES:
            return 0, 1
        if kind not in (dict, OrderedDict, list, tuple, _Namespace):
            raise Refused(f"holds a {kind.__name__}, which is not supported.")
        height, visits = known.get(id(value), (0, 0))
        if not visits and level <= _MAX_DEPTH:
            children = [extent(child, level + 1) for child in _children(value)]
            height = 1 + max((height for height, _ in children), default=0)
            visits = 1 + sum(visits for _, visits in children)
            known[id(value)] = height, visits
        if level + height > _MAX_DEPTH or visits > max_visits:
            raise Refused("is nested too deeply.")
        return height, visits

    extent(tree, 0)


def _children(value: Any) -> list[Any]:
    inside = list(dict.values(value)) if isinstance(value, dict) else list(value)
    return inside + list(getattr(value, "__dict__", {}).values())  # a state dict's _metadata
