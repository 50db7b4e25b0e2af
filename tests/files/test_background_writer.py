import signal
import threading
import time
from pathlib import Path

import pytest

from ddimctl.files.background_writer import BackgroundWriter


def test_exit_waits_for_everything() -> None:
    done: list[int] = []
    with BackgroundWriter(places=4) as writer:
        for index in range(100):
            writer.submit(done.append, index)
    assert sorted(done) == list(range(100))


def test_arguments_are_passed_on(tmp_path: Path) -> None:
    with BackgroundWriter() as writer:
        writer.submit((tmp_path / "a.txt").write_text, "text", encoding="utf-8")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_tasks_run_beside_the_caller() -> None:
    with BackgroundWriter(threads=1) as writer:
        reached = threading.Event()
        writer.submit(reached.set)
        assert reached.wait(60)


def test_a_full_queue_makes_submit_wait() -> None:
    gate, third = threading.Event(), threading.Event()
    with BackgroundWriter(threads=1, places=2) as writer:

        def fill() -> None:
            for _ in range(3):
                writer.submit(gate.wait, 60)
            third.set()

        filler = threading.Thread(target=fill)
        filler.start()
        assert not third.wait(0.2)
        gate.set()
        assert third.wait(60)
        filler.join()


def test_an_error_is_raised_at_exit_and_later_tasks_are_dropped() -> None:
    gate, done = threading.Event(), []

    def fail() -> None:
        gate.wait(60)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), BackgroundWriter(threads=1) as writer:
        writer.submit(fail)
        for index in range(5):
            writer.submit(done.append, index)
        gate.set()
    assert done == []


def test_an_error_is_raised_by_the_next_submit() -> None:
    def fail() -> None:
        raise OSError("disk")

    reached = 0
    with pytest.raises(OSError, match="disk"), BackgroundWriter(threads=1, places=1) as writer:
        for _ in range(10):
            writer.submit(fail)  # the one place is free again only when the first has failed
            reached += 1
    assert reached == 1


def test_wait_returns_when_all_is_done_and_raises_errors() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), BackgroundWriter(places=8) as writer:
        for index in range(20):
            writer.submit(done.append, index)
        writer.wait()
        assert len(done) == 20
        writer.submit(done.append, 20)
        writer.wait()
        assert len(done) == 21
        writer.submit(fail)
        writer.wait()
        done.append(-1)
    assert -1 not in done


def test_an_exception_in_the_body_drops_what_has_not_begun() -> None:
    started, gate, done = threading.Event(), threading.Event(), []

    def first() -> None:
        started.set()
        gate.wait(60)
        done.append("first")

    with pytest.raises(KeyboardInterrupt), BackgroundWriter(threads=1, places=16) as writer:
        writer.submit(first)
        for _ in range(10):
            writer.submit(done.append, "later")
        assert started.wait(60)
        threading.Timer(0.1, gate.set).start()
        raise KeyboardInterrupt
    assert done == ["first"]


def test_a_look_raises_errors_without_waiting() -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"), BackgroundWriter() as writer:
        writer.check()
        writer.submit(fail)
        assert failed.wait(60)
        for _ in range(6000):
            time.sleep(0.01)
            writer.check()


def test_waiting_can_be_broken_off_and_begun_again() -> None:
    gate, done = threading.Event(), []
    with BackgroundWriter(threads=1, places=3) as writer:
        writer.submit(gate.wait, 60)
        writer.submit(done.append, 1)

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(KeyboardInterrupt):
                writer.wait()
        finally:
            signal.signal(signal.SIGALRM, before)
        gate.set()
        writer.wait()
        assert done == [1]
