"""Computations that yield how far they are, and return their result."""

from collections.abc import Generator
from typing import Any, TypeVar

R = TypeVar("R")


def finish(walk: Generator[Any, None, R]) -> R:
    """The result of a walk that nobody follows."""
    while True:
        try:
            next(walk)
        except StopIteration as end:
            result: R = end.value
            return result
