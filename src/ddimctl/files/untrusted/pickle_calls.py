"""What a pickle of torch.save may call, and stand-ins for what those calls make."""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch

from ddimctl.files.untrusted.guards import damaged

_MAX_DIMENSIONS: Final = 16
_MAX_NUMBER: Final = 2**48
_MAX_KEY: Final = 2**60  # Python hashes smaller numbers to themselves: no two collide

STORAGES: Final = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}

UNUSUAL_TENSORS: Final = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a class of its own",
    "torch._tensor._rebuild_from_type_v2": "a tensor of a class of its own",
    "torch._utils._rebuild_tensor_v3": "a tensor of an unusual number type",
}


# A class that is the key of a dict in the files of Stable Diffusion's own training.
LIGHTNING: Final = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"


class Storage(NamedTuple):
    """The numbers that tensors are views of: numel of dtype, filed under key."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Name(str):
    """Something importable that the pickle asks for, module.name."""

    __slots__ = ()


class Made:
    """What needs no looking into once it is made: a tensor, a device."""


class Dtype:
    """A numpy.dtype, which has a state."""


class Ordered(dict[Any, Any]):
    """An OrderedDict, which may have the attribute _metadata."""


class Namespace(dict[Any, Any]):
    """An argparse.Namespace, whose state is its attributes."""


def storage_of(wanted: Any) -> Storage:
    """The storage of ("storage", type, key, device, count); old files have a None after it."""
    if (
        type(wanted) is not tuple
        or [type(part) for part in wanted[:5]] != [str, Name, str, str, int]
        or wanted[0] != "storage"
        or wanted[1] not in STORAGES
        or wanted[5:] not in ((), (None,))
        or not 0 <= wanted[4] < _MAX_NUMBER
    ):
        raise damaged("a storage is not in the form of torch.save")
    return Storage(wanted[2], STORAGES[wanted[1]], wanted[4])


def checked_key(key: Any) -> Any:
    """A dict's key, where it is cheap to hash: a deeply nested tuple would overflow the stack."""
    if type(key) in (str, bytes, bool, type(None)) or (type(key) is int and abs(key) < _MAX_KEY):
        return key
    if type(key) is Name and key == LIGHTNING:
        return key
    raise damaged("a dict in it has keys that are neither names nor numbers")


def make_object(kind: Any, arguments: Any) -> Namespace:
    """A new object without __init__ being called."""
    if kind != "argparse.Namespace" or arguments != ():
        raise damaged("its pickle makes an object in an unknown way")
    return Namespace()


def set_state(target: Any, state: Any) -> None:
    """Give an object its attributes. Others than those that torch.save writes would hide methods."""
    kind = type(target)
    if kind is Namespace and type(state) is dict and all(type(key) is str for key in state):
        target.update(state)
    elif not (
        (kind is Ordered and type(state) is dict and state.keys() <= {"_metadata"})
        or (kind is Dtype and type(state) is tuple)
    ):
        raise damaged("it sets attributes where torch.save would not")


def _tensor(*arguments: Any) -> Made:
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)."""
    if not 4 <= len(arguments) <= 7 or any(arguments[5:]):
        raise damaged("a tensor is not in the form of torch.save")
    storage, offset, size, stride = arguments[:4]
    if (
        type(storage) is not Storage
        or not type(size) is type(stride) is tuple
        or len(size) != len(stride)
        or len(size) > _MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < _MAX_NUMBER for n in (offset, *size, *stride))
    ):
        raise damaged("a tensor is not in the form of torch.save")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(size)
    if numel > storage.numel or (numel and last >= storage.numel):
        raise damaged(f"a tensor of the shape {size} is larger than its storage")
    return Made()


def _parameter(*arguments: Any) -> Made:
    if len(arguments) != 3 or type(arguments[0]) is not Made or arguments[2]:
        raise damaged("a parameter has no tensor")
    return Made()


def _ordered(*arguments: Any) -> Ordered:
    """OrderedDict(), or OrderedDict(pairs) as Python 2 pickled it."""
    pairs = arguments[0] if len(arguments) == 1 else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise damaged("an OrderedDict is made in an unknown way")
    if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise damaged("an OrderedDict is made in an unknown way")
    return Ordered((checked_key(key), value) for key, value in pairs)


def _bytes(*arguments: Any) -> bytes:
    """_codecs.encode(text, "latin1") is how protocol 2 spells bytes."""
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] != "latin1":
        raise damaged("bytes are encoded in an unknown way")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError as error:
        raise damaged("bytes are encoded in an unknown way") from error


def _size(*arguments: Any) -> tuple[int, ...]:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise damaged("a torch.Size has no numbers")
    return arguments[0]


def _namespace(*arguments: Any) -> Namespace:
    return make_object("argparse.Namespace", arguments)


def _dtype(*arguments: Any) -> Dtype:
    return Dtype()


def _made(*arguments: Any) -> Made:
    return Made()


CALLS: Final[dict[str, Callable[..., Any]]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _bytes,
    "torch.Size": _size,
    "torch.device": _made,
    "argparse.Namespace": _namespace,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _made,
    "numpy._core.multiarray.scalar": _made,
}
KNOWN: Final = {*CALLS, *STORAGES, *map(str, STORAGES.values()), LIGHTNING}
