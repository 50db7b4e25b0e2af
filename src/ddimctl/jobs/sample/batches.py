"""Which images a network sees together: consecutive groups, smaller ones where memory ran out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddimctl.errors import DataError
from ddimctl.files.untrusted.guards import check_plain_file


class Smaller(NamedTuple):
    """From image `start` on, groups have `size` images."""

    start: int
    size: int


class Group(NamedTuple):
    """Some images of a plan, by their places, padded to `size` with the last of them."""

    images: range
    size: int


def batch_groups(count: int, batch_size: int, smaller: Sequence[Smaller]) -> Iterator[Group]:
    """All of count images in order, in groups of batch_size and then of the smaller sizes."""
    start, size, changes = 0, batch_size, list(smaller)
    while start < count:
        while changes and changes[0].start <= start:
            size = changes.pop(0).size
        stop = min(start + size, count, changes[0].start if changes else count)
        yield Group(range(start, stop), size)
        start = stop


def dealt(groups: Sequence[Group], rank: int, count: int) -> list[Group]:
    """The share of one of `count` processes: a stretch of the groups, as long as the others'."""
    return list(groups[len(groups) * rank // count : len(groups) * (rank + 1) // count])


def bounded(smaller: Sequence[Smaller], batch_size: int, stop: int) -> list[Smaller]:
    """The same changes with one at image `stop`, where a stretch ends, to the size there is."""
    if any(change.start == stop for change in smaller):
        return list(smaller)
    sizes = [change.size for change in smaller if change.start < stop]
    return sorted([*smaller, Smaller(stop, sizes[-1] if sizes else batch_size)])


def halved(smaller: Sequence[Smaller], group: Group, stop: int | None = None) -> list[Smaller]:
    """The changes of size after this group was too large: it and all that follow have at most half.

    stop: where the stretch of those that follow ends, if not with the last; from there on all
    stays as it was.
    """
    start, half = group.images.start, group.size // 2
    before = [change for change in smaller if change.start < start]
    after = [change for change in smaller if change.start > start]
    inside = [change for change in after if stop is None or change.start < stop]
    small = [change for change in inside if change.size < half]
    return [*before, Smaller(start, half), *small, *after[len(inside) :]]


def merged(smaller: Sequence[Smaller], stretch: Sequence[Smaller]) -> list[Smaller]:
    """The changes with those of a stretch in place of theirs; its last is where it ends."""
    first, last = stretch[0].start, stretch[-1].start
    rest = [change for change in smaller if not first <= change.start < last]
    ends = any(change.start == last for change in rest)
    return sorted([*rest, *stretch[: len(stretch) - ends]])


def with_parts(smaller: Sequence[Smaller], parts: Iterable[Path]) -> list[Smaller]:
    """The changes of size with those that other processes noted. Raises DataError."""
    changes = list(smaller)
    for path in parts:
        try:
            check_plain_file(path)
            part = read_smaller(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, RecursionError):
            part = None
        if not part:
            raise DataError(f"{path} is not a record of ddimctl.", "Begin with --force.")
        changes = merged(changes, part)
    return changes


def read_smaller(found: Any) -> list[Smaller] | None:
    """The changes of size that a manifest records, or None where a stranger wrote nonsense."""
    if not isinstance(found, list):
        return None
    pairs = [tuple(pair) if isinstance(pair, list) else () for pair in found]
    if not all(len(pair) == 2 and all(type(each) is int for each in pair) for pair in pairs):
        return None
    changes = [Smaller(*pair) for pair in pairs]
    starts = [change.start for change in changes]
    in_order = all(a < b for a, b in zip([-1, *starts], starts, strict=False))
    return changes if in_order and all(change.size >= 1 for change in changes) else None
