"""Usage errors in this program's words, with a suggestion for a mistyped word."""

import re
from typing import Any, Final

import typer

from ddimctl.cli.options.config import long_flag, origin
from ddimctl.errors import brief, did_you_mean

# Typer's messages about a command line, and ours.
_OF_LINES: Final = (
    (r"No such command '(.*?)'\.", r"unknown command '\1'."),
    (r"Missing command\.", "a command is missing."),
    (r"Got unexpected extra argument\(s\) \((.*)\)", r"too many arguments: \1."),
    (r"Option '(.*)' requires an argument\.", r"\1 needs a value."),
    (r"Option '(.*)' does not take a value\.", r"\1 takes no value."),
)
# pydantic's kinds of wrong values (Typer converts values with it), and what is wanted.
_OF_VALUES: Final = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}


def usage_error(error: typer.TyperException) -> tuple[str, str]:
    """Cause and remedy of wrong usage, with a suggestion where a word is mistyped.

    The cause names the option, or the environment variable or the place in a file that its value
    is from. It is empty where the help has been shown instead.
    """
    context: Any = getattr(error, "ctx", None)
    remedy = f"{context.command_path if context else 'ddimctl'} --help"
    if hasattr(error, "possibilities"):
        mistyped = str(getattr(error, "option_name", ""))
        near = did_you_mean(mistyped, error.possibilities or ())
        return f"unknown option {mistyped}.{near}", remedy
    param = getattr(error, "param", None)
    if context is None or param is None:
        return _line_fault(error.format_message()), remedy
    name = long_flag(param)
    if not error.message:
        return f"{name} is missing.", remedy
    place = origin(context, param)
    return f"{place or name} {_value_fault(error)}", "Correct the value there." if place else remedy


def _line_fault(text: str) -> str:
    for theirs, ours in _OF_LINES:
        text = re.sub(theirs, ours, text, flags=re.DOTALL)
    return text


def _value_fault(error: typer.TyperException) -> str:
    """What is wrong with a value, as the predicate of a sentence about its option."""
    if choice := re.search(r"'([^']*)' is not one of (.*)\.$", error.message, re.DOTALL):
        words = re.findall(r"'([^']*)'", choice[2])
        return (
            f"must be one of {', '.join(words)}, not '{choice[1]}'.{did_you_mean(choice[1], words)}"
        )
    errors = getattr(error.__cause__, "errors", None)
    if errors is None:  # one of our checks
        return error.message
    found = errors()[0]
    return f"must be {_OF_VALUES.get(found['type'], 'a valid value')}, not {brief(found['input'])}."
