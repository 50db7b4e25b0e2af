"""Plain values as a two-column listing."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ddimctl.cli.output.console import printable

_LONG: Final = 8  # numbers of a list that are shown in full
_MANY: Final = 200  # entries of anything that are shown


def listing(record: Mapping[str, Any]) -> list[str]:
    """One line per entry, the values aligned; entries of a mapping are indented under its name.

    Entries that say nothing (None, empty) are left out.
    """
    rows = list(_rows(record, ""))
    width = max((len(name) for name, value in rows if value), default=0)
    return [f"{name:<{width}}  {value}".rstrip() for name, value in rows]


def _rows(record: Mapping[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    for number, (key, value) in enumerate(record.items()):
        if number == _MANY:
            yield f"{indent}...", f"{len(record)} in all"
            return
        name = indent + printable(str(key)).replace("_", " ")
        if value is None or value in ({}, [], (), ""):
            continue
        if isinstance(value, Mapping):
            yield name, ""
            yield from _rows(value, f"{indent}  ")
        elif _is_list(value) and any(isinstance(item, str) and len(item) > 30 for item in value):
            for item in value[:_MANY]:
                yield name, _text(item)
                name = ""
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if _is_list(value):
        return _list_text(value)
    return printable(str(value))


def _list_text(values: Sequence[Any]) -> str:
    if len(values) > _LONG and all(isinstance(value, int) for value in values):
        if list(values) == list(range(values[0], values[0] + len(values))):
            return f"{values[0]} ... {values[-1]}"
        shown = ", ".join(map(str, values[:4]))
        return f"{shown}, ... {values[-1]} ({len(values)} in all)"
    shown = ", ".join(printable(str(value)) for value in values[:_MANY])
    return shown if len(values) <= _MANY else f"{shown}, ... ({len(values)} in all)"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
