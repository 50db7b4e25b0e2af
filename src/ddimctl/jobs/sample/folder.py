"""The folder that a run writes to: found or made, and its own for as long as it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError
from ddimctl.files.atomic import (
    check_writable,
    clean_temporaries,
    create_numbered_folder,
    make_folder,
    write_json,
)
from ddimctl.files.lock import folder_lock
from ddimctl.files.own_output import check_output
from ddimctl.jobs.sample.manifest import Layout, check_same_run, make_manifest
from ddimctl.jobs.sample.outputs import OutputPaths, bytes_needed
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.runtime.ranks import Ranks, refuse_several

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
    recorded: dict[str, Any] | None = None
    force: bool = False
    named: Path | None = None

    @property
    def paths(self) -> OutputPaths:
        """Where in the folder each thing is."""
        return OutputPaths(self.out, self.layout, self.outputs.format)


@contextmanager
def run_folder(
    out: Path | None,
    command: str,
    *,
    resume: bool = False,
    dry_run: bool = False,
    ranks: Ranks | None = None,
) -> Iterator[Path | None]:
    """The folder of a run, made and locked, without strays of runs that died.

    out: None is the next numbered folder. One made here in which nothing was written is removed
    again. In a dry run nothing is made or locked, and the folder may be None.
    ranks: the processes that work in it together; the first finds, makes and locks it for all.
    None for commands that run in one process.
    Raises RequestError when another run is in the folder, StorageError.
    """
    if ranks is None:
        refuse_several(command)
        ranks = Ranks()
    if not ranks.first:
        shared = ranks.share("out", None)
        yield out if shared is None else Path(shared)
        return
    with _own_folder(out, command, resume, dry_run) as own:
        ranks.share("out", None if own is None else str(own))
        yield own


@contextmanager
def _own_folder(
    out: Path | None, command: str, resume: bool, dry_run: bool
) -> Iterator[Path | None]:
    if out is not None:
        check_output(out, resume=resume, force=True)  # what it may hold is the command's to say
    if out is None and resume:
        raise RequestError("--resume needs the folder to go on in.", "Name it with --out.")
    if dry_run:
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
    return f"The same command with --out {out} --resume goes on."


def begin_run(run: RunFolder, plan: Plan, checkpoint: Checkpoint, device: str) -> None:
    """Check that the run can continue, or begin it: its manifest before all else.

    Raises RequestError when the recorded run is another, StorageError also where space will clearly
    not do.
    """
    paths, save = run.paths, run.outputs.save
    begun = make_manifest(run.outputs, plan, checkpoint, run.layout, device)
    if run.recorded is not None:
        check_same_run(run.recorded, begun, run.layout)
    needed = bytes_needed(save, plan.count, plan.shape)
    check_writable(paths.out, needed - paths.bytes_taken())
    if run.recorded is None:
        paths.remove_parts()
        if run.force:
            paths.remove_earlier_run()
        write_json(paths.of("manifest"), begun)  # before all else: without it nothing is resumed
    if "images" in save:
        make_folder(paths.of("images"))
        clean_temporaries(paths.of("images"))
