"""One run in one folder: a lock that dies with its holder."""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ddimctl.errors import RequestError
from ddimctl.files.atomic import make_folder, storage_errors

if sys.platform != "win32":
    import fcntl

NAME: Final = ".ddimctl.lock"
"""A dotfile in the folder; no temporary, which clean_temporaries would take away."""

_LONGEST: Final = 500  # bytes of what a holder says of itself


@contextmanager
def folder_lock(folder: Path, command: str) -> Iterator[None]:
    """Within, no other run of ddimctl works in the folder, which is made where it is missing.

    command: what others are told of the holder, such as "sample". At the end the lock file is
    removed, and so are the folders made here if the body left nothing in them. A killed run leaves
    its file unlocked, for the next one to take over. Where there are no locks (Windows, some
    network disks) nobody is kept out.
    Raises RequestError naming the holder, StorageError when the folder cannot be written to.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        make_folder(folder)
        with _locked(folder, command):
            yield
    finally:
        for each in missing:
            with suppress(OSError):  # there is something in it
                each.rmdir()


@contextmanager
def _locked(folder: Path, command: str) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    path = folder / NAME
    descriptor = _acquire(path)
    try:
        with storage_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder(command), 0)
        yield
    finally:
        # Removed while it is still locked: who opened it before finds, once it has the lock, that
        # the path is another's or nobody's, and begins anew.
        with suppress(OSError):
            if _is_at(descriptor, path):
                path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """A descriptor of the lock file, locked."""
    while True:
        make_folder(path.parent)
        with storage_errors(path):
            try:  # a link is not followed: what it leads to would be emptied
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # its holder has just removed the folder
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, _LONGEST, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise RequestError(
                f"{path.parent} is in use by {holder or 'another run'}.",
                "Wait until it has ended, or name another --out.",
            ) from None
        except OSError:  # a disk without locks
            return descriptor
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _holder(command: str) -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return f"`ddimctl {command}`, process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode()
