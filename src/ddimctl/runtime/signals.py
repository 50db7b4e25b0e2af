"""Stopping on request: the first signal asks a run to save and end, the second ends it at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGINT, SIGTERM and SIGUSR1 set the request; a repeated one acts as it did before.

    Outside the main thread, where Python sets no handlers, signals keep their meaning.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.name = signal.Signals(number).name
        for known, handler in previous.items():
            signal.signal(known, handler)

    try:
        for name in _NAMES:
            if hasattr(signal, name):
                number = getattr(signal, name)
                previous[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
