"""How the C library hands out memory on CPUs."""

import ctypes
import os
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

    Blocks of 2 MiB and more are aligned to pages, too: what torch's usual 64 bytes cut off around a
    block goes to small objects, and the freed block is then too narrow for the next of its size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
        # torch reads it when it takes its first block
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
