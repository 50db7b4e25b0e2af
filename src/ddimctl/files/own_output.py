"""What the runs of this program leave, and whether a run may write into a folder."""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from ddimctl.errors import RequestError
from ddimctl.files.atomic import storage_errors

SHEET: Final = ".inversion.png"
"""How the sheets end that inversion makes, which are no images to read."""

MANIFEST: Final = "manifest.json"
_REPORTS: Final = tuple(
    {"table.csv", "table.json", *names}
    for plot in ("png", "svg")
    for names in ((f"curve.{plot}", "seeds.png"), (f"plot.{plot}",))  # evaluate, reconstruct
)
_OF_TRAINING: Final = re.compile(r"step-\d{8,}\.(pt|png)")
_HEAD: Final = 1000  # bytes of a manifest in which the program's name is

_ANOTHER: Final = "or name another --out."
TAKEN: Final = f"Continue with --resume, overwrite with --force, {_ANOTHER}"
"""The remedy where an earlier run's files are in the way."""
_OVERWRITE: Final = f"Overwrite it with --force, {_ANOTHER}"


def is_run(
    names: Collection[str],
    inside: Callable[[str], Iterable[str]],
    head: Callable[[str, int], bytes],
) -> bool:
    """Whether a folder with these names in it is a run of this program, of any version.

    inside: the names in a folder of it. head: the first bytes of a file of it.
    """
    if MANIFEST in names and b'"ddimctl"' in head(MANIFEST, _HEAD):
        return True
    if any(report.issubset(names) for report in _REPORTS):
        return True
    folders = [name for name in ("state", "samples") if name in names]
    return any(_OF_TRAINING.fullmatch(name) for folder in folders for name in inside(folder))


def check_output(
    out: Path,
    held: str | None = None,
    *,
    resume: bool = False,
    force: bool = False,
    resumable: bool = True,
    data: Path | None = None,
) -> None:
    """Raise RequestError unless a command may write into the folder: it is new, empty but for hidden
    files, holds a run to resume, or --force was given.

    held: what of this command's the folder holds, such as "an evaluation", or None. resumable:
    whether the command has --resume. data: images to read, which no run may share a folder with.
    """
    with storage_errors(out):
        if out.exists() and not out.is_dir():
            raise RequestError(f"--out {out} is a file.", "Name a folder.")
        if data is not None and out.exists() and data.exists() and out.samefile(data):
            raise RequestError(f"--out {out} holds the images to read.", "Name another --out.")
        if force or (resume and held) or not out.exists():
            return
        if all(entry.name.startswith(".") for entry in out.iterdir()):
            return
    if resume:
        raise RequestError(
            f"{out} holds other files, but no run to continue from.",
            f"Start with --force, {_ANOTHER}",
        )
    raise RequestError(
        f"{out} holds {held} already." if held else f"{out} is not empty.",
        TAKEN if resumable else _OVERWRITE,
    )


def check_new_file(path: Path, *, force: bool) -> None:
    """Raise RequestError for a file that would be written over, unless --force was given."""
    if path.exists() and not force:
        raise RequestError(f"{path} exists.", _OVERWRITE)


def remove_files(out: Path, paths: Iterable[Path]) -> None:
    """Remove files of an earlier run in the folder, where they are there.

    Raises RequestError, before any is removed, for one that is elsewhere: in a folder that is a
    link. Raises StorageError.
    """
    there = [path for path in paths if path.is_symlink() or path.exists()]
    for path in there:
        for folder in path.relative_to(out).parents:
            if (out / folder).is_symlink() and out != out / folder:
                raise RequestError(
                    f"{out / folder} is a link, and --force removes nothing elsewhere.",
                    f"Remove the link, {_ANOTHER}",
                )
    for path in there:
        with storage_errors(path):
            path.unlink(missing_ok=True)
