"""What an option is, apart from the command line that offers it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from ddimctl.errors import RequestError, brief

MAX_NUMBER: Final = 10**9
"""The largest number of an option that names no bound of its own."""

R = TypeVar("R")


@dataclass(frozen=True)
class Option:
    """How a field of a request is written on the command line; it stands in the field's Annotated.

    help: one line.  flags: the long one first; none for a positional argument.
    panel: the heading that the help shows it under.  metavar: what stands for its value.
    default: words for the help where the field's default is None.  low, high: bounds, inclusive.
    parse: from (text, flag) to the value, raising RequestError; for a `repeat`ed option from
    (texts, flag).  words: completions.  check: raises ValueError, whose text follows the flag.
    """

    help: str
    flags: tuple[str, ...] = ()
    panel: str | None = None
    metavar: str | None = None
    default: str | None = None
    low: float | None = None
    high: float | None = None
    parse: Callable[[Any, str], Any] | None = None
    repeat: bool = False
    words: tuple[str, ...] = ()
    check: Callable[[Any], None] | None = None

    @property
    def name(self) -> str:
        """The long flag, or what the help calls an argument."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.metavar or "")


def flag(names: str, help: str, panel: str, **more: Any) -> Option:
    """An option with these flags, the long one first: "--out -o"."""
    return Option(help, tuple(names.split()), panel, **more)


def argument(metavar: str, help: str, **more: Any) -> Option:
    """A positional argument."""
    return Option(help, metavar=metavar, **more)


def bounded(option: Option, value: float) -> None:
    """Raise ValueError for nan, infinities, numbers out of range and numbers that no run can have."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number.")
    low, high = option.low, option.high
    most = MAX_NUMBER if high is None else high
    if (-MAX_NUMBER if low is None else low) <= value <= most:
        return
    if high is None and value > most:
        wanted = f"at most {most}"
    else:
        wanted = f"at least {low}" if high is None else f"between {low} and {high}"
    raise ValueError(f"must be {wanted}, not {brief(value)}.")


def above_zero(value: float) -> None:
    """Raise ValueError unless the number is above 0."""
    if value <= 0:
        raise ValueError("must be above 0.")


def reachable(path: Path) -> None:
    """Raise ValueError for a path that the system cannot look up: too long, or in a closed folder."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return  # the job says so, or makes it
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"'{path}' cannot be used: {why}.") from error


def check_choices(request: Any) -> None:
    """Raise RequestError for an option with a Literal type whose value is none of its words.

    The command line offers no others; a request made in Python may hold any.
    """
    hints = get_type_hints(type(request), include_extras=True)
    for field in fields(request):
        value, hint = getattr(request, field.name), hints[field.name]
        if is_dataclass(value):
            check_choices(value)
        elif get_origin(hint) is Annotated and isinstance(value, str):
            kind, option = get_args(hint)[:2]
            literals = [each for each in (kind, *get_args(kind)) if get_origin(each) is Literal]
            for words in map(get_args, literals):
                if value not in words:
                    raise RequestError(f"{option.name} must be one of {', '.join(words)}.")


def with_fields(request: R, **changes: Any) -> R:
    """A copy of a request, with changes to its fields or to those of its groups, by name.

    Raises TypeError for a name that none of them has.
    """
    changed: Any = request
    for name, value in changes.items():
        changed = _with_field(changed, name, value)
    return changed  # type: ignore[no-any-return]


def make_request(kind: type[R], **values: Any) -> R:
    """A request of this kind from flat values, each of which goes into the group that has the field.

    A group as a whole may be given by its name, too. Raises TypeError for a name that none has.
    """
    hints = get_type_hints(kind)
    own = {name: values.pop(name) for name in [*values] if _is_own(hints, name, values[name])}
    groups: dict[str, dict[str, Any]] = {name: {} for name in hints if is_dataclass(hints[name])}
    for name, value in values.items():
        home = next((group for group in groups if name in get_type_hints(hints[group])), None)
        if home is None:
            raise TypeError(f"{kind.__name__} has no field '{name}'")
        groups[home][name] = value
    made = {name: hints[name](**given) for name, given in groups.items() if given}
    return kind(**own, **made)


def changed_options(request: Any, other: Any) -> Iterator[str]:
    """The names of the options in which two requests of one kind differ."""
    hints = get_type_hints(type(request), include_extras=True)
    for field in fields(request):
        value, was = getattr(request, field.name), getattr(other, field.name)
        if is_dataclass(value):
            yield from changed_options(value, was)
        elif value != was:
            yield get_args(hints[field.name])[1].name


def _is_own(hints: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a value is for this field itself: a group may have the name of one of its fields."""
    kind = hints.get(name)
    return name in hints and (
        not isinstance(kind, type) or not is_dataclass(kind) or isinstance(value, kind)
    )


def _with_field(request: Any, name: str, value: Any) -> Any:
    if _is_own(get_type_hints(type(request)), name, value):
        return replace(request, **{name: value})
    for field in fields(request):
        group = getattr(request, field.name)
        if is_dataclass(group) and name in {inner.name for inner in fields(group)}:
            return replace(request, **{field.name: _with_field(group, name, value)})
    raise TypeError(f"{type(request).__name__} has no field '{name}'")
