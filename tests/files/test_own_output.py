"""Runs of this program are no data, and a run writes into no folder of other things."""

import json
import zipfile

import pytest
from PIL import Image

from ddimctl.errors import DataError, RequestError
from ddimctl.files.dataset.datasets import load_dataset
from ddimctl.files.dataset.source import scan
from ddimctl.files.own_output import check_output, remove_files

MANIFEST = json.dumps({"format_version": 1, "command": "sample", "ddimctl": "0.1.0"}, indent=2)
RUNS = {
    "sample": ("manifest.json", "grid.png", "images/000000.png"),
    "train": ("state/step-00000002.pt", "loss.png", "samples/step-00000002.png"),
    "train, killed early": ("samples/step-00000001.png",),
    "evaluate": ("table.csv", "table.json", "curve.png", "seeds.png", "cells/x/manifest.json"),
    "reconstruct": ("table.csv", "table.json", "plot.png"),
    "evaluate, svg": ("table.csv", "table.json", "curve.svg", "seeds.png"),
    "reconstruct, svg": ("table.csv", "table.json", "plot.svg"),
}


def write(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            Image.new("RGB", (8, 8), (len(name), 2, 3)).save(path)
        else:
            path.write_text(MANIFEST if path.name == "manifest.json" else "x")
    return folder


def zipped(folder):
    path = folder.parent / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("place", ["run", "deep/er/run"])
def test_a_run_in_the_data_is_left_out_with_a_note(tmp_path, kind, as_zip, place):
    data = write(tmp_path / "data", ["a.png", "b/c.png"])
    write(data / place, RUNS[kind])
    found = scan(zipped(data) if as_zip else data)
    assert [entry.name for entry in found.entries] == ["a.png", "b/c.png"]
    assert found.notes == (f"runs of ddimctl left out, which are no data: {place}.",)


def test_folders_of_others_with_such_names_are_data(tmp_path):
    data = tmp_path / "data"
    write(data, ["samples/step-1.png", "state/a.png", "images/000000.png", "x/loss.png"])
    (data / "x" / "manifest.json").write_text('{"name": "web app"}')
    assert len(scan(data).entries) == 4
    assert scan(zipped(data)).runs == []


def test_a_run_that_is_named_itself_is_read(tmp_path):
    run = write(tmp_path / "run", RUNS["sample"])
    assert [entry.name for entry in scan(run).entries] == ["grid.png", "images/000000.png"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_other_files_are_counted_by_kind(tmp_path, as_zip):
    data = write(tmp_path / "data", ["a.png", "a.txt", "b.txt", "README", "a.inversion.png", ".x"])
    found = scan(zipped(data) if as_zip else data)
    assert [entry.name for entry in found.entries] == ["a.png"]
    (note,) = found.notes
    assert note.startswith("4 files left out: 2 .txt, ")
    assert "1 .inversion.png" in note
    assert "1 without a suffix" in note


def test_frames_that_are_not_used_are_told(tmp_path):
    first, second = (Image.new("RGB", (8, 8), (9, 9, level)) for level in (0, 200))
    for name in ("a.gif", "b.webp", "c.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
    first.save(tmp_path / "d.gif")
    for _ in range(2):  # decoded, and from the cache
        data = load_dataset(tmp_path, cache_dir=tmp_path / ".cache")
        assert len(data.pixels) == 4
        assert data.notes == ("3 images have several frames, of which the first is used.",)


def test_formats_are_the_same_for_all(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 90, 30))
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm", "tga", "pcx"):
        image.save(tmp_path / f"a.{suffix}")
    data = load_dataset(tmp_path, cache_dir=tmp_path / ".cache")
    assert (len(data.pixels), data.skipped, data.notes) == (11, (), ())
    assert (data.pixels.float() - data.pixels[0].float()).abs().mean() < 12


def test_heic_is_read_with_its_extra_and_else_named(tmp_path, monkeypatch):
    from ddimctl.files.pictures import formats
    from ddimctl.files.pictures.images import read_image

    heif = pytest.importorskip("pillow_heif", reason="the extra 'heic' is not installed")
    heif.register_heif_opener()
    Image.new("RGB", (64, 64), (200, 90, 30)).save(tmp_path / "a.heic")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    (tmp_path / "c.jpg").write_bytes((tmp_path / "a.heic").read_bytes())
    assert len(scan(tmp_path).entries) == 3
    assert read_image(tmp_path / "c.jpg", 3).size == (64, 64)

    for each in (formats.has_heic, formats.readable, formats.suffixes):
        each.cache_clear()
    monkeypatch.setattr(formats, "find_spec", lambda _: None)
    try:
        assert scan(tmp_path).notes == (f"1 file left out: 1 .heic. {formats.HEIC_HINT}",)
        for name in ("a.heic", "c.jpg"):
            with pytest.raises(DataError, match=r"is HEIC.*ddimctl\[heic\]"):
                read_image(tmp_path / name, 3)
    finally:
        for each in (formats.has_heic, formats.readable, formats.suffixes):
            each.cache_clear()


def test_what_a_run_may_write_into(tmp_path):
    check_output(tmp_path / "new")
    (tmp_path / ".hidden").touch()
    check_output(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RequestError, match="is not empty"):
        check_output(tmp_path)
    with pytest.raises(RequestError, match="no run to continue from"):
        check_output(tmp_path, resume=True)
    with pytest.raises(RequestError, match="holds a table already"):
        check_output(tmp_path, "a table")
    check_output(tmp_path, "a table", resume=True)
    check_output(tmp_path, force=True)
    with pytest.raises(RequestError, match="holds the images to read"):
        check_output(tmp_path, force=True, data=tmp_path / ".")
    with pytest.raises(RequestError, match="is a file"):
        check_output(tmp_path / "mine.txt", force=True)


def test_nothing_is_removed_through_a_link(tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (elsewhere / "0.png").touch()
    (out / "a").touch()
    (out / "images").symlink_to(elsewhere)
    with pytest.raises(RequestError, match="is a link"):
        remove_files(out, [out / "a", out / "images" / "0.png"])
    assert (out / "a").exists() and (elsewhere / "0.png").exists()
    (out / "grid").symlink_to(elsewhere / "0.png")
    remove_files(out, [out / "a", out / "grid", out / "missing"])
    assert not (out / "grid").is_symlink() and (elsewhere / "0.png").exists()
