"""The options of every command, which no request holds."""

import os
from pathlib import Path
from typing import Annotated, Final

import typer

from ddimctl.cli.options.config import VARIABLE, use_config
from ddimctl.cli.output.console import printing
from ddimctl.jobs.option import flag
from ddimctl.jobs.requests import OUTPUT

_CONFIG_HELP: Final = "TOML file with options; flags and environment variables take precedence."


def debugging() -> bool:
    """Whether errors come with their traceback: --debug, or DDIMCTL_DEBUG=1."""
    return os.environ.get("DDIMCTL_DEBUG", "0") not in ("", "0")


def _set_debug(value: bool) -> None:
    if value:
        os.environ["DDIMCTL_DEBUG"] = "1"  # processes that a job starts inherit it


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        with printing(gone=0):
            typer.echo(f"ddimctl {version('ddimctl')}")
        raise typer.Exit


Json = Annotated[bool, flag("--json", "Print the result as a JSON object.", OUTPUT)]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=use_config,
        is_eager=True,
        metavar="FILE",
        show_default=f"${VARIABLE}",
        help=_CONFIG_HELP,
    ),
]
ConfigOfAll = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", show_default=f"${VARIABLE}", help=_CONFIG_HELP),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error."
    ),
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
]
