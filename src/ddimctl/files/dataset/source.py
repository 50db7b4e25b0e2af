"""Where the images of a data set come from: a folder or a zip, which is read only in memory."""

import heapq
import os
import stat
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Final

from ddimctl.errors import DataError, RequestError
from ddimctl.files.own_output import SHEET, is_run
from ddimctl.files.pictures.formats import HEIC_HINT, suffixes
from ddimctl.files.pictures.images import MAX_BYTES
from ddimctl.files.untrusted.guards import check_plain_file, is_folder

_BOMB_BYTES, _BOMB_RATIO = (
    16 * 2**20,
    200,
)  # encoded images barely deflate; this much is no image
_ENCRYPTED: Final = 0x1  # in a zip member's flags
_LONGEST_SUFFIX: Final = 12
_SHOWN: Final = 8  # kinds of files, or runs, that a note names


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


@dataclass
class Found:
    """The images of a source, sorted by name, and what was left out: other files by the ends of
    their names, folders that are runs of this program, by name."""

    entries: list[Entry] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    runs: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Sort a file in."""
        if _is_image(entry.name):
            self.entries.append(entry)
        else:
            self.others[_ending(entry.name)] += 1

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence on each kind of thing that was left out."""
        return (*self._of_others(), *self._of_runs())

    def _of_others(self) -> Iterator[str]:
        if self.others:
            count, kinds = self.others.total(), self.others.most_common(_SHOWN)
            named = ", ".join(f"{number} {kind}" for kind, number in kinds)
            more = ", …" if len(self.others) > _SHOWN else ""
            hint = f" {HEIC_HINT}" if self.others.keys() & {".heic", ".heif", ".hif"} else ""
            yield f"{count} file{'s' * (count > 1)} left out: {named}{more}.{hint}"

    def _of_runs(self) -> Iterator[str]:
        if self.runs:
            named = ", ".join(map(printable, sorted(self.runs)[:_SHOWN]))
            more = ", …" if len(self.runs) > _SHOWN else ""
            yield f"runs of ddimctl left out, which are no data: {named}{more}."


def scan(source: Path) -> Found:
    """The images, by suffix, of a folder (recursively) or a zip.

    Hidden files are left out, and so are folders in it that are runs of this program. Each folder
    is visited once, whatever links lead to it; a link that leads to a folder around the source is
    not followed. A zip that holds nothing but one folder of folders is read as if that one were
    its top.
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
    found = _walk(source) if is_folder(source) else _members(source)
    if not found.entries:
        known = ", ".join(sorted(suffix[1:] for suffix in suffixes()))
        remedy = " ".join((*found.notes, f"Supported file types: {known}."))
        raise DataError(f"{source} holds no images.", remedy)
    found.entries.sort(key=lambda entry: entry.name)
    return found


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


def _walk(top: Path) -> Found:
    found = Found()
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
        if here != top and _is_run(here, paths):
            found.runs.append(here.relative_to(top).as_posix())
            continue
        for path in paths:
            if _hidden(path.name):
                continue
            name = path.relative_to(top).as_posix()
            try:
                status = path.stat()
            except OSError:  # a link to nothing: reading will say so
                found.add(Entry(name, 0, 0, path))
                continue
            if stat.S_ISDIR(status.st_mode):
                if path.is_symlink():
                    heapq.heappush(links, path)
                else:
                    folders.append(path)
            elif stat.S_ISREG(status.st_mode):
                found.add(Entry(name, status.st_size, status.st_mtime_ns, path))
    return found


def _is_run(folder: Path, paths: list[Path]) -> bool:
    def inside(name: str) -> list[str]:
        try:
            return [path.name for path in (folder / name).iterdir()]
        except OSError:
            return []

    def head(name: str, count: int) -> bytes:
        path = folder / name
        try:
            check_plain_file(path)
            with path.open("rb") as file:
                return file.read(count)
        except (OSError, DataError):
            return b""

    return is_run({path.name for path in paths}, inside, head)


def _members(source: Path) -> Found:
    with _open_zip(source) as archive:
        entries = [
            Entry(_inside(info.filename), info.file_size, info.CRC, info)
            for info in archive.infolist()
            if not info.filename.endswith("/")
        ]
        runs = _runs_in(archive, entries)
    found = Found(runs=runs)
    for entry in entries:
        parts = entry.name.split("/")
        in_run = any("/".join(parts[:depth]) in runs for depth in range(1, len(parts)))
        if not in_run and not any(map(_hidden, parts)):
            found.add(entry)
    images = found.entries
    tops = {entry.name.split("/")[0] for entry in images}
    if len(tops) == 1 and all(entry.name.count("/") >= 2 for entry in images):
        found.entries = [replace(each, name=each.name.partition("/")[2]) for each in images]
    return found


def _runs_in(archive: zipfile.ZipFile, entries: list[Entry]) -> list[str]:
    """The folders in an archive that are runs, but for folders in them."""
    folders = dict[str, dict[str, Entry]]()
    for entry in entries:
        parts = entry.name.split("/")
        for depth in range(1, len(parts)):
            folders.setdefault("/".join(parts[:depth]), {})[parts[depth]] = entry
    runs: list[str] = []
    for folder, children in sorted(folders.items()):

        def inside(name: str, folder: str = folder) -> Iterable[str]:
            return folders.get(f"{folder}/{name}", {})

        def head(name: str, count: int, children: dict[str, Entry] = children) -> bytes:
            try:
                return _read_member(archive, children[name])[:count]
            except (DataError, OSError):
                return b""

        if not any(folder.startswith(f"{run}/") for run in runs) and is_run(children, inside, head):
            runs.append(folder)
    return runs


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
    return _ending(name) in suffixes()


def _ending(name: str) -> str:
    """A file's kind by its name."""
    if name.endswith(SHEET):
        return SHEET
    return PurePosixPath(name).suffix.lower()[:_LONGEST_SUFFIX] or "without a suffix"


def _hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
