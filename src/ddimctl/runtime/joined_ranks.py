"""What ranks do when there are several of them: a store, a heartbeat and collectives of torch's."""

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from ddimctl.errors import RESUME, DdimctlError, DeviceError, RequestError, Stopped
from ddimctl.runtime.device import resolve_device
from ddimctl.runtime.ranks import Ranks, number_in
from ddimctl.runtime.transfer import wait_until

T = TypeVar("T")

# Together less than a minute: how long a process may be silent, and how long another one that
# cannot be asked to end, since it waits in a library, lives on then.
_SILENCE: Final = 30.0
_GRACE: Final = 15.0
_BEAT: Final = 1.0
_FAREWELL: Final = 5.0  # how long the first process waits for the others to know that it ends
_JOIN: Final = timedelta(seconds=60)
_ANSWER: Final = timedelta(seconds=20)  # of the store
_LONG: Final = timedelta(days=30)  # for collectives: who waits too long is found by its silence
_PIECE: Final = 2**20  # bytes of a shared value; the store refuses large ones
_runs = itertools.count()


class JoinedRanks(Ranks):
    """One of several processes, connected by torch's key-value store, later by collectives.

    A thread tells the others that this process is alive and watches whether they are.
    """

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.local_rank = number_in("LOCAL_RANK", 0)
        self.machines = number_in("LOCAL_WORLD_SIZE", count) < count
        self._store = store
        self._others = [other for other in range(count) if other != rank]
        self._beats: dict[int, tuple[bytes, float]] = {}
        self._failure: DdimctlError | None = None
        self._group: Any = None
        self._device = torch.device("cpu")
        self._left = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def device(self, name: str) -> torch.device:
        device = resolve_device(name)
        if device.type == "cuda":
            if device.index is not None:
                raise RequestError(
                    f"--device {name}: each process takes the device of its own number.",
                    "Use --device cuda, and CUDA_VISIBLE_DEVICES to choose among them.",
                )
            device = resolve_device(f"cuda:{self.local_rank}")
        self._device = device
        return device

    def share(self, name: str, value: T, source: int = 0) -> T:
        with _store_errors():
            if self.rank == source:
                text = json.dumps(value).encode()
                pieces = [text[i : i + _PIECE] for i in range(0, len(text), _PIECE)]
                for number, piece in enumerate(pieces):
                    self._store.set(f"{name}/{number}", piece)
                self._store.set(name, str(len(pieces)))
                return value
            while not self._store.check([name]):
                self.check()
                time.sleep(0.05)
            count = int(self._store.get(name))
            found: T = json.loads(b"".join(self._store.get(f"{name}/{i}") for i in range(count)))
            return found

    def add(self, name: str, amount: int) -> int:
        with _store_errors():
            return int(self._store.add(f"count/{name}", amount))

    def wait(self, name: str, total: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        while self.add(name, 0) < total:
            meanwhile()
            self.check()
            time.sleep(0.05)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def highest(self, numbers: Sequence[int]) -> list[int]:
        found = torch.tensor(numbers)  # on the CPU, so that no device is waited for
        self._begin_reduce(found, "MAX")()
        return found.tolist()

    def begin_sum(self, tensor: Tensor) -> Callable[[], None]:
        return self._begin_reduce(tensor, "SUM")

    def leave(self, error: BaseException | None) -> None:
        """Tell the others how this process ends, and raise what is to be said instead of its error."""
        with suppress(DeviceError), _store_errors():
            self._store.set(f"end/{self.rank}", json.dumps(_end(error, self._failure)))
            self._store.add("ends", 1)
        try:
            if not self.first and (error is None or isinstance(error, Stopped)):
                while not self._ended(0):
                    if not isinstance(self._failure, Stopped):  # the first may be saving
                        self.check()
                    time.sleep(0.05)
            # That it was told to end, by torchrun since another had failed, is not the reason.
            if error is None or not isinstance(error, Exception) or isinstance(error, Stopped):
                self._raise_reason()
        finally:
            if self._failure is None or isinstance(self._failure, Stopped):
                self._say_farewell()
            self._left.set()
            if self._group is not None and error is None:
                self._group.destroy_process_group()

    def _say_farewell(self) -> None:
        """In the first process, with which the store may end: wait until the others know its end."""
        deadline = time.monotonic() + _FAREWELL
        with suppress(DeviceError):
            gone = self.add("gone", 1)
            while self.first and gone < self.count and time.monotonic() < deadline:
                time.sleep(0.02)
                gone = self.add("gone", 0)

    def _begin_reduce(self, tensor: Tensor, operation: str) -> Callable[[], None]:
        """Begin an all-reduce in place; what it returns ends it, and notices others' ends and deaths.

        On CUDA it is only the device that waits then, in its queue.
        """
        group = self._collectives()
        with self._connection_errors():
            work = group.all_reduce(tensor, getattr(group.ReduceOp, operation), async_op=True)

        def end() -> None:
            with self._connection_errors():
                if tensor.device.type == "cpu":
                    wait_until(work.is_completed, self.check)
                work.wait()

        return end

    @contextmanager
    def _connection_errors(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # a connection is gone, and why may be told by the store
            time.sleep(3 * _BEAT)
            self.check()
            raise DeviceError(
                f"the processes have lost each other: {_one_line(error)}",
                RESUME,
            ) from error

    def _collectives(self) -> Any:
        """torch.distributed, its group made at the first need."""
        if self._group is None:
            import torch.distributed as group

            self.add("grouping", 1)
            self.wait("grouping", self.count)  # who has ended by now is noticed here
            cuda = self._device.type == "cuda"
            store = group.PrefixStore("group", self._store)  # type: ignore[attr-defined]
            group.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.count,
                timeout=_LONG,
                device_id=self._device if cuda else None,
            )
            self._group = group
        return self._group

    def _watch(self) -> None:
        ended: dict[int, dict[str, Any]] = {}
        while not self._left.wait(_BEAT):
            try:
                with _store_errors():
                    self._store.add(f"beat/{self.rank}", 1)
                    if self._store.add("ends", 0) > len(ended):
                        ended = self._ends()
                    self._failure = self._silent(ended) or _reason(ended)
            except DeviceError as error:
                self._failure = error
            # After a signal, the first process takes its time to save.
            if self._failure is not None and not isinstance(self._failure, Stopped):
                if not self._left.wait(_GRACE):
                    os._exit(1)
                return

    def _silent(self, ended: dict[int, dict[str, Any]]) -> DeviceError | None:
        """What to say of a process that lives no more and has not said that it ends."""
        watched = [other for other in self._others if other not in ended]
        if not watched:
            return None
        now = time.monotonic()
        beats = self._store.multi_get([f"beat/{other}" for other in watched])
        for other, beat in zip(watched, beats, strict=True):
            before, since = self._beats.get(other, (None, now))
            if beat != before:
                self._beats[other] = (beat, now)
            elif now - since > _SILENCE:
                host = self._store.get(f"host/{other}").decode(errors="replace")
                return DeviceError(
                    f"process {other} on {host} has given no sign of life for {_SILENCE:.0f} s.",
                    RESUME,
                )
        return None

    def _ended(self, other: int) -> bool:
        with _store_errors():
            return bool(self._store.check([f"end/{other}"]))

    def _ends(self) -> dict[int, dict[str, Any]]:
        return {
            other: json.loads(self._store.get(f"end/{other}"))
            for other in self._others
            if self._store.check([f"end/{other}"])
        }

    def _raise_reason(self) -> None:
        """Raise the error of another process, if it has one; a stop is not an error to the first."""
        found = None
        with suppress(DeviceError), _store_errors():
            found = _reason(self._ends())
        if found is not None and not (self.first and isinstance(found, Stopped)):
            raise found from None


def join() -> JoinedRanks:
    """Find the other processes of this run. Raises DeviceError where some do not come."""
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    try:
        store, rank, count = next(rendezvous("env://", timeout=_JOIN))
        store.set_timeout(_ANSWER)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"ddimctl/{attempt}/{next(_runs)}", store)
        store.set(f"host/{rank}", socket.gethostname())
        store.add(f"beat/{rank}", 1)
        here = store.add("here", 1)
        deadline = time.monotonic() + _JOIN.total_seconds()
        while here < count and time.monotonic() < deadline:
            time.sleep(0.05)
            here = store.add("here", 0)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"the processes do not find each other: {_one_line(error)}", "Start them with torchrun."
        ) from error
    if here < count:
        raise DeviceError(
            f"{here} of {count} processes have come within {_JOIN.total_seconds():.0f} s.",
            "Start as many as --nnodes and --nproc-per-node say.",
        )
    return JoinedRanks(store, rank, count)


