"""One run in one folder: a lock that dies with its holder."""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from filelock import BaseFileLock, FileLock, Timeout

from ddimctl.errors import RequestError
from ddimctl.files.atomic import make_folder, storage_errors

NAME: Final = ".ddimctl.lock"
"""A dotfile in the folder; no temporary, which clean_temporaries would take away."""

_LONGEST: Final = 500  # bytes of what a holder says of itself
_PATIENCE: Final = 0.2  # seconds: a holder that is just leaving is waited for
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def folder_lock(folder: Path, command: str) -> Iterator[None]:
    """Within, no other run of ddimctl works in the folder, which is made where it is missing.

    command: what others are told of the holder, such as "sample". At the end the lock file is
    removed, and so are the folders made here if the body left nothing in them. A killed run leaves
    its file unlocked, for the next one to take over. On a disk without locks (some network disks)
    nobody is kept out.
    Raises RequestError naming the holder, StorageError when the folder cannot be written to.
    """
    with storage_errors(folder):
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
    path, held = folder / NAME, list[os.stat_result]()

    def sign(descriptor: int) -> None:
        held.append(os.fstat(descriptor))
        with suppress(OSError):  # a full disk fails at the run's first file
            os.ftruncate(descriptor, 0)
            os.write(descriptor, _holder(command))

    lock = FileLock(path, timeout=_PATIENCE, thread_local=False, on_acquired=sign)
    _acquire(lock, path)
    try:
        yield
    finally:
        # Removed while it is still locked: who opened it before finds, once it has the lock, that
        # the file is gone, and begins anew. Not removed where it is another's in a folder made anew.
        with suppress(OSError):
            if not held or os.path.samestat(held[-1], path.lstat()):
                path.unlink()
        lock.release()


def _acquire(lock: BaseFileLock, path: Path) -> None:
    """Raises RequestError naming who holds the lock, StorageError."""
    while True:
        make_folder(path.parent)
        with storage_errors(path):
            try:
                lock.acquire()
                return
            except Timeout:
                raise RequestError(
                    f"{path.parent} is in use by {_read_holder(path) or 'another run'}.",
                    "Wait until it ends, or choose another --out.",
                ) from None
            except FileNotFoundError:  # its holder has just removed the folder
                continue
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return
                raise


def _holder(command: str) -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    text = f"`ddimctl {command}`, process {os.getpid()} on {socket.gethostname()}, since {since}"
    return f"\n{text}\n".encode()  # nobody else can read the first byte on Windows: it is locked


def _read_holder(path: Path) -> str:
    with suppress(OSError), path.open("rb") as file:
        file.seek(1 if sys.platform == "win32" else 0)  # version 0.1 has no line break there
        return file.read(_LONGEST).decode(errors="replace").strip()
    return ""
