"""How much the user's cache holds: what can be made again goes, what was used longest ago first."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "DDIMCTL_CACHE_GB"
DEFAULT_GB: Final = 20.0
_ENTRIES: Final = ("datasets/*.pixels", "inversions/*.pt", "timesteps/*.json")


def mark_used(entry: Path) -> None:
    """Note that an entry was of use, by its time of change."""
    with suppress(OSError):  # a cache that can only be read
        os.utime(entry)


def make_room(entry: Path) -> None:
    """Remove others, used longest ago first, until all entries together take at most $DDIMCTL_CACHE_GB.

    entry: FOLDER/NAME in the cache, just written, which stays however large it is. What is mapped
    by a process stays readable for it. Where something cannot be removed it stays.
    """
    found, top = [], entry.parent.parent
    for path in (path for pattern in _ENTRIES for path in top.glob(pattern)):
        with suppress(OSError):  # another process was faster
            found.append((path == entry, path.stat().st_mtime_ns, path.stat().st_size, path))
    taken, most = sum(size for _, _, size, _ in found), _limit()
    for own, _, size, path in sorted(found):
        if own or taken <= most:
            return
        with suppress(OSError):
            path.unlink()
            taken -= size


def _limit() -> float:
    """In bytes; the default where the variable is no number."""
    try:
        return 1e9 * float(os.environ.get(VARIABLE) or DEFAULT_GB)
    except ValueError:
        return 1e9 * DEFAULT_GB
