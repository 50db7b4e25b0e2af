"""Commands whose help shows options without a value as such: Typer writes `<bool>` after them."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Switches:
    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Command(_Switches, TyperCommand):
    """A command."""


class Group(_Switches, TyperGroup):
    """A group of commands."""
