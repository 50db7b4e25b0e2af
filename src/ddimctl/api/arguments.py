"""What arguments may be. Each check returns the value and raises RequestError, naming the argument."""

import math
import operator
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from ddimctl.errors import RequestError, brief, did_you_mean


def whole(name: str, value: Any, low: int, high: int = 2**63 - 1) -> int:
    """A whole number in [low, high], of any integer type but bool."""
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or not low <= number <= high:
        bound = f"from {low}" if high == 2**63 - 1 else f"from {low} to {high}"
        raise RequestError(f"{name} must be a whole number {bound}, not {brief(value)}.")
    return number


def real(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if math.isfinite(value):
                return float(value)
    raise RequestError(f"{name} must be a finite number, not {brief(value)}.")


def word(name: str, value: Any, known: Collection[str]) -> str:
    """One of the known words."""
    if isinstance(value, str) and value in known:
        return value
    hint = did_you_mean(value, known) if isinstance(value, str) else ""
    raise RequestError(
        f"{name} must be one of {', '.join(known)}, not {brief(value)}.", hint.strip()
    )


def instance(name: str, value: Any, kinds: type | tuple[type, ...], what: str) -> Any:
    """A value of one of the types, which `what` says in words."""
    if not isinstance(value, kinds):
        raise RequestError(f"{name} must be {what}, not {brief(value)}.")
    return value


def function(name: str, value: Any) -> None:
    """None, or something that can be called."""
    if value is not None and not callable(value):
        raise RequestError(f"{name} must be a function, not {brief(value)}.")


def sides(value: Any) -> tuple[int, int] | None:
    """(H, W) of images, or None."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RequestError(f"size must be (height, width), not {brief(value)}.")
    return whole("height", value[0], 1, 2**15), whole("width", value[1], 1, 2**15)
