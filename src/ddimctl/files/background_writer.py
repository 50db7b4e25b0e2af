"""Encoding and writing off the main thread, so that no sampling step waits for the disk."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self

P = ParamSpec("P")


class BackgroundWriter:
    """A context manager around a few threads and a bounded queue.

    threads: Pillow and zlib release the interpreter's lock, so two keep up with most networks.
    places:  how many tasks may wait or run at once; more make submit wait, so memory stays flat.

    The first error of a task is raised by the next call here, at the latest when the body ends;
    tasks not yet begun are dropped then, and when the body raises.
    """

    def __init__(self, threads: int = 2, places: int = 32) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ddimctl-writer")
        self._count = places
        self._places = threading.Semaphore(places)
        self._failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self.check()

    def submit(self, function: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Call function(*args, **kwargs) in the background, in no particular order."""
        self._places.acquire()

        def task() -> None:
            try:
                if self._failure is None:
                    function(*args, **kwargs)
            except BaseException as error:  # raised again in the caller's thread
                self._failure = error
            finally:
                self._places.release()

        try:
            self.check()
            self._pool.submit(task)
        except BaseException:
            self._places.release()
            raise

    def wait(self) -> None:
        """Return when all that was submitted is done, as before a manifest may name it."""
        taken = 0
        try:
            for _ in range(self._count):
                self._places.acquire()
                taken += 1
        finally:
            if taken:
                self._places.release(taken)
        self.check()

    def check(self) -> None:
        """Raise the error of a task that has failed, if one has."""
        if self._failure is not None:
            raise self._failure
