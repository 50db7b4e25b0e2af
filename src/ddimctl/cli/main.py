"""The entry point: the app, its global options, and the one error boundary."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import typer

from ddimctl.cli.commands.convert import convert
from ddimctl.cli.commands.evaluate import evaluate
from ddimctl.cli.commands.info import info
from ddimctl.cli.commands.interpolate import interpolate
from ddimctl.cli.commands.invert import invert
from ddimctl.cli.commands.reconstruct import reconstruct
from ddimctl.cli.commands.reference import reference
from ddimctl.cli.commands.replay import replay
from ddimctl.cli.commands.sample import sample
from ddimctl.cli.commands.train import train
from ddimctl.cli.examples import BEGIN, epilog
from ddimctl.cli.options.everywhere import ConfigOfAll, Debug, Version, debugging
from ddimctl.cli.options.groups import with_options
from ddimctl.cli.options.suggest import usage_error
from ddimctl.cli.options.typer_classes import Command, Group
from ddimctl.cli.output import console
from ddimctl.cli.system_errors import system_error
from ddimctl.errors import DdimctlError, Stopped
from ddimctl.runtime.signals import INTERRUPTED_CODE, TERMINATED_CODE, end_on_signals

app = typer.Typer(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
COMMANDS: Final = (
    *(sample, invert, interpolate, reconstruct, evaluate, reference, replay),
    *(train, info, convert),
)
for _command in COMMANDS:
    app.command(cls=Command, epilog=epilog(_command.__name__))(with_options(_command))


@app.callback(epilog=BEGIN)
def ddimctl(version: Version = False, config: ConfigOfAll = None, debug: Debug = False) -> None:
    """Denoising Diffusion Implicit Models: sample images from pretrained UNet checkpoints.

    The default checkpoint is a small one that is part of the program.
    Environment variables such as DDIMCTL_SAMPLE_STEPS also set options.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ddimctl` with these arguments, those of the process by default.

    Returns the exit code: 0 done, 1 failed, 2 the request is wrong, 75 stopped with a state saved,
    130 and 143 interrupted. Errors other than the project's own, and refusals of the system, are bugs
    and are not caught.
    """
    console.open_streams()
    end_on_signals()
    for stream in (sys.stdout, sys.stderr):  # a name that the locale lacks must not end a run
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if not sys.warnoptions and not debugging():
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # for torch's own, before its import
    try:
        code = app(argv, prog_name="ddimctl", standalone_mode=False) or 0
    except DdimctlError as error:
        return _failed(error)
    except typer.TyperException as error:
        return _usage_error(error)
    except (OSError, RuntimeError) as error:
        if (known := system_error(error)) is None:
            raise
        return _failed(known)
    except KeyboardInterrupt:
        code = INTERRUPTED_CODE
    except SystemExit as end:
        if end.code != TERMINATED_CODE:
            raise
        code = TERMINATED_CODE
    if code in (INTERRUPTED_CODE, TERMINATED_CODE):
        console.say("interrupted", "the run is incomplete.")
    return int(code)


def _failed(error: DdimctlError) -> int:
    """Two lines for an error of ours."""
    if debugging():
        traceback.print_exc()
    label = "stopped" if isinstance(error, Stopped) else "error"
    console.complain(label, error.cause, error.remedy)
    return error.exit_code


def _usage_error(error: typer.TyperException) -> int:
    """Two lines for wrong usage, in the form of our own errors."""
    cause, remedy = usage_error(error)
    if cause:
        console.complain("error", cause, remedy)
    return error.exit_code
