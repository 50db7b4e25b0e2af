"""The folder that a run writes to: found or made, and its own for as long as it runs."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
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
from ddimctl.jobs.sample.manifest import check_same_run, make_manifest
from ddimctl.jobs.sample.outputs import OutputPaths, bytes_needed
from ddimctl.jobs.sample.plan import Plan, SampleRequest
from ddimctl.runtime.ranks import Ranks, refuse_several

RUNS: Final = Path("runs")


@contextmanager
def run_folder(
    request: SampleRequest, command: str, ranks: Ranks | None = None
) -> Iterator[SampleRequest]:
    """The request with its folder named, made and locked, and without strays of runs that died.

    ranks: the processes that work in it together; the first finds, makes and locks it for all.
    None for commands that run in one process.

    One that has none gets the next numbered folder. A folder made here in which nothing was
    written is removed again. With request.dry_run nothing is made or locked.
    Raises RequestError when another run is in the folder, StorageError.
    """
    if ranks is None:
        refuse_several(command)
        ranks = Ranks()
    if not ranks.first:
        out = ranks.share("out", None)
        yield request if out is None else replace(request, out=Path(out))
        return
    with _own_folder(request, command) as request:
        ranks.share("out", None if request.out is None else str(request.out))
        yield request


@contextmanager
def _own_folder(request: SampleRequest, command: str) -> Iterator[SampleRequest]:
    if request.out is not None and request.out.exists() and not request.out.is_dir():
        raise RequestError(f"--out {request.out} is a file.", "Name a folder.")
    if request.out is None and request.resume:
        raise RequestError("--resume needs the folder to go on in.", "Name it with --out.")
    if request.dry_run:
        yield request
    elif request.out is not None:
        with folder_lock(request.out, command):
            clean_temporaries(request.out)
            yield request
    else:
        made = [] if RUNS.exists() else [RUNS]
        out = create_numbered_folder(RUNS, command)
        try:
            with folder_lock(out, command):
                yield replace(request, out=out)
        finally:
            for folder in (out, *made):
                with suppress(OSError):  # there is something in it
                    folder.rmdir()


def go_on(out: Path) -> str:
    """What to do after a run in this folder was cut off."""
    return f"The same command with --out {out} --resume goes on."


def begin_run(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    paths: OutputPaths,
    recorded: dict[str, Any] | None,
) -> None:
    """Check that the run can go on, or begin it: its manifest before all else.

    request.out: the run's own folder. recorded: the manifest to go on from. Raises RequestError
    when that is of another run, StorageError also where space will clearly not do.
    """
    layout = paths.layout
    begun = make_manifest(request, plan, checkpoint, layout, device)
    if recorded is not None:
        check_same_run(recorded, begun, layout)
    needed = bytes_needed(request.save, plan.count, plan.shape)
    check_writable(paths.out, needed - paths.bytes_taken())
    if recorded is None:
        paths.remove_parts()
        if request.force:
            paths.remove_earlier_run()
        write_json(paths.of("manifest"), begun)  # before all else: without it nothing is resumed
    if "images" in request.save:
        make_folder(paths.of("images"))
        clean_temporaries(paths.of("images"))
