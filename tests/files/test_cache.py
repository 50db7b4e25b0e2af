"""The size of the user's cache: what was used longest ago goes first."""

import os

import pytest
from PIL import Image

from ddimctl.files.cache import DEFAULT_GB, make_room, mark_used
from ddimctl.files.dataset.datasets import load_dataset


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Four entries of 1000 bytes, an hour apart, oldest first; room for two and a half."""
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "2.5e-6")
    names = ("datasets/a.pixels", "inversions/b.pt", "timesteps/c.json", "inversions/d.pt")
    paths = [tmp_path / name for name in names]
    for hour, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (3600 * hour, 3600 * hour))
    return paths


def left(paths):
    return [path.stem for path in paths if path.exists()]


def test_the_oldest_go_until_the_rest_fits(entries):
    make_room(entries[3])
    assert left(entries) == ["c", "d"]


def test_what_was_used_counts_as_new(entries):
    mark_used(entries[0])
    make_room(entries[3])
    assert left(entries) == ["a", "d"]


def test_a_new_entry_stays_even_if_it_is_old_or_too_large(entries, monkeypatch):
    make_room(entries[0])
    assert left(entries) == ["a", "d"]
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "0")
    make_room(entries[0])
    assert left(entries) == ["a"]


def test_what_is_not_ours_stays(entries, tmp_path, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "0")
    others = [tmp_path / name for name in ("datasets/x.zip", "y.pt", "other/z.pt")]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (0, 0))
    make_room(entries[3])
    assert left([*entries, *others]) == ["d", "x", "y", "z"]


def test_what_cannot_be_removed_stays_and_others_go(entries, monkeypatch):
    original = type(entries[0]).unlink

    def held(path):
        if path == entries[0]:
            raise PermissionError
        original(path)

    monkeypatch.setattr(type(entries[0]), "unlink", held)
    make_room(entries[3])
    assert left(entries) == ["a", "d"]


def test_a_limit_that_is_no_number_is_the_default(entries, monkeypatch):
    assert DEFAULT_GB > 1
    for text in ("", "much"):
        monkeypatch.setenv("DDIMCTL_CACHE_GB", text)
        make_room(entries[3])
        assert left(entries) == ["a", "b", "c", "d"]
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "3e-6")
    make_room(entries[3])
    assert left(entries) == ["b", "c", "d"]


def test_data_sets_are_marked_when_used_and_pushed_out_by_others(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "0")
    folders = [tmp_path / "a", tmp_path / "b"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "image.png")
    first = load_dataset(folders[0], cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache/datasets").iterdir()
    os.utime(kept, (0, 0))
    load_dataset(folders[0], cache_dir=tmp_path / "cache")
    assert kept.stat().st_mtime > 0
    second = load_dataset(folders[1], cache_dir=tmp_path / "cache")
    assert not kept.exists()
    assert len(list((tmp_path / "cache/datasets").iterdir())) == 1
    assert [int(each.pixels.max()) for each in (first, second)] == [0, 1]  # mapped, still there
