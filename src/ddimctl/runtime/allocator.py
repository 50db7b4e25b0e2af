"""How the C library hands out memory on CPUs."""

import ctypes
from typing import Final

# From malloc.h of the GNU C library.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MOST: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process use freed blocks again instead of giving each back to the system.

    A network frees and takes blocks of megabytes in each layer. By default the GNU C library maps
    and unmaps those, and every mapping costs a page fault for each 4 kB and zeroing: a fifth of the
    time of a short run on a CPU (docs/benchmarks.md). Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
