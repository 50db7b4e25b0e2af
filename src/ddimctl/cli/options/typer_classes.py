"""Commands whose options may come from environment variables, and whose help may meet a full disk.

The help shows options without a value as such, after which Typer writes `<bool>`.
"""

from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

from ddimctl.cli.options.config import flags_of, variable
from ddimctl.cli.output.console import printing

_GENERAL: Final = "General"  # the help's last panel: options of every command


class _Help:
    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with printing(gone=0):  # as `--help | head -1` wants it
            try:
                super().format_help(ctx, formatter)  # type: ignore[misc]
            except SystemExit as end:  # rich's answer to a reader that has gone away
                raise BrokenPipeError from end


class Command(_Help, TyperCommand):
    """A command."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        for flag, param in flags_of(self).items():
            param.envvar = variable(str(name), flag)
            param.show_envvar = False

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of every command are in a panel of their own; an argument's name is its type."""
        params = super().get_params(ctx)
        for param in params:
            if param.name in ("config", "debug", "help"):
                param.rich_help_panel = _GENERAL
            if param.param_type_name == "argument":
                param.display_type_rich = _no_type
        return params


def _no_type(ctx: Any) -> None:
    """In place of Typer's, which shows `<list[Path]>`."""


class Group(_Help, TyperGroup):
    """A group of commands."""
