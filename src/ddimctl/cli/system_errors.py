"""What the system may refuse anywhere, whatever the command does: no bug, so no traceback."""

import errno
from typing import Final

from ddimctl.errors import DdimctlError, DeviceError, StorageError

_PATH: Final = "Check the path and its permissions."
_FILES: Final = "Close other programs, or raise the limit (ulimit -n)."
_TASKS: Final = "End other processes, or raise the limit (ulimit -u)."
_REMEDIES: Final = {
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP), _PATH),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _FILES),
    errno.EAGAIN: _TASKS,
}


def system_error(error: OSError | RuntimeError) -> DdimctlError | None:
    """The error to show for a refusal of the system; None for an error of another kind.

    Such refusals are paths that may not be looked up, and limits on open files and on threads.
    """
    if isinstance(error, RuntimeError):
        no_thread = "can't start new thread" in str(error)  # CPython raises nothing finer
        return DeviceError("the system starts no more threads.", _TASKS) if no_thread else None
    if error.errno not in _REMEDIES:
        return None
    where = f"{error.filename} cannot be used" if error.filename else "the system refuses"
    return StorageError(f"{where}: {error.strerror}.", _REMEDIES[error.errno])
