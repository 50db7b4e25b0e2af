"""Options, each declared once: flags, unit, range and help, grouped as the help shows them.

Here are those that commands share; each command's own are in its module of options.

The words of each Literal are those of the layer that implements them; a test compares the two.
Where None is a default, the help says what takes its place.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from ddimctl.cli.options.config import VARIABLE, use_config
from ddimctl.cli.output.console import printing

MODEL = "Checkpoint"
OUTPUT = "Output"
MACHINE = "Device"
_OWN_CKPT = "$DDIMCTL_CKPT, else the bundled one"

Weights = Literal["auto", "ema", "raw"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def debugging() -> bool:
    """Whether errors come with their traceback: --debug, or DDIMCTL_DEBUG=1."""
    return os.environ.get("DDIMCTL_DEBUG", "0") not in ("", "0")


def _set_debug(value: bool) -> None:
    if value:
        os.environ["DDIMCTL_DEBUG"] = "1"  # processes that a job starts inherit it


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        with printing():
            typer.echo(f"ddimctl {version('ddimctl')}")
        raise typer.Exit


def finite(value: Any) -> Any:
    """Option callback: floats include nan and inf, which no range check stops."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("it must be a finite number.")
    return value


def reachable(value: Any) -> Any:
    """Option callback for paths: names that no disk takes and folders that are closed."""
    for path in value if isinstance(value, list) else [value]:
        try:
            if path is not None:
                path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # the job says so, or makes it
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise typer.BadParameter(f"'{path}' cannot be used: {why}.") from error
    return value


def option(*flags: str, panel: str, text: str, **more: Any) -> Any:
    return Option(*flags, help=text, rich_help_panel=panel, **more)


def beginning(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Which of the words complete what has been typed, for an option that takes others, too."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


# --- everywhere ---------------------------------------------------------------------------------

Version = Annotated[
    bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
]
Debug = Annotated[
    bool,
    Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error."),
]
_CONFIG_TEXT = "A TOML file of options; flags and the environment come before it."
Config = Annotated[
    Path | None,
    Option(
        "--config",
        callback=use_config,
        is_eager=True,
        metavar="FILE",
        show_default=f"${VARIABLE}",
        help=_CONFIG_TEXT,
    ),
]
ConfigOfAll = Annotated[
    Path | None,
    Option("--config", metavar="FILE", show_default=f"${VARIABLE}", help=_CONFIG_TEXT),
]
Json = Annotated[bool, option("--json", panel=OUTPUT, text="Print the result as a JSON object.")]
Force = Annotated[bool, option("--force", panel=OUTPUT, text="Overwrite what is there already.")]
Device = Annotated[
    str,
    option(
        "--device", panel=MACHINE, metavar="NAME", text="auto (CUDA if there), cpu, cuda, cuda:1."
    ),
]
Compute = Annotated[
    Precision | None,
    option(
        "--precision",
        panel=MACHINE,
        show_default="auto",
        text="Numbers that the network computes in; auto is bf16 on CUDA, else fp32.",
    ),
]
Compile = Annotated[
    bool, option("--compile", panel=MACHINE, text="torch.compile the network; pays in long runs.")
]

# --- which checkpoint ---------------------------------------------------------------------------

Ckpt = Annotated[
    str | None,
    option(
        "--ckpt",
        panel=MODEL,
        metavar="CKPT",
        show_default=_OWN_CKPT,
        text="A folder, a file, a hub id, or: bundled.",
    ),
]
CkptArgument = Annotated[
    str | None,
    Argument(
        metavar="CKPT", show_default=_OWN_CKPT, help="A folder, a file, a hub id, or: bundled."
    ),
]
Revision = Annotated[
    str | None,
    option("--revision", panel=MODEL, metavar="REV", text="Branch, tag or commit of a hub id."),
]
Variant = Annotated[
    str | None,
    option("--variant", panel=MODEL, metavar="NAME", text="Files of this variant, such as fp16."),
]
WeightsOf = Annotated[
    Weights,
    option("--weights", panel=MODEL, text="Averaged or raw; auto takes the averaged if there."),
]
ModelFlags = Annotated[
    list[str] | None,
    option(
        "--model-flag",
        panel=MODEL,
        metavar="NAME=VALUE",
        show_default=False,
        text="What the files do not say of the network, such as num_heads=4; repeat for more.",
    ),
]
AllowNonfinite = Annotated[
    bool,
    option("--allow-nonfinite", panel=MODEL, text="Take weights that are NaN or infinite."),
]
TrainedSize = Annotated[
    str | None,
    option(
        "--size",
        panel=MODEL,
        metavar="HxW",
        show_default="what the files say",
        text="Of the training's images, where the files do not say it.",
    ),
]
