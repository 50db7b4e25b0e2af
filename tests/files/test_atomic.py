import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from ddimctl.errors import StorageError
from ddimctl.files import atomic

posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions and locks")


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def fail_with(code: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_the_file_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic.open_atomic(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
        (temporary,) = entries(tmp_path)
        assert temporary.startswith(atomic.PREFIX)
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"
    assert entries(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), atomic.open_atomic(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a.bin"]


def test_a_failed_rename_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", fail_with(errno.EIO))
    with pytest.raises(StorageError, match=r"a\.bin"):
        atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == ["a.bin"]


@posix
def test_a_process_killed_before_the_rename_leaves_a_stray_that_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    program = (
        "import os, pathlib, signal, sys\n"
        "from ddimctl.files import atomic\n"
        "pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.write_bytes(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, tmp_path / "a.bin"], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert len(entries(tmp_path)) == 2
    atomic.clean_temporaries(tmp_path)
    assert entries(tmp_path) == ["a.bin"]


def test_cleaning_spares_the_temporaries_of_the_living_and_other_dotfiles(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_bytes(b"")
    (tmp_path / f"{atomic.PREFIX}folder").mkdir()
    with atomic.open_atomic(tmp_path / "a.bin") as file:
        atomic.clean_temporaries(tmp_path)
        file.write(b"whole")
    assert (tmp_path / "a.bin").read_bytes() == b"whole"
    assert entries(tmp_path) == [f"{atomic.PREFIX}folder", ".hidden", "a.bin"]


@posix
def test_a_temporary_cleaned_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = atomic.fcntl.flock, []

    def cleaned_first(file, operation: int) -> None:
        if not calls:
            Path(file.name).unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", cleaned_first)
    atomic.write_bytes(tmp_path / "a.bin", b"whole")
    assert len(calls) == 2
    assert (tmp_path / "a.bin").read_bytes() == b"whole"


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        atomic.write_bytes(tmp_path / "a.bin", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~umask


@posix
def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "a.bin")
    atomic.write_bytes(tmp_path / "link", b"data")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "a.bin").read_bytes() == b"data"


@posix
def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a plain file"):
        atomic.write_bytes(pipe, b"data")
    assert pipe.is_fifo()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "a" / "b" / "c.bin", b"data")
    assert (tmp_path / "a" / "b" / "c.bin").read_bytes() == b"data"


def test_the_folder_of_many_files_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="its folder no longer exists"):
        atomic.write_bytes(tmp_path / "a" / "c.bin", b"data", sync=False)
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
    ],
)
def test_what_the_disk_refuses_is_said_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    monkeypatch.setattr(atomic.os, "fsync", fail_with(code))
    with pytest.raises(StorageError) as raised:
        atomic.write_bytes(tmp_path / "a.bin", b"data")
    assert words in raised.value.cause
    assert "a.bin" in raised.value.cause
    assert raised.value.remedy
    assert entries(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_torch_save_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / f"{atomic.PREFIX}x"
    temporary.symlink_to("/dev/full")
    monkeypatch.setattr(
        atomic, "_open_temporary", lambda _: (temporary, temporary.open("wb", buffering=512))
    )
    with pytest.raises(StorageError, match="no space"), atomic.open_atomic(tmp_path / "a") as file:
        torch.save(torch.zeros(100_000), file)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("name", ["folder", "file/inside.bin", "file/deep/inside.bin", "n" * 400])
def test_impossible_paths_are_storage_errors(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        atomic.write_bytes(tmp_path / name, b"data")
    assert entries(tmp_path) == ["file", "folder"]


def test_errors_that_are_not_the_disks_pass_through(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"), atomic.open_atomic(tmp_path / "a"):
        raise RuntimeError("a bug")


def test_json_keeps_its_order_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"b": 1, "a": [0.1, None]})
    assert path.read_text() == '{\n  "b": 1,\n  "a": [\n    0.1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, {"b": float("nan")})
    assert json.loads(path.read_text())["b"] == 1


def test_grouped_syncing_syncs_each_file_and_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(atomic.os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "a" / f"{index}.bin" for index in range(3)]
    for path in paths:
        atomic.write_bytes(path, b"data", sync=False)
    assert synced == []
    atomic.sync_files(paths)
    expected = [path.stat().st_ino for path in paths]
    if sys.platform != "win32":
        expected.append((tmp_path / "a").stat().st_ino)
    assert synced == expected


@posix
def test_a_plain_write_syncs_the_file_before_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(atomic.os, "fsync", lambda file: synced.append(os.fstat(file).st_ino))
    atomic.write_bytes(tmp_path / "a.bin", b"data")
    assert synced == [(tmp_path / "a.bin").stat().st_ino, tmp_path.stat().st_ino]


def test_syncing_a_file_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"gone\.png"):
        atomic.sync_files([tmp_path / "gone.png"])


def test_numbered_folders_follow_the_highest_number(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    assert atomic.create_numbered_folder(base, "sample").name == "00000-sample"
    (base / "00041-train").mkdir()
    (base / "99-notes").mkdir()
    assert atomic.create_numbered_folder(base, "sample").name == "00042-sample"
    (base / "99999-sample").mkdir()
    assert atomic.create_numbered_folder(base, "sample").name == "100000-sample"
    assert atomic.create_numbered_folder(base, "sample").name == "100001-sample"


def test_numbered_folders_are_never_shared(tmp_path: Path) -> None:
    made: list[Path] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        made.extend(atomic.create_numbered_folder(tmp_path, "sample") for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 40
    assert len(entries(tmp_path)) == 40


def test_a_numbered_folder_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_bytes(b"")
    with pytest.raises(StorageError, match="not a folder"):
        atomic.create_numbered_folder(tmp_path / "runs", "sample")


def test_room_and_permission_are_checked_where_a_folder_would_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic.check_writable(tmp_path / "not" / "yet", 1000)
    atomic.check_writable(Path())
    assert entries(tmp_path) == []
    with pytest.raises(StorageError, match=r"yet: 1e\+06 GB are needed, .* are free"):
        atomic.check_writable(tmp_path / "yet", 10**15)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="not a folder"):
        atomic.check_writable(tmp_path / "file" / "below")
    monkeypatch.setattr(Path, "open", fail_with(errno.EROFS))
    with pytest.raises(StorageError, match="read-only"):
        atomic.check_writable(tmp_path)