@contextmanager
def _store_errors() -> Iterator[None]:
    """Within, a store that does not answer is a DeviceError."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are such
        raise DeviceError(
            "the connection to the machine of process 0 is lost.",
            RESUME,
        ) from error


def _end(error: BaseException | None, failure: DdimctlError | None) -> dict[str, Any]:
    """What to tell the others of the way that a process ends."""
    end: dict[str, Any] = {"host": socket.gethostname(), "code": 0, "cause": "", "remedy": ""}
    if error is None:
        return end
    if not isinstance(error, DdimctlError):
        code = error.code if isinstance(error, SystemExit) else 1
        return end | {"code": 130 if isinstance(error, KeyboardInterrupt) else code}
    told = {} if error is failure else {"cause": error.cause, "remedy": error.remedy}
    return end | {"code": error.exit_code, **told}


def _reason(ends: dict[int, dict[str, Any]]) -> DdimctlError | None:
    """The error to raise for what others ended with: one that has a cause if possible."""
    bad = {other: end for other, end in ends.items() if end["code"]}
    if not bad:
        return None
    other, end = min(
        bad.items(), key=lambda item: (item[1]["code"] == Stopped.exit_code, not item[1]["cause"])
    )
    where = f"process {other} on {end['host']}"
    if end["code"] == Stopped.exit_code:
        return Stopped(end["cause"] or f"{where} was stopped.", end["remedy"])
    if end["code"] == RequestError.exit_code:  # the same in every process
        return RequestError(end["cause"], end["remedy"])
    error = DdimctlError(f"{where}: {end['cause'] or 'it ended early.'}", end["remedy"])
    error.exit_code = end["code"]
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
