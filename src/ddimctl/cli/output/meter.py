"""How far the phases of a job are and how long they take, in numbers and in words."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from ddimctl.jobs.events import Progress

WINDOW: Final = 60.0  # seconds of the past that an estimate looks back on


class Phase:
    """One phase: its latest event, when it began, and its recent pace."""

    def __init__(self, event: Progress, now: float) -> None:
        self.event = event
        self.started = now
        self._marks: deque[tuple[float, int]] = deque([(now, event.done)])

    def update(self, event: Progress, now: float) -> None:
        """Take in an event of this phase."""
        self.event = event
        self._marks.append((now, event.done))
        while len(self._marks) > 2 and self._marks[1][0] < now - WINDOW:
            self._marks.popleft()

    @property
    def finished(self) -> bool:
        return self.event.done >= self.event.total

    def elapsed(self, now: float) -> float:
        """Seconds since the phase began."""
        return now - self.started

    def left(self, now: float) -> float | None:
        """Seconds to go at the recent pace, or None before there is one."""
        (then, before), (latest, done) = self._marks[0], self._marks[-1]
        if self.finished or done <= before or latest <= then:
            return None
        remaining = (self.event.total - done) * (latest - then) / (done - before)
        return max(0.0, remaining - (now - latest))


class Meter:
    """The phases of one job. A phase inside another is one that runs while that is unfinished."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        # The phase of the latest event if it is unfinished, else the one around it. An attribute
        # that is set in one go, since a display's thread reads it.
        self.current: Phase | None = None
        self._open: dict[str, Phase] = {}

    def update(self, event: Progress) -> Phase:
        """Take in an event and return its phase."""
        now = self.clock()
        phase = self._open.pop(event.phase, None)
        if phase is None:
            phase = Phase(event, now)
        else:
            phase.update(event, now)
        if not phase.finished:
            self._open[event.phase] = phase
        self.current = next(reversed(self._open.values()), None)
        return phase

    def unfinished(self) -> Phase | None:
        """The outermost phase that has not ended."""
        return min(self._open.values(), key=lambda phase: phase.started, default=None)


def count_text(event: Progress) -> str:
    """Such as "7/16 images"."""
    return f"{event.done}/{event.total} {event.unit}"


def fact_texts(event: Progress) -> list[str]:
    """Such as ["loss 0.0312", "images/s 30"]."""
    return [f"{name} {value}" for name, value in event.facts.items()]


def time_texts(phase: Phase, now: float) -> list[str]:
    """Such as ["0:09", "0:12 left"]: how long it has run, and how long it will."""
    left = phase.left(now)
    elapsed = duration_text(phase.elapsed(now))
    return [elapsed] if left is None else [elapsed, f"{duration_text(left)} left"]


def duration_text(seconds: float) -> str:
    """Such as "0:09", "12:30" or "2:05:00"."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
