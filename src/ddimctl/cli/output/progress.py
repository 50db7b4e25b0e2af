"""The progress of a job in lines, as a log shows it. Bars of a terminal are in `bars`."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol, Self

from ddimctl.jobs.events import Progress

SECONDS_BETWEEN_LINES: Final = 10.0
_MARKS: Final = 7  # lines that an estimate looks back on: a minute, or longer where steps are slow


class View(Protocol):
    """Somewhere that a running job is shown."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def line(self, label: str, text: str) -> None: ...


class QuietView:
    """Notes, and no progress. say: takes the label and the text of a line."""

    def __init__(self, say: Callable[[str, str], None]) -> None:
        self._say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Show nothing."""

    def progress(self, event: Progress) -> None:
        """Show nothing."""

    def line(self, label: str, text: str) -> None:
        self._say(label, text)


class PlainView(QuietView):
    """Lines for a log: one every ten seconds, and one at the end of each outer phase.

    A phase that runs while another is unfinished is inside that. An outer phase that is unfinished
    when the job ends has its line, too. clock: seconds.
    """

    def __init__(
        self, say: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(say)
        self._clock = clock
        self._open: dict[str, _Phase] = {}  # outer before inner
        self._last_line = clock()

    def __exit__(self, *_: object) -> None:
        for phase in [*self._open.values()][:1]:
            self._show(phase)

    def progress(self, event: Progress) -> None:
        now = self._clock()
        phase = self._open.setdefault(event.phase, _Phase(event, now))
        phase.event = event
        if event.done >= event.total:
            del self._open[event.phase]
        if not self._open or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._show(phase)

    def _show(self, phase: "_Phase") -> None:
        self._last_line = now = self._clock()
        event = phase.event
        words = [
            count_text(event),
            facts_text(event),
            times_text(now - phase.started, phase.left(now)),
        ]
        self._say(event.phase, ", ".join(word for word in words if word))


class _Phase:
    """One phase: its latest event, when it began, and how much was done at its latest lines."""

    def __init__(self, event: Progress, now: float) -> None:
        self.event = event
        self.started = now
        self._marks = deque([(now, event.done)], _MARKS)

    def left(self, now: float) -> float | None:
        """Seconds to go at the recent pace, or None where there is none. For each line once."""
        done, total = self.event.done, self.event.total
        then, before = self._marks[0]
        self._marks.append((now, done))
        return (total - done) * (now - then) / (done - before) if before < done < total else None


def count_text(event: Progress) -> str:
    """Such as "7/16 images"."""
    return f"{event.done}/{event.total} {event.unit}"


def facts_text(event: Progress) -> str:
    """Such as "loss 0.0312, images/s 30"; empty where there are none."""
    return ", ".join(f"{name} {value}" for name, value in event.facts.items())


def times_text(elapsed: float, left: float | None) -> str:
    """Such as "0:12, 0:18 left": how long a phase has run and will run, in seconds; None: unknown."""
    return _duration(elapsed) + ("" if left is None else f", {_duration(left)} left")


def _duration(seconds: float) -> str:
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
