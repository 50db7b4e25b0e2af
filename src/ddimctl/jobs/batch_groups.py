"""Which images a network sees together: consecutive groups, smaller ones where memory ran out."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


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


def halved(smaller: Sequence[Smaller], group: Group) -> list[Smaller]:
    """The changes of size after this group was too large: it and all that follow have at most half."""
    start, half = group.images.start, group.size // 2
    before = [change for change in smaller if change.start < start]
    after = [change for change in smaller if change.start > start and change.size < half]
    return [*before, Smaller(start, half), *after]


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
