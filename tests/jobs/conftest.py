"""Running a job to its end in this process."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest


class Finished:
    """A job's result and the events that it reported."""

    def __init__(self, job: Callable[..., Any], *given: Any, **named: Any) -> None:
        self.events: list[Any] = []
        self.result = job(*given, report=self.events.append, **named)

    def notices(self) -> str:
        return "\n".join(event.text for event in self.events if hasattr(event, "text"))


@pytest.fixture
def finish():
    return Finished


@pytest.fixture
def cut_at():
    """A report that ends the job when a phase has done that many steps."""

    def make(done: int) -> Callable[[Any], None]:
        def report(event: Any) -> None:
            if getattr(event, "done", 0) == done:
                raise InterruptedError

        return report

    return make


@pytest.fixture
def terminate_at():
    """A report that sends this process SIGTERM when a phase has done that many steps."""

    def make(done: int) -> Callable[[Any], None]:
        def report(event: Any) -> None:
            if getattr(event, "done", 0) == done:
                os.kill(os.getpid(), signal.SIGTERM)

        return report

    return make
