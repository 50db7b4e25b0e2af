"""Tensors on their way between the host and the device, for neither of which the other waits."""

import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

AHEAD: Final = 2
"""How many steps the host may be ahead of the device: enough that the device never waits for it,
and few, so that progress, signals and errors are not late."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; on CUDA it may still be on its way there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class ToHost:
    """Tensors of one device that have begun to be copied to the host; those of a CPU are there."""

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        # for asynchronous copies torch takes pinned memory
        self._copies = tuple(tensor.detach().to("cpu", non_blocking=True) for tensor in tensors)
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(device))

    def are_there(self) -> bool:
        """Whether tensors() would not wait."""
        return self._event is None or self._event.query()  # type: ignore[no-untyped-call]

    def tensors(self, check: Callable[[], None] = lambda: None) -> tuple[Tensor, ...]:
        """The copies, once they are there. check: may raise to end the wait."""
        wait_until(self.are_there, check)
        return self._copies


def wait_until(done: Callable[[], bool], check: Callable[[], None]) -> None:
    """Return when done. Asks often at first, then a thousand times a second; check may raise."""
    pause = 1e-5
    while not done():
        check()
        time.sleep(pause)
        pause = min(1.5 * pause, 1e-3)
