"""The processes of one run, as torchrun or srun start them, in a process group of torch.distributed."""

import itertools
import json
import math
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

from ddimctl.errors import RESUME, DdimctlError, DeviceError, RequestError, Stopped
from ddimctl.runtime.device import resolve_device
from ddimctl.runtime.transfer import wait_until

T = TypeVar("T")
_TIMEOUT: Final = 6 * 3600  # seconds; longer than rank 0 takes to decode a large data set for all
_JOIN: Final = 300
_FAREWELL: Final = 5  # for how long rank 0, with which the store may end, lets others read from it
_POLL: Final = 0.1
_runs = itertools.count()


def nothing() -> None:
    """Do nothing while waiting."""


def several_processes() -> bool:
    """Whether this process is one of several of torchrun, or of what sets the same variables."""
    return number_in("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def refuse_several(command: str) -> None:
    """Raise RequestError in a run of several processes."""
    if several_processes():
        cause = f"`ddimctl {command}` runs in one process."
        raise RequestError(cause, "Start it without torchrun.")


def number_in(variable: str, otherwise: int) -> int:
    """The number in a variable of the environment."""
    with suppress(ValueError):
        return int(os.environ.get(variable, otherwise))
    return otherwise


class Ranks:
    """The processes of a run: this one alone, without a process group, until it has joined others.

    rank: 0 ... count - 1.  machines: whether there is more than one. All processes call each of
    share, gather, highest, barrier, average and parallel, in one order; these raise as check does.
    Where they wait for long they call `meanwhile`, which may raise.
    """

    rank, count, local_rank, machines = 0, 1, 0, False

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._dist: Any = None  # torch.distributed, once joined
        self._store: Any = None
        self._looked_at, self._asked_at, self._timeout = 0.0, math.inf, _TIMEOUT
        self._left = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes what is one for all, and speaks to the user."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process for --device. Raises DeviceError, RequestError."""
        device = resolve_device(name)
        if self.count == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise RequestError(
                f"--device {name}: each process takes the device of its local rank.",
                "Use --device cuda, and CUDA_VISIBLE_DEVICES to choose among them.",
            )
        return resolve_device(f"cuda:{self.local_rank}")

    def share(self, value: T) -> T:
        """The value of the first process, in all."""
        return self.gather(value)[0]

    def gather(self, value: T, meanwhile: Callable[[], None] = nothing) -> list[T]:
        """The values of all processes, by rank, in all."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            self.barrier(meanwhile)  # signals and errors end this wait, but not that for objects
            with self.errors():
                self._dist.all_gather_object(values, value)
        return values

    def barrier(self, meanwhile: Callable[[], None] = nothing) -> None:
        """Return when all processes have come here."""
        self.highest([0], meanwhile)

    def highest(self, numbers: Sequence[int], meanwhile: Callable[[], None] = nothing) -> list[int]:
        """The largest of each number over the processes."""
        if self.count == 1:
            return list(numbers)
        found = torch.tensor(numbers)  # on the CPU, so that no device is waited for
        with self.errors():
            work = self._dist.all_reduce(found, self._dist.ReduceOp.MAX, async_op=True)
            wait_until(work.is_completed, lambda: self.check(meanwhile))
            work.wait()
        return found.tolist()

    def average(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over the processes, the same to the bit in each."""
        if self.count > 1:
            with self.errors():
                self._dist.all_reduce(tensor.div_(self.count))

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network with gradients that its backward pass averages over the processes."""
        if self.count == 1:
            return network
        self.barrier()  # which, unlike NCCL's first wait, the error of another process ends
        # Looking for unused parameters also keeps the buckets as they are in the first update:
        # otherwise a resumed run would add its numbers in another order.
        with self.errors():
            return nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)

    def add(self, name: str, amount: int) -> int:
        """Add to a counter that all processes share, and return its sum."""
        if self.count > 1:
            return int(self._ask("add", name, amount))
        self._counts[name] += amount
        return self._counts[name]

    def check(self, meanwhile: Callable[[], None] = nothing) -> None:
        """Raise the error that another process ended with; DeviceError when rank 0 is lost.

        Looks ten times a second at most, and then calls meanwhile, too.
        """
        if self.count > 1 and time.monotonic() > self._looked_at + _POLL:
            self._looked_at = time.monotonic()
            if end := self._first_end():
                raise end
            meanwhile()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Within, a lost connection to another process raises as check does."""
        try:
            yield
        except RuntimeError as error:
            lost = self._dist and (isinstance(error, self._dist.DistError) or "gloo" in str(error))
            if not lost:
                raise
            raise self._first_end() or self._lost() from error

    def join(self) -> None:
        """Join the others. Raises DeviceError where some do not come."""
        import torch.distributed as dist

        self._dist, self.local_rank = dist, number_in("LOCAL_RANK", 0)
        self._timeout = number_in("DDIMCTL_PROCESS_TIMEOUT", _TIMEOUT)
        joining = min(_JOIN, self._timeout)
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            found = next(self._dist.rendezvous("env://", timeout=timedelta(seconds=joining)))
            store, self.rank, self.count = found
            self._store = self._dist.PrefixStore(f"ddimctl/{next(_runs)}", store)
            if (here := self._arrive("here", joining)) < self.count:
                raise DeviceError(
                    f"{here} of {self.count} processes have come within {joining} s.",
                    "Start as many as --nnodes and --nproc-per-node say.",
                )
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.count,
                timeout=timedelta(seconds=self._timeout),
            )
        except (RuntimeError, ValueError) as error:
            cause = " ".join(str(error).split())[:200]
            raise DeviceError(
                f"the processes do not find each other: {cause}", "Start them with torchrun."
            ) from error
        self.machines = number_in("LOCAL_WORLD_SIZE", self.count) < self.count

    def leave(self, error: BaseException | None) -> None:
        """Tell the others how this process ends, and raise what is to be said instead of its error.

        Rank 0 says what another one ended with. The others end after it, which may be writing.
        """
        end: DdimctlError | None = None
        is_reason = isinstance(error, Exception) and not isinstance(error, Stopped)
        try:
            if error is not None:
                self._ask("compare_set", "end", "", json.dumps(_told(self.rank, error)))
            if self.first:
                self._ask("set", "first", "")
            deadline = time.monotonic() + (0 if is_reason else self._timeout)
            while not self._ask("check", ["first"]) and time.monotonic() < deadline:
                time.sleep(_POLL)
            end = self._first_end()
            self._arrive("gone", _FAREWELL if self.first else 0)
        except DeviceError as lost:
            end = None if self.first else lost
        self._left.set()
        if error is None:
            self._dist.destroy_process_group()
        # A signal of torchrun, which follows the end of another process, is not the reason.
        if end and not is_reason and not (self.first and isinstance(end, Stopped)):
            raise end from None

    def _arrive(self, name: str, seconds: float) -> int:
        """Count this process, and wait for the others; returns how many have come."""
        here, deadline = self.add(name, 1), time.monotonic() + seconds
        while here < self.count and time.monotonic() < deadline:
            time.sleep(_POLL)
            here = self.add(name, 0)
        return here

    def _first_end(self) -> DdimctlError | None:
        """The error with which another process was the first to end."""
        if not self._ask("check", ["end"]):
            return None
        rank, code, cause, remedy = json.loads(self._ask("get", "end"))
        error = (Stopped if code == Stopped.exit_code else DdimctlError)(cause, remedy)
        error.exit_code = code
        return None if rank == self.rank else error

    def _ask(self, operation: str, *arguments: Any) -> Any:
        """An operation of the store, which is in torchrun or in rank 0."""
        self._asked_at = time.monotonic()
        try:
            return getattr(self._store, operation)(*arguments)
        except RuntimeError as error:
            raise self._lost() from error
        finally:
            self._asked_at = math.inf

    def _watch(self) -> None:
        """End this process when the store does not answer, for which torch waits for ever."""
        while not self._left.wait(1):
            if time.monotonic() - self._asked_at > self._timeout:
                os.write(2, f"error: {self._lost()}\n".encode())
                os._exit(1)

    def _lost(self) -> DeviceError:
        waited = f"has not answered for {self._timeout} s (DDIMCTL_PROCESS_TIMEOUT)"
        return DeviceError(f"another process has ended, or {waited}.", RESUME)


@contextmanager
def joined() -> Iterator[Ranks]:
    """Within, this process has joined the others of its run, if there are others.

    An error of any process is the error of all. Raises DeviceError where some do not come.
    """
    ranks = Ranks()
    if not several_processes():
        yield ranks
        return
    ranks.join()
    try:
        yield ranks
    except BaseException as error:
        ranks.leave(error)
        raise
    ranks.leave(None)


def _told(rank: int, error: BaseException) -> list[Any]:
    """What the others are told of an error: rank, exit code, cause and remedy."""
    if isinstance(error, RequestError | Stopped):  # the same in every process
        return [rank, error.exit_code, error.cause, error.remedy]
    known = error if isinstance(error, DdimctlError) else DdimctlError("it ended early.")
    code = {KeyboardInterrupt: 130, SystemExit: getattr(error, "code", 1)}.get(type(error), 1)
    return [rank, code, f"process {rank} on {socket.gethostname()}: {known.cause}", known.remedy]
