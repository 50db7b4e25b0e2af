"""The only way anything is written: a file under its final name is always whole."""

import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from ddimctl.errors import StorageError

if sys.platform != "win32":
    import fcntl

PREFIX: Final = ".ddimctl-"
"""Temporary files are dotfiles that start with this."""

_NUMBERED: Final = re.compile(r"(\d{5,})(?:-|$)", re.ASCII)
_ELSEWHERE: Final = "Choose another folder with --out."
_CAUSES: Final = {
    errno.ENOSPC: ("no space is left on the disk", "Free some space, or choose another disk."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, or choose another disk."),
    errno.EFBIG: ("the file is too large for this disk", "Choose another disk."),
    errno.EACCES: ("no permission to write there", _ELSEWHERE),
    errno.EPERM: ("no permission to write there", _ELSEWHERE),
    errno.EROFS: ("the disk is read-only", _ELSEWHERE),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", _ELSEWHERE),
    errno.EEXIST: ("a part of the path is a file or a broken link, not a folder", _ELSEWHERE),
    errno.EISDIR: ("it is a folder, not a file", "Pass the name of a file."),
    errno.ENOENT: ("its folder no longer exists", "Restore the folder if it was moved."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one."),
}


@contextmanager
def open_atomic(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary file to write, which takes path's place whole when the body ends.

    Missing folders are made; permissions follow the umask; a link is written through. When the
    body raises, or the process dies, an earlier file of that name stays as it was. sync=False
    leaves the file to a later sync_files, and makes no folder: one of many files whose folder is
    gone, moved away in the midst of a run, is an error at once.
    Raises StorageError when the disk refuses, also for writes within the body.
    """
    target = Path(os.path.realpath(path))
    with storage_errors(path):
        if target.exists() and not target.is_file():
            raise (
                OSError(errno.EISDIR, "") if target.is_dir() else OSError("it is not a plain file")
            )
        if sync:
            make_folder(target.parent)
        temporary, file = _open_temporary(target.parent)
        try:
            with file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
                if sys.platform == "win32":  # which renames closed files only
                    file.close()
                temporary.replace(target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        if sync:
            _sync_folder(target.parent)


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write a whole file as open_atomic does."""
    with open_atomic(path, sync=sync) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as indented JSON, in their order. NaN is a ValueError: JSON has none."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sync_files(paths: Iterable[Path]) -> None:
    """Make files written with sync=False survive a power cut: each file, then each folder once."""
    folders: dict[Path, None] = {}
    for path in paths:
        with storage_errors(path), path.open("r+b") as file:
            os.fsync(file.fileno())
        folders[path.parent] = None
    for folder in folders:
        with storage_errors(folder):
            _sync_folder(folder)


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing. Raises StorageError."""
    with storage_errors(path):
        if path.is_dir():
            return
        path.mkdir(parents=True, exist_ok=True)
        _sync_folder(path.parent)


def check_writable(folder: Path, bytes_needed: int = 0) -> None:
    """Raise StorageError unless files can be written in the folder, as many bytes as are needed.

    The folder, or the one that it would be made in, is tried with a file; what a quota leaves is
    not known. For use before work that would otherwise be lost.
    """
    with storage_errors(folder):
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        temporary, file = _open_temporary(there)
        file.close()
        temporary.unlink(missing_ok=True)  # another run may have cleaned it away
        total, _, free = shutil.disk_usage(there)
    if 0 < total and free < bytes_needed:  # a disk without a size does not tell
        raise StorageError(
            f"{folder}: {_size(bytes_needed)} are needed, {_size(free)} are free on the disk.",
            _CAUSES[errno.ENOSPC][1],
        )


def create_numbered_folder(base: Path, suffix: str) -> Path:
    """Make and return the next folder of a series, such as runs/00012-sample.

    The number follows the highest one there, whatever its suffix; a folder that another process
    makes at the same moment is never shared.
    """
    make_folder(base)
    with storage_errors(base):
        taken = [
            int(match[1]) for entry in base.iterdir() if (match := _NUMBERED.match(entry.name))
        ]
        number = max(taken, default=-1) + 1
        while True:
            folder = base / f"{number:05d}-{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            _sync_folder(base)
            return folder


def clean_temporaries(folder: Path) -> None:
    """Remove what runs that died left in the folder; the temporaries of living ones are locked."""
    with storage_errors(folder):
        strays = [entry for entry in folder.iterdir() if entry.name.startswith(PREFIX)]
    for stray in strays:
        # Another's lock, another's file, or already gone: not ours to remove.
        with suppress(OSError), stray.open("r+b") as file:
            if sys.platform != "win32":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stray.unlink()
        if sys.platform == "win32":  # which removes closed files only, and no file that is open
            with suppress(OSError):
                stray.unlink()


def _size(count: float) -> str:
    """Such as "1.5 GB"."""
    units = ["bytes", "kB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"


def _open_temporary(folder: Path) -> tuple[Path, BinaryIO]:
    """A new dotfile in the folder, locked for as long as it is open."""
    while True:
        temporary = folder / f"{PREFIX}{secrets.token_hex(8)}"
        file = cast(BinaryIO, temporary.open("xb"))
        if sys.platform != "win32":
            with suppress(OSError):  # some network disks have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink == 0:  # cleaned away before the lock was had
                file.close()
                continue
        return temporary, file


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # where a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # disks that cannot sync folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Within, an error of the disk becomes a StorageError that names the path."""
    try:
        yield
    except OSError as error:
        raise _storage_error(path, error) from error
    except RuntimeError as error:
        # torch.save puts an error of its own in front of the disk's
        if not isinstance(error.__context__, OSError):
            raise
        raise _storage_error(path, error.__context__) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    plain = error.strerror or str(error) or type(error).__name__
    why, remedy = _CAUSES.get(error.errno or 0, (plain, _ELSEWHERE))
    return StorageError(f"{path} cannot be written: {why}.", remedy)
