"""Commands from requests: each field of a request and of its groups is an option of the command.

A field's Option describes it; this module makes Typer's parameters from it.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin, get_type_hints

import typer

from ddimctl.cli.options.config import origin
from ddimctl.jobs.option import Option, bounded, make_request, reachable

_REQUIRED: Final = inspect.Parameter.empty


class Entry(NamedTuple):
    """A value that an option gives. default: Parameter.empty where the option is required."""

    name: str
    type: Any
    option: Option
    default: Any


def entries(request: type) -> Iterator[Entry]:
    """The options of a request, those of its groups included, in the order of the fields."""
    hints = get_type_hints(request, include_extras=True)
    for field in fields(request):
        if is_dataclass(hints[field.name]):
            yield from entries(hints[field.name])
        else:
            default = _REQUIRED if field.default is MISSING else field.default
            yield from _entry(field.name, hints[field.name], default)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer reads it: each option of its request is a parameter.

    One parameter of the command is a request; others may have an Option, too. The returned function
    raises RequestError for a text that cannot be parsed and for options that contradict each other.
    """
    given = dict(inspect.signature(command).parameters)
    (name,) = (key for key, parameter in given.items() if is_dataclass(parameter.annotation))
    request = given.pop(name).annotation
    of_request = list(entries(request))
    of_command = [
        entry for p in given.values() for entry in _entry(p.name, p.annotation, p.default)
    ]

    @wraps(command)
    def flat(**values: Any) -> None:
        fields_of_request = _taken(of_request, values)
        own = _taken(of_command, values)
        command(**{name: make_request(request, **fields_of_request)}, **own, **values)

    parameters = {entry.name: _parameter(entry) for entry in of_request}
    parameters |= {key: p.replace(kind=p.KEYWORD_ONLY) for key, p in given.items()}
    parameters |= {entry.name: _parameter(entry) for entry in of_command}
    flat.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    flat.__annotations__ = {key: p.annotation for key, p in parameters.items()}
    return flat


def _entry(name: str, hint: Any, default: Any) -> Iterator[Entry]:
    """One, or none where the hint has no Option."""
    if get_origin(hint) is Annotated and isinstance(get_args(hint)[1], Option):
        value_type, option, *_ = get_args(hint)
        yield Entry(name, value_type, option, default)


def _taken(wanted: Iterable[Entry], values: dict[str, Any]) -> dict[str, Any]:
    """Take the entries' values out, as the request holds them; None is left to the default."""
    taken = {}
    for entry in wanted:
        value, option = values.pop(entry.name), entry.option
        if value is not None and option.parse:
            taken[entry.name] = option.parse(value, option.name)
        elif value is not None:
            taken[entry.name] = tuple(value) if isinstance(value, list) else value
    return taken


def _parameter(entry: Entry) -> inspect.Parameter:
    """What Typer makes the option from."""
    kind, option, default = entry.type, entry.option, entry.default
    if option.parse:
        kind = list[str] if option.repeat else str
        default = None if option.default is not None else _text(default)
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
        default = default or None
    return inspect.Parameter(
        entry.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind | None if default is None else kind, _typer_info(option)],
    )


def _text(default: Any) -> Any:
    """The default of a parsed option as it would be typed; None for none and for an empty list."""
    if default in (None, (), _REQUIRED):
        return default or None
    values = default if isinstance(default, tuple) else (default,)
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _typer_info(option: Option) -> Any:
    """Typer's Option or Argument."""
    settings: dict[str, Any] = {
        "help": option.help,
        "metavar": option.metavar,
        "rich_help_panel": option.panel,
        "callback": _callback(option),
        "show_default": True if option.default is None else option.default or False,
    }
    if option.words:
        settings["autocompletion"] = _completion(option.words)
    if option.flags:
        return typer.Option(*option.flags, **settings)
    return typer.Argument(**settings)


def _completion(words: Sequence[str]) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


def _callback(option: Option) -> Callable[..., Any]:
    def checked(context: Any, parameter: Any, value: Any) -> Any:
        if isinstance(value, Path) and origin(context, parameter):  # no shell has read it
            value = Path(os.path.expanduser(value))  # noqa: PTH111, leaves what it cannot expand
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                try:
                    _check(option, each)
                except ValueError as error:
                    raise typer.BadParameter(str(error)) from error
        return value

    return checked


def _check(option: Option, value: Any) -> None:
    """Raise ValueError for a path that cannot be looked up, a number outside the option's range or
    beyond what any run can have, and what the option's own check refuses."""
    if isinstance(value, Path):
        reachable(value)
    if option.check:
        option.check(value)
    if isinstance(value, int | float):
        bounded(option, value)
