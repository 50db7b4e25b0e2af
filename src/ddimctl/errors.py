"""The errors that ddimctl raises on purpose; the command line turns each into two lines and an exit code."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from reprlib import Repr
from typing import Final

RESUME: Final = "Run the same command with --resume to continue."
"""The remedy where a run was cut off."""

_FLAG: Final = re.compile(r"--([a-z][a-z-]*)")
# What Python's callers call it, where that is not the flag itself.
_IN_PYTHON: Final = {
    "tau": "timesteps",
    "class": "labels",
    "ckpt": "spec",
    "model-flag": "flags",
    "precision": "dtype",
    "out": "path",
    "yes": "download=True",
    "allow-nonfinite": "allow_nonfinite=True",
}

_BRIEF: Final = Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60
_BRIEF.maxlevel = 2


class DdimctlError(Exception):
    """Something failed for a reason that the user can act on.

    cause:  one line, what is wrong and where.
    remedy: one line, what to do next; may be empty.
    """

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause} {remedy}".rstrip())
        self.cause = cause
        self.remedy = remedy


class RequestError(DdimctlError, ValueError):
    """The request itself is wrong: usage, configuration, or it would overwrite something."""

    exit_code = 2


class CheckpointError(DdimctlError):
    """A checkpoint is missing, damaged, or of a kind that cannot be run."""


class DataError(DdimctlError):
    """An image, a data set, a latent or a manifest cannot be used."""


class StorageError(DdimctlError):
    """The disk refused: no space, no permission, not a folder."""


class DeviceError(DdimctlError):
    """The device is missing, out of memory, or cannot do what was asked."""


class NumericsError(DdimctlError):
    """A computation left the finite numbers."""


class Stopped(DdimctlError):  # noqa: N818, it is no failure
    """A signal stopped the run; what it had is saved and the same command continues it with --resume."""

    exit_code = 75


def brief(value: object) -> str:
    """A value as messages show it: its repr on one line, cut short in the middle, which takes little
    time however long or nested it is."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python does not write integers of thousands of digits
        return f"a huge {type(value).__name__}"


@contextmanager
def python_words() -> Iterator[None]:
    """Within, errors of ours name arguments ("eta") where they would name options ("--eta")."""
    try:
        yield
    except DdimctlError as error:
        error.cause, error.remedy = map(_in_python, (error.cause, error.remedy))
        error.args = (f"{error.cause} {error.remedy}".rstrip(),)
        raise


def _in_python(text: str) -> str:
    return _FLAG.sub(lambda found: _IN_PYTHON.get(found[1], found[1].replace("-", "_")), text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that begins with a space, to be added to a sentence; empty where nothing is near."""
    matches = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{matches[0]}'?" if matches else ""
