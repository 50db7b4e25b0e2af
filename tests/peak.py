"""The most memory that a process has held, told by the program itself that a test starts."""

import resource
import sys
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
IMPORT_PEAK: Final = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from peak import peak
"""


def peak() -> float:
    """MiB, since the program began or forgot.

    Linux begins a program's ru_maxrss with that of the process that started it: not so VmHWM.
    """
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def forget_peak() -> None:
    """Where the system can."""
    if _STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
