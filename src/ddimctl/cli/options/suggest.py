"""What usage errors say, and what somebody who mistyped a word may have meant."""

import re
from typing import Any, Final

import typer

from ddimctl.cli.options.config import long_flag, origin
from ddimctl.errors import brief, did_you_mean

# How pydantic, with which Typer converts values, calls what is wrong.
_KINDS: Final = {
    "int_parsing": "{value} is not a whole number.",
    "int_from_float": "{value} is not a whole number.",
    "int_parsing_size": "{value} is too large.",
    "float_parsing": "{value} is not a number.",
    "bool_parsing": "{value} is neither true nor false.",
}
_RANGES: Final = ("greater_than_equal", "less_than_equal")


def usage_error(error: typer.TyperException) -> tuple[str, str]:
    """Cause and remedy of wrong usage, with what may have been meant.

    The cause names the option, or the variable or the place in a file that its value is from. It is
    empty where the help has been shown instead.
    """
    context: Any = getattr(error, "ctx", None)
    remedy = f"{context.command_path if context else 'ddimctl'} --help"
    options = getattr(error, "possibilities", None)
    if options:  # of an option that does not exist
        mistyped = str(getattr(error, "option_name", ""))
        return f"no such option: {mistyped}.{did_you_mean(mistyped, options)}", remedy
    param = getattr(error, "param", None)
    if context is None or param is None:
        text = error.format_message().replace("argument(s)", "argument")
        return f"{text[:1].lower()}{text[1:]}", remedy
    name = long_flag(param)
    if not error.message:
        return f"{name} is missing.", remedy
    place = origin(context, param)
    return f"{place or name}: {_fault(error, param)}", "Correct it there." if place else remedy


def _fault(error: typer.TyperException, param: Any) -> str:
    """What is wrong with a value."""
    text = error.message.removeprefix("Value error, ")
    choice = re.search(r"'([^']*)' is not one of (.*)\.$", text, re.DOTALL)
    if choice:
        return text + did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]))
    errors = getattr(error.__cause__, "errors", None)
    if errors is None:  # our own
        return text
    found = errors()[0]
    value = brief(found["input"])
    if found["type"] in _RANGES:
        return f"{value.strip(chr(39))} is {_outside(param.min, param.max)}."
    return _KINDS.get(found["type"], text).format(value=value)


def _outside(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"below {low}" if high is None else f"above {high}"
    return f"not in {low} ... {high}"
