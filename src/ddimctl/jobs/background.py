"""Events from a function that reports by callback."""

import queue
import threading
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from ddimctl.jobs.events import Event, Progress

R = TypeVar("R")


_POLL: Final = 0.2  # seconds


def with_progress(
    phase: str,
    unit: str,
    work: Callable[[Callable[[int, int], None]], R],
    check: Callable[[], None] = lambda: None,
) -> Generator[Event, None, R]:
    """Run work(report) in a thread and yield a Progress for each report(done, total).

    check is called several times a second meanwhile; when it raises, the work is left behind.
    """
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
    while True:
        check()
        try:
            report = reports.get(timeout=_POLL)
        except queue.Empty:
            continue
        if report is None:
            break
        yield Progress(phase, *report, unit)
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]
