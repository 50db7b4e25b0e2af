"""The folder that a run writes to: found or made, and its own for as long as it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ddimctl.errors import RequestError
from ddimctl.files.atomic import clean_temporaries, create_numbered_folder
from ddimctl.files.lock import folder_lock
from ddimctl.files.own_output import check_output
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.requests import OutputOptions
from ddimctl.jobs.sample.outputs import Layout, OutputPaths
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.runtime.distributed import Ranks, refuse_several

RUNS: Final = Path("runs")


@dataclass(frozen=True)
class RunFolder:
    """A sampling run in its folder.

    recorded: the manifest of the run to continue, or None.  force: whether what an earlier run left
    is removed.  named: the --out of the command that continues it, where that is another folder.
    """

    out: Path
    layout: Layout
    outputs: OutputSettings
    recorded: JsonObject | None = None
    force: bool = False
    named: Path | None = None

    @property
    def paths(self) -> OutputPaths:
        """Where in the folder each thing is."""
        return OutputPaths(self.out, self.layout, self.outputs.format)


@contextmanager
def run_folder(
    output: OutputOptions, command: str, ranks: Ranks | None = None
) -> Iterator[Path | None]:
    """The folder of a run, made and locked, without strays of runs that died.

    Without --out it is the next numbered folder, which is removed again where nothing was written.
    In a dry run nothing is made or locked, and the folder may be None.
    ranks: the processes that work in it together; the first finds, makes and locks it for all.
    None for commands that run in one process.
    Raises RequestError when another run is in the folder, StorageError.
    """
    if ranks is None:
        refuse_several(command)
        ranks = Ranks()
    with _own_folder(output, command) if ranks.first else nullcontext() as own:
        yield ranks.share(own)


@contextmanager
def _own_folder(output: OutputOptions, command: str) -> Iterator[Path | None]:
    out = output.out
    if out is not None:
        check_output(out, force=True)  # what it may hold is the command's to say
    if out is None and output.resume:
        raise RequestError(
            "--resume needs the folder of the run to continue.", "Name it with --out."
        )
    if output.dry_run:
        yield out
    elif out is not None:
        with folder_lock(out, command):
            clean_temporaries(out)
            yield out
    else:
        made = [] if RUNS.exists() else [RUNS]
        out = create_numbered_folder(RUNS, command)
        try:
            with folder_lock(out, command):
                yield out
        finally:
            for folder in (out, *made):
                with suppress(OSError):  # there is something in it
                    folder.rmdir()


def go_on(out: Path) -> str:
    """What to do after a run in this folder was cut off."""
    return f"Continue with the same command and --out {out} --resume."
