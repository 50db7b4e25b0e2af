"""Events from a function that reports by callback."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import TypeVar

from ddimctl.jobs.events import Event, Progress

R = TypeVar("R")


def with_progress(
    phase: str, unit: str, work: Callable[[Callable[[int, int], None]], R]
) -> Generator[Event, None, R]:
    """Run work(report) in a thread and yield a Progress for each report(done, total)."""
    reports: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    outcome: list[R] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work(lambda done, total: reports.put((done, total))))
        except BaseException as error:  # handed to the caller below
            failure.append(error)
        finally:
            reports.put(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while (report := reports.get()) is not None:
        yield Progress(phase, *report, unit)
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
