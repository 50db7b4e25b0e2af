"""A disk that fills up, fails or may not be written to while a run writes: nothing is lost."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import StorageError
from ddimctl.files import atomic
from ddimctl.jobs import checkpoint as jobs_checkpoint
from ddimctl.jobs.interpolate.job import interpolate
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.outputs import bytes_needed
from ddimctl.jobs.sample.store import SampleStore
from flat_requests import changed, interpolate_request, sample_request
from forks import check_whole, contents

EVERYTHING = ("grid", "images", "latents", "samples", "trajectory")


class Disk:
    """Counts what is asked of it, and refuses from the fault-th request on until it is mended."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked, self.fault, self.lasting, self.code = 0, -1, True, errno.ENOSPC
        for owner, name in (
            (atomic, "_open_temporary"),
            (os, "fsync"),
            (Path, "replace"),
            (os, "posix_fallocate"),
        ):
            patch.setattr(owner, name, self.refusing(getattr(owner, name)))

    def refusing(self, original):
        def ask(*given):
            self.ask()
            result = original(*given)
            if original.__name__ == "_open_temporary":
                temporary, file = result
                return temporary, File(file, self)
            return result

        return ask

    def ask(self) -> None:
        number, self.asked = self.asked, self.asked + 1
        if number == self.fault or (self.lasting and 0 <= self.fault < number):
            raise OSError(self.code, os.strerror(self.code))

    def mend(self) -> None:
        self.asked, self.fault = 0, -1


class File:
    """A file of such a disk."""

    def __init__(self, file, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def write(self, data) -> int:
        self._disk.ask()
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def request_for(tiny_checkpoint, tmp_path, monkeypatch):
    checkpoint = load_checkpoint(tiny_checkpoint)
    monkeypatch.setattr("ddimctl.jobs.checkpoint.open_checkpoint", lambda *_, **__: checkpoint)

    def make(out="out", **settings):
        settings = {"steps": 1, "seeds": (0, 1, 2), "batch_size": 2} | settings
        return sample_request(out=tmp_path / out, save=EVERYTHING, **settings)

    return make


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("code", "lasting"), [(errno.ENOSPC, True), (errno.EIO, False)], ids=["full", "failing"]
)
def test_whatever_the_disk_refuses_the_rest_is_whole_and_a_resume_ends_alike(
    finish, request_for, tmp_path, disk, code, lasting, stride
):
    finish(sample, request_for("whole"))
    whole, requests = contents(tmp_path / "whole"), disk.asked
    assert requests > 30
    disk.code, disk.lasting = code, lasting
    for fault in range(0, requests, stride):
        disk.mend()
        disk.fault = fault
        with pytest.raises(StorageError) as raised:
            finish(sample, request_for())
        assert os.strerror(code) in raised.value.cause or "no space" in raised.value.cause
        if any((tmp_path / "out").glob("images/*.png")):
            assert "--resume." in raised.value.remedy
        if (tmp_path / "out").exists():
            check_whole(tmp_path / "out")
        disk.mend()
        finish(sample, request_for(resume=True))
        assert contents(tmp_path / "out") == whole
        shutil.rmtree(tmp_path / "out")


def test_a_full_disk_ends_the_run_at_once_and_not_at_its_end(
    finish, request_for, monkeypatch, tmp_path
):
    seeds, walked = tuple(range(60)), []
    keep_step, write_image = SampleStore.keep_step, SampleStore._write_image

    def counted(store, images, *rest):
        walked.append(images)
        keep_step(store, images, *rest)

    def full(store, i, pixels):
        if i >= 2:
            raise StorageError("no space is left on the disk.", "Free some space.")
        write_image(store, i, pixels)

    monkeypatch.setattr(SampleStore, "keep_step", counted)
    monkeypatch.setattr(SampleStore, "_write_image", full)
    with pytest.raises(
        StorageError, match=r"Free some space\. Continue with the same command and --out .*out"
    ):
        finish(sample, request_for(seeds=seeds, steps=5))
    assert len(walked) < 60  # of 150 steps
    monkeypatch.setattr(SampleStore, "_write_image", write_image)
    finish(sample, request_for(seeds=seeds, steps=5, resume=True))
    assert len(list((tmp_path / "out/images").iterdir())) == 60


def full_disk(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(10**12, 0, free))


