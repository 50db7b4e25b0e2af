"""What is asked of a path that somebody named, before it is opened."""

import stat
from pathlib import Path

from ddimctl.errors import DataError


def check_plain_file(path: Path) -> None:
    """Raise DataError unless it is a file: a pipe would wait for a writer, a device never ends."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file.", "Check the path.") from error
    except PermissionError as error:
        raise no_permission(path) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise DataError(f"{path} cannot be read: {reason(error)}.", "Check the path.") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder, not a file.", "Give the path of a file.")
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{path} is a pipe or a device, not a file.", "Write what it gives into a file first."
        )


def is_folder(path: Path) -> bool:
    """Path.is_dir without its errors, such as that of a name that is too long."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def no_permission(path: Path | str) -> DataError:
    """What is said of a file that another user's permissions protect."""
    return DataError(f"{path}: no permission to read it.", "Check its owner and permissions.")


def reason(error: BaseException) -> str:
    """Why, in a few words on one line, without a full stop."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__
