"""What usage errors say, and what somebody who mistyped a word may have meant."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import typer


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that begins with a space, to be added to a sentence; empty where nothing is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def usage_cause(error: typer.TyperException, text: str) -> str:
    """The text of a usage error, or a part of it, with what may have been meant."""
    options = getattr(error, "possibilities", None)
    if options:  # of an option that does not exist
        return f"{error.message}.{did_you_mean(str(getattr(error, 'option_name', '')), options)}"
    text = text.replace("Value error, ", "")
    choice = re.search(r"'([^']*)' is not one of (.*)\.$", text, re.DOTALL)
    if choice is None:
        return text
    return text + did_you_mean(choice[1], re.findall(r"'([^']*)'", choice[2]))
