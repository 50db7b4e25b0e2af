"""Stopping on request: the first signal asks a run to save and end, the second ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED_CODE = 130
TERMINATED_CODE = 143
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


def end_on_signals() -> None:
    """From now on SIGTERM, SIGUSR1 and SIGHUP raise SystemExit, so that what is open is closed.

    SIGUSR1 is how clusters announce SIGTERM. SIGHUP stays ignored where it is (nohup), and is
    ignored after the first, since terminals send it twice. Outside the main thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _NAMES:
        number = getattr(signal, name, None)
        if name != "SIGINT" and number is not None and not _is_ignored_hangup(number):
            signal.signal(number, _terminate)


def _terminate(number: int, frame: FrameType | None) -> None:
    if signal.Signals(number).name == "SIGHUP":
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(TERMINATED_CODE)


def _is_ignored_hangup(number: int) -> bool:
    is_hangup = signal.Signals(number).name == "SIGHUP"
    return is_hangup and signal.getsignal(number) is signal.SIG_IGN


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.interrupts = False

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def name(self) -> str | None:
        """The signal's name, such as "SIGTERM"."""
        return None if self.signal is None else self.signal.name

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, a request does not wait to be asked for: it is a KeyboardInterrupt.

        For work in one piece that may be broken off anywhere. One made before counts, too.
        """
        self.interrupts = True
        try:
            if self:
                raise KeyboardInterrupt
            yield
        finally:
            self.interrupts = False

    def pass_on(self) -> NoReturn:
        """Let the signal do what it would have done without stop_on_signals, or KeyboardInterrupt."""
        if self.signal is not None:
            signal.raise_signal(self.signal)
        raise KeyboardInterrupt


@contextmanager
def stop_on_signals(*, once: bool = True) -> Iterator[StopRequest]:
    """Within, SIGINT, SIGTERM, SIGUSR1 and SIGHUP set the request; a repeated one acts as it did before.

    SIGHUP comes when a terminal is closed, often twice: it sets the request only where it is not
    ignored (nohup), and is not heeded after the first signal.

    Unless once: under torchrun a process gets the same signal from several sides, and who wants it
    to end at once sends SIGKILL. Then a repeated one sets the request again.

    Outside the main thread, where Python sets no handlers, signals keep their meaning.
    """
    request = StopRequest()
    previous: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        if once:
            for known, handler in previous.items():
                hangup = signal.Signals(known).name == "SIGHUP"
                signal.signal(known, signal.SIG_IGN if hangup else handler)
        if request.interrupts:
            raise KeyboardInterrupt

    try:
        for name in _NAMES:
            number = getattr(signal, name, None)
            if number is not None and not _is_ignored_hangup(number):
                previous[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
