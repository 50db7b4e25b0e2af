"""The processes of one run, as torchrun starts them: who they are and what they tell each other."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import torch
from torch import Tensor

from ddimctl.errors import RequestError
from ddimctl.runtime.device import resolve_device

T = TypeVar("T")


class Ranks:
    """The processes of a run; this class is the one process that has no others.

    rank: 0 ... count - 1; the first writes what is one for all, and speaks to the user.
    local_rank: the number on this machine.  machines: whether there is more than one.
    """

    rank, count, local_rank, machines = 0, 1, 0, False

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """What --device means here. Raises DeviceError, RequestError."""
        return resolve_device(name)

    def part(self, name: str) -> "Ranks":
        """The same processes in a part of the run, with names of its own for what they share."""
        return _Part(self, name)

    def share(self, name: str, value: T, source: int = 0) -> T:
        """The value of the process of that rank, plain as JSON, for all.

        Each name serves once in a run. Raises as check does.
        """
        return value

    def add(self, name: str, amount: int) -> int:
        """Add to a counter that all share, and return its sum."""
        self._counts[name] += amount
        return self._counts[name]

    def check(self) -> None:
        """Raise the error that another process ended with; DeviceError when one has died."""

    def wait(self, name: str, total: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Return when the counter of that name has come to the total.

        meanwhile: called again and again, to raise where there is another reason to end. Raises
        as check does.
        """

    def highest(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over the processes; all must ask. Raises as check does."""
        return list(numbers)

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begin to replace a vector by its sum over the processes, the same to the bit in each.

        What it returns ends that, and may be called after other sums have begun; all processes
        begin them in one order. Both raise as check does.
        """
        return lambda: None


class _Part(Ranks):
    def __init__(self, whole: Ranks, name: str) -> None:
        self.rank, self.count, self.local_rank = whole.rank, whole.count, whole.local_rank
        self.machines = whole.machines
        self._whole, self._name = whole, name

    def device(self, name: str) -> torch.device:
        return self._whole.device(name)

    def share(self, name: str, value: T, source: int = 0) -> T:
        return self._whole.share(f"{self._name}/{name}", value, source)

    def add(self, name: str, amount: int) -> int:
        return self._whole.add(f"{self._name}/{name}", amount)

    def check(self) -> None:
        self._whole.check()

    def wait(self, name: str, total: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        self._whole.wait(f"{self._name}/{name}", total, meanwhile)

    def highest(self, numbers: Sequence[int]) -> list[int]:
        return self._whole.highest(numbers)

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        return self._whole.begin_sum(tensor)


def several_processes() -> bool:
    """Whether this process is one of several of torchrun, or of what sets the same variables."""
    return number_in("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def refuse_several(command: str) -> None:
    """Raise RequestError in a run of several processes."""
    if several_processes():
        raise RequestError(
            f"`ddimctl {command}` runs in one process.", "Start it without torchrun."
        )


@contextmanager
def joined() -> Iterator[Ranks]:
    """Within, the processes of this run have found each other; alone if there is but one.

    At the end the others wait for the first. An error of any is the error of all: the first
    process raises it, for the user to see once. Raises DeviceError where some do not come.
    """
    if not several_processes():
        yield Ranks()
        return
    from ddimctl.runtime.joined_ranks import join

    ranks = join()
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave(None)


def number_in(variable: str, otherwise: int) -> int:
    """The number in a variable of the environment."""
    with suppress(ValueError):
        return int(os.environ.get(variable, otherwise))
    return otherwise
