"""The one sink for output: results on stdout, everything else on stderr."""

import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TextIO, TypeVar, cast

from ddimctl.cli.output.progress import PlainView, QuietView, View
from ddimctl.errors import StorageError
from ddimctl.jobs.events import Event, Notice, Progress, Report, Wrote
from ddimctl.runtime.allocator import keep_freed_memory

BROKEN_PIPE_CODE: Final = 141  # what a shell reports for SIGPIPE
_LONGEST: Final = 2_000
_STYLES: Final = {
    "error": "1;31",
    "stopped": "1;33",
    "interrupted": "1;33",
    "note": "1",
    "next": "1",
}


Q = TypeVar("Q")
R = TypeVar("R")


def speaks() -> bool:
    """Whether this process is the one that shows things: the first of torchrun's, or the only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def run_job(job: Callable[[Q, Report], R], request: Q, *, quiet: bool = False) -> R:
    """Run a job on its request, showing its events on stderr, and return its result.

    Each notice is shown once.
    """
    keep_freed_memory()
    seen: set[Notice | Wrote] = set()
    with _view(quiet) as view:

        def report(event: Event) -> None:
            if isinstance(event, Progress):
                view.progress(event)
            elif event not in seen:
                seen.add(event)
                _show(event, view)

        return job(request, report)


class Stderr:
    """stderr for a display that writes to it itself: when the terminal is gone, that goes nowhere."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Lead standard streams that the process was started without (`>&-`) nowhere.

    Otherwise the next file opened would take their number, and what is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def print_result(lines: Iterable[str], record: Mapping[str, Any], as_json: bool) -> None:
    """The result on stdout: the record as one JSON object, or the lines. Raises as printing does."""
    if not speaks():
        return
    text = json.dumps(record, allow_nan=False) if as_json else "\n".join(map(_shown, lines))
    with printing():
        sys.stdout.write(f"{text}\n")


@contextmanager
def printing(gone: int = BROKEN_PIPE_CODE) -> Iterator[None]:
    """Within, stdout is written to: a reader that has gone away ends the program quietly.

    gone: the exit code then. Raises StorageError for a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError) or _is_hung_up(error):
            raise SystemExit(gone) from None
        raise StorageError(f"the result cannot be printed: {error.strerror}.") from error


def say(label: str, text: str) -> None:
    """A labelled line on stderr."""
    if speaks():
        _stderr(f"{_styled(label)}: {printable(text)}")


def complain(label: str, cause: str, remedy: str) -> None:
    """The two lines of an error on stderr."""
    say(label, cause)
    if remedy and speaks():
        _stderr(f"  try: {printable(remedy)}")


def printable(text: str) -> str:
    """The text on one line, without characters that would command a terminal, cut where it is endless.

    Names of classes, files, checkpoints and settings come from strangers.
    """
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    spaced = " ".join(shown.split())
    return "".join(char if char.isprintable() else "?" for char in spaced)


def _shown(line: str) -> str:
    """A line of a result: on a terminal without what would command it, else as it is, for scripts."""
    if not sys.stdout.isatty():
        return line
    return "".join(char if char.isprintable() else "?" for char in line)


def is_terminal() -> bool:
    """Whether stderr can show a line that changes."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def _view(quiet: bool) -> View:
    if quiet or not speaks():
        return QuietView(say)
    if not is_terminal():
        return PlainView(say)
    from ddimctl.cli.output.bars import BarView

    return BarView(cast(TextIO, Stderr()))


def _show(event: Notice | Wrote, view: View) -> None:
    if isinstance(event, Notice):
        view.line("note", printable(event.text))
    else:
        view.line("wrote", printable(f"{event.path} ({event.what})"))


def _styled(label: str) -> str:
    style = _STYLES.get(label)
    if style is None or not is_terminal() or os.environ.get("NO_COLOR"):
        return label
    return f"\x1b[{style}m{label}\x1b[0m"


def _stderr(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:  # a log's reader is gone, or its disk is full: no reason to end a run
        _discard(sys.stderr)


def _is_hung_up(error: OSError) -> bool:
    """Whether stdout was a terminal, which has been closed; isatty does not tell any more."""
    return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(1).st_mode)


def _discard(stream: TextIO) -> None:
    """Let what is still to be written vanish: Python flushes on its way out, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
