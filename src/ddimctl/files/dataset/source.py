"""Where the images of a data set come from: a folder or a zip, which is read only in memory."""

import heapq
import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final

from ddimctl.errors import DataError, RequestError
from ddimctl.files.untrusted.guards import check_plain_file, is_folder

SUFFIXES: Final = frozenset(
    (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
)
MAX_BYTES: Final = 256 * 2**20  # of one encoded image
_BOMB_BYTES, _BOMB_RATIO = (
    16 * 2**20,
    200,
)  # encoded images barely deflate; this much is no image
_ENCRYPTED: Final = 0x1  # in a zip member's flags


@dataclass(frozen=True)
class Entry:
    """One image of a source, not opened yet.

    name:  POSIX path inside the source, without "..".
    size:  encoded bytes.  stamp: mtime in ns, or the CRC-32 that a zip records.
    place: where to read it.
    """

    name: str
    size: int
    stamp: int
    place: Path | zipfile.ZipInfo


def scan(source: Path) -> list[Entry]:
    """The images, by suffix, of a folder (recursively) or a zip, sorted by name.

    Hidden files are left out. Each folder is visited once, whatever links lead to it; a link that
    leads to a folder around the source is not followed. A zip that holds nothing but one folder
    of folders is read as if that one were its top.
    Raises RequestError when source does not exist, DataError when it holds no images.
    """
    try:
        source.stat()
    except FileNotFoundError as error:
        raise RequestError(
            f"{source} does not exist.", "Name a folder or a zip of images."
        ) from error
    except (OSError, ValueError):  # opening it says why
        pass
    entries = list(_walk(source)) if is_folder(source) else _members(source)
    if not entries:
        known = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise DataError(f"{source} holds no images.", f"Supported file types: {known}.")
    return sorted(entries, key=lambda entry: entry.name)


@contextmanager
def open_source(source: Path) -> Iterator[Callable[[Entry], bytes]]:
    """A function that reads an entry of the source; it may be called from many threads.

    It raises DataError for an entry that can never be read, OSError where the system refused.
    """
    if is_folder(source):
        yield _read_file
        return
    with _open_zip(source) as archive:
        lock = threading.Lock()  # ZipFile counts its open members without one

        def read(entry: Entry) -> bytes:
            with lock:
                return _read_member(archive, entry)

        yield read


def printable(name: str) -> str:
    """The name with line breaks, terminal codes and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _walk(top: Path) -> Iterator[Entry]:
    seen = {_identity(parent.stat()) for parent in top.resolve().parents}
    folders, links = [top], list[Path]()
    while folders or links:
        # real folders before links, so that a folder goes by its own name where it has one
        here = folders.pop() if folders else heapq.heappop(links)
        try:
            identity = _identity(here.stat())
            paths = [] if identity in seen else list(here.iterdir())
        except OSError as error:
            raise DataError(f"{here}: {error.strerror}.", "Check its permissions.") from error
        seen.add(identity)
        for path in paths:
            if _hidden(path.name):
                continue
            name = path.relative_to(top).as_posix()
            try:
                status = path.stat()
            except OSError:  # a link to nothing: reading will say so
                if _is_image(name):
                    yield Entry(name, 0, 0, path)
                continue
            if stat.S_ISDIR(status.st_mode):
                if path.is_symlink():
                    heapq.heappush(links, path)
                else:
                    folders.append(path)
            elif stat.S_ISREG(status.st_mode) and _is_image(name):
                yield Entry(name, status.st_size, status.st_mtime_ns, path)


def _members(source: Path) -> list[Entry]:
    with _open_zip(source) as archive:
        entries = [
            Entry(_inside(info.filename), info.file_size, info.CRC, info)
            for info in archive.infolist()
            if not info.filename.endswith("/")
        ]
    entries = [
        entry
        for entry in entries
        if _is_image(entry.name) and not any(map(_hidden, entry.name.split("/")))
    ]
    tops = {entry.name.split("/")[0] for entry in entries}
    if len(tops) == 1 and all(entry.name.count("/") >= 2 for entry in entries):
        return [replace(entry, name=entry.name.partition("/")[2]) for entry in entries]
    return entries


def _open_zip(source: Path) -> zipfile.ZipFile:
    check_plain_file(source)
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
        raise DataError(
            f"{source} is neither a folder nor a readable zip ({error}).",
            "Name a folder or a zip of images.",
        ) from error
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}.", "Check its permissions.") from error


def _read_file(entry: Entry) -> bytes:
    _check_size(entry.size)
    assert isinstance(entry.place, Path)
    with entry.place.open("rb") as file:
        return file.read(MAX_BYTES)


def _read_member(archive: zipfile.ZipFile, entry: Entry) -> bytes:
    info = entry.place
    assert isinstance(info, zipfile.ZipInfo)
    _check_size(info.file_size)
    if info.flag_bits & _ENCRYPTED:
        raise DataError("it is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"its compression (method {info.compress_type}) is not supported.")
    if info.file_size > max(_BOMB_BYTES, _BOMB_RATIO * info.compress_size):
        raise DataError(
            f"its {info.compress_size} bytes unpack to {info.file_size}, more than any image."
        )
    try:
        return archive.read(info)  # never more than file_size, and checked against its CRC-32
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise DataError(f"it is damaged in the zip ({error}).") from error


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"it has {size / 2**20:.0f} MiB; the limit is {MAX_BYTES // 2**20} MiB.")


def _inside(raw: str) -> str:
    """A zip member's name without what would lead out of a folder: roots and ".."."""
    return "/".join(p for p in raw.replace("\\", "/").split("/") if p not in ("", ".", ".."))


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