@pytest.mark.parametrize("known", [True, False])
def test_a_clear_shortage_is_told_before_anything_is_sampled(
    finish, request_for, tmp_path, monkeypatch, known
):
    full_disk(monkeypatch, 20_000)
    opened = []
    original = jobs_checkpoint.open_checkpoint
    monkeypatch.setattr(
        jobs_checkpoint,
        "open_checkpoint",
        lambda *given, **named: opened.append(1) or original(*given, **named),
    )
    request = request_for(seeds=tuple(range(40)), size=(16, 16) if known else None)
    with pytest.raises(StorageError, match=r"are needed, 20 kB are free") as raised:
        finish(sample, request)
    assert "Free some space" in raised.value.remedy
    assert not (tmp_path / "out").exists()
    assert len(opened) == (0 if known else 1)  # the size is the checkpoint's own


def test_a_disk_that_does_not_tell_its_size_is_written_to(finish, request_for, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(0, 0, 0))  # ramfs, some FUSE
    assert finish(sample, request_for()).result.outputs["grid"].exists()


def test_what_is_there_already_needs_no_space_again(finish, request_for, tmp_path, monkeypatch):
    finish(sample, request_for())
    (tmp_path / "out/images/000001.png").unlink()
    full_disk(monkeypatch, bytes_needed(EVERYTHING, 3, (3, 16, 16)) // 2)
    finish(sample, request_for(resume=True))
    with pytest.raises(StorageError, match="are needed"):
        finish(sample, request_for("other"))


def test_the_estimate_is_no_more_than_what_is_written(finish, request_for, tmp_path):
    """Without the copies that latents and samples need while they get their names."""
    finish(sample, request_for(seeds=tuple(range(20))))
    written = sum(len(content) for content in contents(tmp_path / "out").values())
    floats = 4 * 20 * 3 * 16 * 16
    assert 2 * floats < bytes_needed(EVERYTHING, 20, (3, 16, 16)) - floats < written


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_permission_is_told_before_the_model_is_loaded(
    finish, request_for, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "ddimctl.jobs.checkpoint.open_checkpoint", lambda *_, **__: pytest.fail("loaded")
    )
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(StorageError, match="no permission"):
        finish(sample, request_for("locked/out"))


def test_a_read_only_disk_is_told_before_the_model_is_loaded(
    finish, request_for, tmp_path, monkeypatch
):
    original = os.open

    def read_only(path, flags, *rest, **named):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return original(path, flags, *rest, **named)

    monkeypatch.setattr(
        "ddimctl.jobs.checkpoint.open_checkpoint", lambda *_, **__: pytest.fail("loaded")
    )
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StorageError, match="read-only"):
        finish(sample, request_for())
    out = request_for().output.out
    with pytest.raises(StorageError, match="read-only"):
        finish(interpolate, interpolate_request(seeds=(1, 2), out=out))


@pytest.mark.parametrize("damage", ["empty", "zeros", "half"])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_an_image_that_a_power_cut_left_without_its_content_is_made_again(
    finish, request_for, tmp_path, format, damage
):
    finish(sample, request_for(format=format))
    whole = contents(tmp_path / "out")
    path = tmp_path / "out" / "images" / f"000001.{format}"
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "zeros": bytes(len(content)), "half": content[: len(content) // 2]}[damage]
    )
    manifest = tmp_path / "out/manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"complete": true', b'"complete": false'))
    finish(sample, request_for(format=format, resume=True))
    assert contents(tmp_path / "out") == whole


def test_a_folder_that_is_moved_away_ends_the_run_at_once_and_can_be_put_back(
    finish, request_for, tmp_path
):
    request, out, away = request_for(seeds=tuple(range(100))), tmp_path / "out", tmp_path / "away"
    request = changed(request, save=("grid", "images"))
    events = []

    def report(event):
        events.append(event)
        if len(events) > 3 and out.exists():
            out.rename(away)

    with pytest.raises(
        StorageError, match=r"its folder no longer exists.*Restore the folder"
    ) as raised:
        sample(request, report)
    assert "--resume." in raised.value.remedy
    assert len(events) < 40  # of 50 batches
    assert not out.exists()
    away.rename(out)
    finish(sample, changed(request, resume=True))
    finish(sample, changed(request, out=tmp_path / "whole"))
    assert contents(out) == contents(tmp_path / "whole")
