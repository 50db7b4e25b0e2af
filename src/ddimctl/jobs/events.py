"""What a job reports while it runs."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Notice:
    """A sentence that the user should read once: an assumption made, a setting ignored."""

    text: str


@dataclass(frozen=True)
class Progress:
    """How far a phase is.

    phase: what is being done, one or two words ("sampling", "training").
    done, total: in `unit`s; done == total ends the phase.
    facts: short values to show beside the bar, in order, such as {"loss": "0.0312"}.
    """

    phase: str
    done: int
    total: int
    unit: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrote:
    """A file or folder for the user now exists under its final name; path as the user gave it."""

    path: str
    what: str


Event = Notice | Progress | Wrote

Report = Callable[[Event], None]
"""Takes the events of a job, in order. It may raise, which ends the job."""


def ignore(event: Event) -> None:
    """Report nothing."""


def notify(report: Report, sentences: Iterable[str]) -> None:
    """Report each sentence as a Notice."""
    for sentence in sentences:
        report(Notice(sentence))


def counted(report: Report, phase: str, unit: str) -> Callable[[int, int], None]:
    """A callback (done, total) that reports the phase's progress."""
    return lambda done, total: report(Progress(phase, done, total, unit))
