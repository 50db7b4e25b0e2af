"""Commands whose help shows options without a value as such: Typer writes `<bool>` after them.

And whose help may be written to a full disk.
"""

from typing import Any

from typer.core import TyperCommand, TyperGroup

from ddimctl.cli.output.console import printing


class _Switches:
    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with printing():
            super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_Switches, TyperCommand):
    """A command."""


class Group(_Switches, TyperGroup):
    """A group of commands."""
