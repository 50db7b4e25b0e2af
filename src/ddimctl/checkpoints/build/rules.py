"""Rules for the settings of strangers: what a value must be, and how to say so."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from ddimctl.errors import CheckpointError, brief

MAX_BLOCKS: Final = 16
BELONGS: Final = "Use the config.json that belongs to the weights."


class Rule(NamedTuple):
    """valid: whether a value will do. wanted: what would, for messages."""

    valid: Callable[[Any], bool]
    wanted: str


def whole(least: int, most: int) -> Rule:
    return Rule(
        lambda value: type(value) is int and least <= value <= most,
        f"a whole number from {least} to {most}",
    )


def real(least: float, most: float) -> Rule:
    return Rule(
        lambda value: (
            type(value) in (int, float) and math.isfinite(value) and least <= value <= most
        ),
        f"a number from {least:g} to {most:g}",
    )


def one_of(*values: str) -> Rule:
    return Rule(lambda value: type(value) is str and value in values, " or ".join(values))


def or_none(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.valid(value), f"{rule.wanted}, or null")


def each(rule: Rule) -> Rule:
    return Rule(
        lambda value: (
            isinstance(value, list | tuple)
            and 1 <= len(value) <= MAX_BLOCKS
            and all(map(rule.valid, value))
        ),
        f"a list of 1 to {MAX_BLOCKS}, each {rule.wanted}",
    )


def either(*rules: Rule) -> Rule:
    """One of several rules."""
    return Rule(
        lambda value: any(rule.valid(value) for rule in rules),
        ", or ".join(rule.wanted for rule in rules),
    )


FLAG: Final = Rule(lambda value: type(value) is bool, "true or false")
TEXT: Final = Rule(lambda value: type(value) is str and len(value) <= 100, "a short name")
CHANNELS: Final = whole(1, 2**16)


def check_rules(config: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> None:
    """Raise CheckpointError for a setting that breaks its rule. Settings that are not there, and
    those without a rule, are not looked at. where: the file, for messages.
    """
    for name, rule in rules.items():
        if name in config and not rule.valid(config[name]):
            raise CheckpointError(
                f"{where}: {name} is {brief(config[name])}, not {rule.wanted}.", BELONGS
            )
