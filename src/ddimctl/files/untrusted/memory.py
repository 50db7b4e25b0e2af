"""How much memory there is, asked before a stranger's file takes it."""

import os
from pathlib import Path
from typing import Final

from ddimctl.errors import CheckpointError

_MEMINFO: Final = Path("/proc/meminfo")
_CONTAINER: Final = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping; on macOS all that is built in; None if unknown."""
    known = [_container_room(), _meminfo() or _built_in()]
    return min((size for size in known if size is not None), default=None)


def check_memory(needed: int, where: str) -> None:
    """Raise CheckpointError where needed bytes are more than there are."""
    available = available_memory()
    if available is not None and needed > available:
        raise CheckpointError(
            f"{where} needs {_gigabytes(needed)} of memory, and {_gigabytes(available)} are free.",
            "Close other programs, or use a machine with more memory.",
        )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"


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
