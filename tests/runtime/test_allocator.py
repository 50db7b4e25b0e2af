import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys
from ddimctl.runtime.allocator import keep_freed_memory

if "keep" in sys.argv:
    keep_freed_memory()
take = lambda: bytes(bytearray(b"x") * (8 << 20))
for _ in range(3):
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Page faults of taking and freeing two blocks of 8 MiB twenty times."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    # The C library raises its own threshold up to 32 MiB unless told to keep it.
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    return int(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns the GNU C library alone")
def test_freed_blocks_are_used_again() -> None:
    pages = (8 << 20) // 4096
    assert faults() > 20 * pages
    assert faults("keep") < pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="concerns the GNU C library alone")
def test_large_blocks_begin_with_a_page(clean_env: dict[str, str]) -> None:
    program = """
import torch
from ddimctl.runtime.allocator import keep_freed_memory
keep_freed_memory()
print({torch.empty(2**20 + n).data_ptr() % 4096 for n in range(8)})
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], env=clean_env, check=True, capture_output=True, text=True
    )
    assert ran.stdout == "{0}\n"
