"""Running a job to its end in this process."""

from typing import Any

import pytest


class Finished:
    """A job's result and the events on the way."""

    def __init__(self, job: Any) -> None:
        self.events: list[Any] = []
        while True:
            try:
                self.events.append(next(job))
            except StopIteration as end:
                self.result = end.value
                return

    def notices(self) -> str:
        return "\n".join(event.text for event in self.events if hasattr(event, "text"))


@pytest.fixture
def finish():
    return Finished
