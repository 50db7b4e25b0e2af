"""One run in one folder, also when runs die or start at the same moment."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ddimctl.errors import RequestError, StorageError
from ddimctl.files import atomic
from ddimctl.files.lock import NAME, folder_lock

fcntl = pytest.importorskip("fcntl")

OF_VERSION_0_1 = "`ddimctl train`, process 4711 on lab-3, since 2026-10-01 09:00:00 +0000\n"

HOLD = """
import pathlib, sys, time
from ddimctl.files.lock import folder_lock
with folder_lock(pathlib.Path(sys.argv[1]), "sample"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """A process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_the_first_is(holder, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as raised, folder_lock(tmp_path / "run", "train"):
        pytest.fail("two in one folder")
    assert str(tmp_path / "run") in raised.value.cause
    assert "`ddimctl sample`" in raised.value.cause
    assert f"process {holder.pid} on " in raised.value.cause
    assert time.strftime("since %Y-") in raised.value.cause
    assert "--out" in raised.value.remedy


def test_a_lock_dies_with_its_holder(holder, tmp_path: Path) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / NAME).exists()
    with folder_lock(tmp_path / "run", "sample"):
        assert str(os.getpid()) in (tmp_path / "run" / NAME).read_text()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_that_version_0_1_left_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(OF_VERSION_0_1)
    with folder_lock(tmp_path, "sample"):
        assert "4711" not in (tmp_path / NAME).read_text()
    assert not (tmp_path / NAME).exists()


def test_a_run_of_version_0_1_keeps_others_out(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("w") as file:
        file.write(OF_VERSION_0_1)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RequestError) as raised, folder_lock(tmp_path, "sample"):
            pytest.fail("two in one folder")
    assert raised.value.cause == f"{tmp_path} is in use by {OF_VERSION_0_1.strip()}."


def test_a_holder_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    file = (tmp_path / NAME).open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, file.close)
    timer.start()
    with folder_lock(tmp_path, "sample"):
        assert file.closed
    timer.join()


def test_the_same_process_is_kept_out_too(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "sample"):
        with pytest.raises(RequestError, match="in use"), folder_lock(tmp_path, "sample"):
            pass
        assert (tmp_path / NAME).exists()
    with folder_lock(tmp_path, "sample"):
        pass


def test_cleaning_temporaries_spares_the_lock(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("left by the dead")
    atomic.clean_temporaries(tmp_path)
    assert (tmp_path / NAME).exists()


def test_folders_made_for_nothing_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError), folder_lock(tmp_path / "a" / "b", "sample"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with folder_lock(tmp_path / "mine", "sample"):
        pass
    with folder_lock(tmp_path / "full" / "run", "sample"):
        (tmp_path / "full" / "run" / "grid.png").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "grid.png", "mine", "run"]


def test_many_at_the_same_moment_take_turns(tmp_path: Path) -> None:
    """The folder and the file go and come again under those who wait for it."""
    inside, turns, most = [], [], []

    def work() -> None:
        while len(turns) < 300:
            try:
                with folder_lock(tmp_path / "run", "sample"):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.0005)
                    inside.pop()
                    turns.append(1)
            except RequestError:
                time.sleep(0.0001)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(turns) >= 300
    assert not (tmp_path / "run" / NAME).exists()


def test_a_file_removed_by_its_holder_is_not_taken_for_a_lock(tmp_path: Path, monkeypatch) -> None:
    """Opened before the holder unlinked it, locked after: it guards nothing any more."""
    flock, calls = fcntl.flock, []

    def removed_first(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / NAME).unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with folder_lock(tmp_path, "sample"):
        assert len(calls) == 2
        assert (tmp_path / NAME).exists()


def test_another_s_lock_is_left_where_the_folder_was_made_anew(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "sample"):
        (tmp_path / NAME).unlink()
        (tmp_path / NAME).write_text("another's")
    assert (tmp_path / NAME).read_text() == "another's"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_keeps_nobody_out(number: int, tmp_path: Path, monkeypatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with folder_lock(tmp_path, "sample"), folder_lock(tmp_path, "sample"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_lock_behind(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    unsigned = pytest.raises(RequestError, match="in use by another run")
    with folder_lock(tmp_path / "run", "sample"), unsigned, folder_lock(tmp_path / "run", "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_lock_s_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError), folder_lock(tmp_path / "run", "sample"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_written_to_is_a_storage_error(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a folder"), folder_lock(tmp_path / "file", "train"):
        pass

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StorageError, match="read-only"), folder_lock(tmp_path, "train"):
        pass
