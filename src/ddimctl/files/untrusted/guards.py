"""How the readers of untrusted files refuse one, and what is checked before a file is opened."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ddimctl.errors import DataError, DdimctlError

_MEMINFO: Final = Path("/proc/meminfo")
_CONTAINER: Final = Path("/sys/fs/cgroup")


class Refused(Exception):  # noqa: N818
    """Why a file is not read.

    cause: a sentence whose subject, the file, is left out: "is empty.". remedy: what to do next,
    or "" where only the caller can know.
    """

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause, self.remedy = cause, remedy


def damaged(why: str) -> Refused:
    """The refusal of a file that is not as its format demands."""
    return Refused(f"is damaged: {why}.", "Get the file again.")


@contextmanager
def refusals(where: str, error: type[DdimctlError], remedy: str = "") -> Iterator[None]:
    """Within, a Refused or an OSError is raised as this error. where: the file, for messages.
    remedy: for a refusal that has none.
    """
    try:
        yield
    except Refused as refused:
        raise error(f"{where} {refused.cause}", refused.remedy or remedy) from refused
    except FileNotFoundError as missing:
        raise error(f"{where}: there is no such file.", "Check the path.") from missing
    except PermissionError as denied:
        raise error(
            f"{where}: no permission to read it.", "Check its owner and permissions."
        ) from denied
    except OSError as failed:
        raise error(
            f"{where} cannot be read: {reason(failed)}.", "Check the path and the disk."
        ) from failed


def check_regular(path: Path) -> None:
    """Raise Refused unless it is a file: a pipe would wait for a writer, a device never ends.
    Raises OSError where there is none."""
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a zero byte in the name
        raise Refused(f"cannot be read: {reason(error)}.", "Check the path.") from error
    if stat.S_ISDIR(mode):
        raise Refused("is a folder, not a file.", "Pass the path of a file.")
    if not stat.S_ISREG(mode):
        raise Refused("is a pipe or a device, not a file.", "Save its content to a file first.")


def check_plain_file(path: Path) -> None:
    """check_regular that raises DataError."""
    with refusals(str(path), DataError):
        check_regular(path)


def is_folder(path: Path) -> bool:
    """Path.is_dir without its errors, such as that of a name that is too long."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_utf8(path: Path) -> bool:
    """Whether libraries in Rust and C++ can open the path, which may hold any bytes on Linux."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def reason(error: BaseException) -> str:
    """Why, in a few words on one line, without a full stop."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; on macOS all that is built in; None if unknown."""
    known = [_container_room(), _meminfo() or _built_in()]
    return min((size for size in known if size is not None), default=None)


def check_memory(needed: int) -> None:
    """Raise Refused where needed bytes are more than there are."""
    available = available_memory()
    if available is not None and needed > available:
        raise Refused(
            f"needs {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free.",
            "Close other programs, or use a machine with more memory.",
        )


def _meminfo() -> int | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    found = (line.split() for line in lines if line.startswith("MemAvailable:"))
    return next((int(parts[1]) * 1024 for parts in found if len(parts) == 3), None)


def _container_room() -> int | None:
    """What a container's limit leaves, cached files not counted: they make way."""
    try:
        limit = int((_CONTAINER / "memory.max").read_text("ascii"))  # "max" where there is none
        used = int((_CONTAINER / "memory.current").read_text("ascii"))
        stat = (_CONTAINER / "memory.stat").read_text("ascii").splitlines()
        cached = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    except (OSError, ValueError):
        return None
    return max(0, limit - used + cached)


def _built_in() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
