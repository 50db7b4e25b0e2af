"""A CUDA device that is not there: tensors on it have a shape, a type and a place, but no numbers.

Whatever would have to look at numbers on the device, and so wait for it, is an error here: reading
one, a mask as an index, nonzero. So is an operation on tensors of two devices. Copies are noted.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


_SAME = {
    Tensor.contiguous: torch.ops.aten.contiguous,
    Tensor.__invert__: torch.ops.aten.bitwise_not,
}


class Copies:
    """Copies between host and device: all, and those that one waits for."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self.waited_for: list[str] = []


class Event:
    """A torch.cuda.Event that has not come to pass."""

    def record(self, stream: Any = None) -> None:
        """Nothing to do."""

    def query(self) -> bool:
        return False


@contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Within, tensors may be moved to and made on CUDA."""
    copies = Copies()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with FakeTensorMode(allow_non_fake_inputs=True), _HostIsReal(copies), _Python():
        yield copies


class _HostIsReal(TorchDispatchMode):
    """Leaves to FakeTensorMode only what concerns the device, and notes the copies."""

    def __init__(self, copies: Copies) -> None:
        super().__init__()
        self._copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves) and all(
            device.type == "cpu" for device in devices
        ):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if _is_composite(func):  # in inference mode, these come whole
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        found = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if func is torch.ops.aten.copy_.default else args[0]
            waits = not (kwargs.get("non_blocking") or args[2:] == (True,))
            self._note(source, found, waits)
        return found

    def _note(self, source: Tensor, found: Tensor, waits: bool) -> None:
        if source.device.type == found.device.type:
            return
        what = f"{source.device.type} to {found.device.type}, {tuple(source.shape)}"
        self._copies.all.append(what)
        pageable = source.device.type == "cpu" and source.nbytes > 2**16
        if waits or (pageable and not getattr(source, "pinned", False)):
            self._copies.waited_for.append(what)


def _is_composite(func: Any) -> bool:
    if func.namespace != "aten":
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)


class _Python(TorchFunctionMode):
    """What Tensor's own methods do not do for a device that torch was not built for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.pinned = True
            return pinned
        if func is Tensor.__getitem__ and args[0].device.type == "cuda":
            return _indexed(*args)
        return _SAME.get(func, func)(*args, **(kwargs or {}))


def _indexed(x: Tensor, places: Any) -> Tensor:
    places = places if isinstance(places, tuple) else (places,)
    axis = 0
    for place in places:
        if isinstance(place, Tensor):
            x = torch.ops.aten.index(x, [None] * axis + [place])
        elif place is None:
            x = x.unsqueeze(axis)
        elif isinstance(place, slice):
            x = torch.ops.aten.slice(x, axis, place.start, place.stop, place.step or 1)
        else:
            x = x.select(axis, place)
            axis -= 1
        axis += 1
    return x
