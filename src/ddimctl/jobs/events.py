"""What a job tells while it runs. A job is a generator of events that returns its result."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")
R = TypeVar("R")


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


def retold(
    walk: Generator[T, None, R],
    tell: Callable[[T], U],
    check: Callable[[], None] = lambda: None,
) -> Generator[U, None, R]:
    """The walk as part of a job: tell says what each of its steps is to the job, check follows it."""
    while True:
        try:
            told = next(walk)
        except StopIteration as end:
            result: R = end.value
            return result
        yield tell(told)
        check()
