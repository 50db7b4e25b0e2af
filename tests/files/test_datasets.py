"""Data sets: what is read, what is refused, the split, the cache, batches and their order."""

import errno
import hashlib
import io
import os
import random
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddimctl.errors import DataError, DdimctlError, RequestError, StorageError
from ddimctl.files.atomic import open_atomic
from ddimctl.files.dataset import cache as dataset_cache
from ddimctl.files.dataset.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.files.dataset.source import open_source, scan


def make_image(number: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """An image of noise, a different one for each number."""
    width, height = size
    noise = random.Random(number).randbytes(
        width * height * len(Image.new(mode, (1, 1)).getbands())
    )
    return Image.frombytes(mode, size, noise)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def names(source: Path) -> list[str]:
    return [entry.name for entry in scan(source).entries]


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def load(source: Path, **settings: object) -> Dataset:
        return load_dataset(source, **({"cache_dir": tmp_path / "cache"} | settings))

    return load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two classes."""
    files = {f"{'cat' if i % 2 else 'dog'}/{i:02}.png": encoded(make_image(i)) for i in range(12)}
    return write_folder(tmp_path / "data", files)


# what is found


def test_a_folder_is_read_recursively_by_suffix_in_the_order_of_names(tmp_path):
    found = ["B.PNG", "a/b/deep.webp", "a/c.JPeG", "a.png"]
    ignored = ["notes.txt", ".hidden.png", ".git/x.png", "__MACOSX/x.png", "a/.x/y.png", "png"]
    write_folder(tmp_path, dict.fromkeys(found + ignored, b""))
    assert names(tmp_path) == sorted(found)


def test_a_zip_gives_the_same_names_and_pixels_as_the_folder(tmp_path, folder, load):
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}
    archive = write_zip(tmp_path / "data.zip", dict(reversed(files.items())) | {"LICENSE": b"CC0"})
    assert names(archive) == names(folder)
    assert load(archive).fingerprint == load(folder).fingerprint
    assert torch.equal(load(archive).pixels, load(folder).pixels)


def test_symlink_loops_end_and_each_folder_is_read_once_under_its_own_name(tmp_path):
    data = write_folder(tmp_path / "data", {"z/a.png": b"", "z/y/b.png": b""})
    write_folder(tmp_path / "outside", {"c.png": b""})
    write_folder(tmp_path, {"neighbour.png": b""})
    (data / "z/up").symlink_to(data)
    (data / "around").symlink_to(tmp_path)
    (data / "a").symlink_to(data / "z")
    (data / "far").symlink_to(tmp_path / "outside")
    (data / "self").symlink_to("self")
    assert names(data) == ["far/c.png", "z/a.png", "z/y/b.png"]


def test_links_to_nothing_are_named_and_pipes_are_not_opened(folder, load):
    (folder / "cat/gone.png").symlink_to("nowhere")
    os.mkfifo(folder / "cat/pipe.png")
    data = load(folder)
    assert data.skipped == (("cat/gone.png", "No such file or directory."),)
    assert len(data.pixels) == 12


def test_zip_names_never_lead_outside_and_nothing_is_extracted(tmp_path, load):
    data = encoded(make_image())
    hostile = ["../../evil.png", "/abs.png", "a/../../b.png", "..\\c.png", "dir.png/"]
    archive = write_zip(tmp_path / "hostile.zip", dict.fromkeys(hostile, data))
    before = sorted(tmp_path.rglob("*"))
    assert names(archive) == ["a/b.png", "abs.png", "c.png", "evil.png"]
    assert len(load(archive, cache_dir=tmp_path / "cache").pixels) == 4
    written = {p.relative_to(tmp_path).parts[0] for p in set(tmp_path.rglob("*")) - set(before)}
    assert written == {"cache"}


def test_a_zip_member_without_a_name_is_left_out(tmp_path):
    path = write_zip(tmp_path / "d.zip", {"a.png": b"", "b.png": b""})
    path.write_bytes(path.read_bytes().replace(b"a.png", b"\0.png"))
    assert names(path) == ["b.png"]


def test_the_one_folder_around_a_zips_class_folders_is_no_class(tmp_path, load):
    files = {f"tiles/{c}/{c}.png": encoded(make_image(i)) for i, c in enumerate("ab")}
    assert names(write_zip(tmp_path / "a.zip", files)) == ["a/a.png", "b/b.png"]
    assert names(write_zip(tmp_path / "b.zip", {"tiles/x.png": b""})) == ["tiles/x.png"]


def test_terminal_codes_and_undecodable_bytes_in_names_are_escaped(folder, load):
    (folder / "cat/\x1b[31m\n.png").write_bytes(b"no image")
    with open(os.fsencode(folder) + b"/cat/\xff.png", "wb") as file:  # noqa: PTH123 - bytes
        file.write(b"no image")
    assert [name for name, _ in load(folder).skipped] == [
        "cat/\\x1b[31m\\n.png",
        "cat/\\udcff.png",
    ]


# what is refused


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda at: at / "absent", RequestError, "does not exist"),
        (lambda at: write_folder(at / "d", {"notes.txt": b""}), DataError, "no images"),
        (lambda at: write_zip(at / "d.zip", {"notes.txt": b""}), DataError, "no images"),
        (lambda at: write_folder(at, {"d.zip": b"text"}) / "d.zip", DataError, "neither a folder"),
        (lambda at: write_folder(at, {"d.zip": b""}) / "d.zip", DataError, "neither a folder"),
        (lambda at: write_folder(at / "d", {"a.png": b"text"}), DataError, "none of the 1"),
    ],
)
def test_a_source_without_images_is_refused(tmp_path, load, make, error, says):
    with pytest.raises(error, match=says) as raised:
        load(make(tmp_path))
    assert raised.value.remedy


def test_unreadable_images_are_named_and_with_strict_refused(folder, load):
    whole = encoded(make_image(99), "JPEG")
    write_folder(folder, {"cat/text.png": b"hello", "dog/torn.jpg": whole[: len(whole) // 2]})
    data = load(folder)
    assert [name for name, _ in data.skipped] == ["cat/text.png", "dog/torn.jpg"]
    assert all(reason for _, reason in data.skipped)
    assert len(data.pixels) == 12
    for cache in ("cache", "cold"):
        with pytest.raises(DataError, match=r"cat/text\.png"):
            load(folder, strict=True, cache_dir=folder.parent / cache)


def corrupt(path: Path, data: bytes) -> None:
    """Flip a bit in the middle of a stored member."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(data) + len(data) // 2] ^= 1
    path.write_bytes(raw)


def test_damaged_encrypted_and_exotic_zip_members_are_named(tmp_path, load):
    path = tmp_path / "d.zip"
    torn, secret = encoded(make_image(1)), encoded(make_image(2))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", encoded(make_image(0)))
        archive.writestr("torn.png", torn)
        archive.writestr("exotic.png", encoded(make_image(3)), zipfile.ZIP_BZIP2)
        archive.writestr("secret.png", secret)
    corrupt(path, torn)
    raw = bytearray(path.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1  # the flags of the last member in the directory
    path.write_bytes(raw)
    reasons = dict(load(path).skipped)
    assert reasons.keys() == {"torn.png", "exotic.png", "secret.png"}
    assert "damaged" in reasons["torn.png"]
    assert "compression" in reasons["exotic.png"]
    assert "encrypted" in reasons["secret.png"]


def test_a_zip_member_that_would_unpack_to_far_more_is_not_unpacked(tmp_path, load, monkeypatch):
    files = {"good.png": encoded(make_image()), "bomb.png": bytes(17 * 2**20)}
    archive = write_zip(tmp_path / "d.zip", files)
    unpacked = []
    read = zipfile.ZipFile.read
    monkeypatch.setattr(
        zipfile.ZipFile,
        "read",
        lambda self, info: unpacked.append(info.filename) or read(self, info),
    )
    assert [name for name, _ in load(archive).skipped] == ["bomb.png"]
    assert unpacked == ["good.png"]


def test_a_huge_file_is_not_read(folder, load):
    with (folder / "cat/huge.png").open("wb") as file:
        file.truncate(2**40)
    assert [name for name, _ in load(folder).skipped] == ["cat/huge.png"]


@given(st.binary(max_size=40), st.integers(0, 400), st.booleans())
def test_no_damage_to_a_zip_is_a_traceback(tmp_path_factory, junk, at, cut):
    folder = tmp_path_factory.mktemp("fuzz")
    path = write_zip(folder / "d.zip", {"a/x.png": encoded(make_image()), "b/y.png": b"no image"})
    raw = path.read_bytes()
    at = min(at, len(raw))
    path.write_bytes(raw[:at] + junk + (b"" if cut else raw[at + len(junk) :]))
    try:
        load_dataset(path, cache_dir=folder)
    except DdimctlError as error:
        assert "\n" not in error.cause


# pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_becomes_bytes_of_one_shape(tmp_path, load, channels):
    sixteen = Image.frombytes("I;16", (8, 8), struct.pack("<64H", *range(0, 64000, 1000)))
    kinds = {
        "palette.png": encoded(make_image(0).quantize(16)),
        "alpha.png": encoded(make_image(1, mode="RGBA")),
        "gray.png": encoded(make_image(2, mode="L")),
        "gray-alpha.webp": encoded(make_image(3, mode="LA").convert("RGBA"), "WEBP"),
        "bits.png": encoded(make_image(4, mode="L").convert("1")),
        "sixteen.png": encoded(sixteen),
        "cmyk.jpg": encoded(make_image(5, mode="CMYK"), "JPEG"),
        "moving.gif": encoded(make_image(6), "GIF"),
    }
    data = load(write_folder(tmp_path / "d", kinds), channels=channels, image_size=(4, 6))
    assert data.skipped == ()
    assert data.pixels.shape == (len(kinds), 4, 6, channels)
    assert data.pixels.dtype == torch.uint8
    assert data.sample_shape == (channels, 4, 6)


def test_pixels_are_those_of_the_image_on_the_background(tmp_path, load):
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    files = {"a.png": encoded(make_image(5)), "clear.png": encoded(clear)}
    data = load(write_folder(tmp_path / "d", files), background=(1, 2, 3))
    assert bytes(data.pixels[0].flatten().tolist()) == make_image(5).tobytes()
    assert data.pixels[1].unique(dim=0).unique(dim=1).flatten().tolist() == [1, 2, 3]


def test_exif_orientation_is_applied_before_sizes_are_compared(tmp_path, load):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    lying = Image.new("RGB", (16, 16))
    lying.paste((255, 255, 255), (0, 0, 8, 16))  # the left half is white
    files = {"a.png": encoded(lying, exif=exif)}
    pixels = load(write_folder(tmp_path / "d", files)).pixels[0]
    assert pixels[:8].eq(255).all() and pixels[8:].eq(0).all()  # now the upper half


@pytest.mark.parametrize("sizes", [[(8, 8), (8, 8), (16, 16)], [(8, 6), (8, 6)]])
def test_without_an_image_size_images_must_be_square_and_equal(tmp_path, load, sizes):
    files = {f"{i}.png": encoded(make_image(i, size)) for i, size in enumerate(sizes)}
    folder = write_folder(tmp_path / "d", files)
    with pytest.raises(RequestError, match="--image-size"):
        load(folder)
    assert load(folder, image_size=(4, 4)).pixels.shape == (len(sizes), 4, 4, 3)


def test_class_folders_become_labels(folder, load):
    write_folder(folder, {"ant/deep/er.png": encoded(make_image(50)), "dog/bad.png": b""})
    data = load(folder, class_conditional=True)
    assert data.class_names == ("ant", "cat", "dog")
    assert data.labels.tolist() == [0] + [1] * 6 + [2] * 6
    assert data.labels.dtype == torch.int64
    assert load(folder).labels is None and load(folder).class_names == ()


def test_with_classes_an_image_outside_them_is_named(folder, load):
    write_folder(folder, {"stray.png": encoded(make_image())})
    with pytest.raises(DataError, match=r"stray\.png is not in a class folder"):
        load(folder, class_conditional=True)


# the split


def test_the_split_depends_on_contents_alone(tmp_path, load):
    def held(files: dict[str, bytes]) -> tuple[set[str], Dataset]:
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        data = load(write_folder(tmp_path / digest, files), holdout=0.3)
        return {data.content_hashes[i] for i in data.held_out}, data

    files = {f"{i:03}.png": encoded(make_image(i, (2, 2))) for i in range(100)}
    aside, data = held(files)
    assert 15 <= len(aside) <= 45
    assert sorted([*data.training.tolist(), *data.held_out.tolist()]) == list(range(100))
    renamed = {f"{i % 7}/{100 - i}.png": data for i, data in enumerate(files.values())}
    assert held(renamed)[0] == aside
    assert held(dict(list(files.items())[:50]))[0] <= aside


def test_equal_images_stay_on_one_side_however_encoded(tmp_path, load):
    files = {}
    for i in range(40):
        image = make_image(i, (4, 4))
        files[f"{i}/a.png"] = encoded(image)
        files[f"{i}/b.bmp"] = encoded(image, "BMP")
        files[f"{i}/c.webp"] = encoded(image, "WEBP", lossless=True)
    data = load(write_folder(tmp_path / "d", files), holdout=0.5)
    sides = [bool((data.held_out == i).any()) for i in range(120)]
    assert sides[0::3] == sides[1::3] == sides[2::3]
    assert True in sides and False in sides


def test_the_split_is_the_same_at_another_image_size(folder, load):
    small, large = (load(folder, holdout=0.5, image_size=(n, n)) for n in (4, 16))
    assert torch.equal(small.held_out, large.held_out)


def test_the_bounds_of_holdout(folder, load):
    assert len(load(folder, holdout=0.0).held_out) == 0
    with pytest.raises(DataError, match="leaves none"):
        load(folder, holdout=1 - 2**-53)
    with pytest.raises(RequestError):
        load(folder, holdout=1.0)


# the cache


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """Grows by one for each image that is decoded."""
    calls: list[bytes] = []
    read = dataset_cache.read_image

    def counting(data, *rest, **names):
        calls.append(data)
        return read(data, *rest, **names)

    monkeypatch.setattr(dataset_cache, "read_image", counting)
    return calls


def cache_file(folder: Path) -> Path:
    (path,) = (folder.parent / "cache/datasets").iterdir()
    return path


def same(a: Dataset, b: Dataset) -> bool:
    return (
        torch.equal(a.pixels, b.pixels)
        and a.fingerprint == b.fingerprint
        and a.content_hashes == b.content_hashes
        and a.skipped == b.skipped
    )


def test_images_are_decoded_once_wherever_the_data_lies(folder, load, decoded):
    write_folder(folder, {"dog/bad.png": b"no image"})
    reports: list[tuple[int, int]] = []
    first = load(folder, on_progress=lambda *report: reports.append(report))
    assert reports == [(i, 13) for i in range(1, 14)]
    assert len(decoded) == 13
    moved = folder.rename(folder.parent / "moved")
    second = load(moved, holdout=0.5, class_conditional=True, on_progress=lambda *_: 1 / 0)
    assert decoded[13:] == [b"no image"]  # only what could not be read is tried again
    assert same(first, second)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: raw + b"\0",
        lambda raw: bytes([raw[0] ^ 1]) + raw[1:],  # a pixel
        lambda raw: raw.replace(b'"skipped": []', b'"skipped": {}'),
        lambda raw: raw[:500] + raw[600:],
        lambda raw: bytes(len(raw)),
    ],
)
def test_a_damaged_cache_is_made_again(folder, load, decoded, damage):
    first = load(folder)
    cached = cache_file(folder)
    whole = cached.read_bytes()
    cached.unlink()  # the first data set has it mapped
    cached.write_bytes(damage(whole))
    assert cached.read_bytes() != whole
    assert same(load(folder), first)
    assert len(decoded) == 24
    assert cached.read_bytes() == whole


def test_a_cache_under_another_name_is_not_believed(tmp_path, folder, load):
    load(folder)
    other = write_folder(tmp_path / "other", {"a.png": encoded(make_image(77))})
    first = cache_file(folder)
    load(other)
    (second,) = set(first.parent.iterdir()) - {first}
    second.unlink()
    second.write_bytes(first.read_bytes())
    assert len(load(other).pixels) == 1


def test_a_changed_file_or_setting_is_decoded_anew(folder, load):
    first = load(folder)
    path = folder / "cat/01.png"
    path.write_bytes(encoded(make_image(200)))
    os.utime(path, ns=(0, 0))
    changed = load(folder)
    assert changed.fingerprint != first.fingerprint
    assert not torch.equal(changed.pixels, first.pixels)
    seen = {first.fingerprint, changed.fingerprint}
    seen |= {load(folder, channels=1).fingerprint, load(folder, background=(9, 9, 9)).fingerprint}
    path.rename(folder / "cat/new.png")
    assert len(seen | {load(folder).fingerprint}) == 5


def test_a_new_date_on_the_same_images_keeps_the_fingerprint(folder, load):
    first = load(folder)
    os.utime(folder / "cat/01.png", ns=(0, 0))
    assert same(load(folder), first)


def test_what_the_system_refused_for_now_is_tried_again(folder, load, monkeypatch):
    read_bytes = Path.open

    def refusing(self, *rest):
        if self.name == "01.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_bytes(self, *rest)

    monkeypatch.setattr(Path, "open", refusing)
    first = load(folder)
    assert [name for name, _ in first.skipped] == ["cat/01.png"]
    assert len(first.pixels) == 11 and first.pixels.sum() > 0
    monkeypatch.undo()
    assert load(folder).skipped == ()


def test_a_zip_that_was_damaged_and_repaired_is_read_anew(tmp_path, load):
    path = tmp_path / "d.zip"
    files = {f"{i}.png": encoded(make_image(i)) for i in range(3)}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    whole = path.read_bytes()
    corrupt(path, files["1.png"])
    assert [name for name, _ in load(path).skipped] == ["1.png"]
    path.write_bytes(whole)
    assert load(path).skipped == ()


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, folder, load):
    (tmp_path / "file").write_bytes(b"")
    assert same(load(folder, cache_dir=tmp_path / "file"), load(folder))


def test_a_disk_that_fills_up_is_done_without(tmp_path, folder, load, monkeypatch):
    whole = load(folder)

    @contextmanager
    def filling(path):
        with open_atomic(path) as file:
            yield file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(dataset_cache, "open_atomic", filling)
    assert same(load(folder, cache_dir=tmp_path / "full"), whole)
    assert [p for p in (tmp_path / "full").rglob("*") if p.is_file()] == []


def test_without_cache_and_memory_the_remedy_is_another_cache(tmp_path, folder, load, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise MemoryError

    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(dataset_cache.io, "BytesIO", Full)
    monkeypatch.setattr(dataset_cache, "read_image", lambda *_, **__: make_image())
    with pytest.raises(StorageError) as raised:
        load(folder, cache_dir=tmp_path / "file")
    assert "DDIMCTL_CACHE" in raised.value.remedy


def test_several_at_once_make_one_whole_cache(folder, load):
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(load, [folder] * 4)
    assert all(same(first, other) for other in others)
    assert same(load(folder), first)
    assert cache_file(folder).stat().st_size > first.pixels.numel()


def test_a_large_cache_is_checked_by_a_sample(folder, load, decoded, monkeypatch):
    monkeypatch.setattr(dataset_cache, "_CHECKED_BYTES", 6 * 8 * 8 * 3)  # every second of twelve
    first = load(folder)
    cached = cache_file(folder)
    whole = cached.read_bytes()
    cached.unlink()
    cached.write_bytes(bytes(first.pixels.numel()) + whole[first.pixels.numel() :])
    assert same(load(folder), first)
    assert len(decoded) == 24


def test_a_failed_reading_leaves_nothing_in_the_cache(tmp_path, load):
    folder = write_folder(tmp_path / "d", {"a.png": encoded(make_image()), "b.png": b""})
    with pytest.raises(DataError):
        load(folder, strict=True)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_the_cache_is_where_the_environment_says(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "own"))
    load_dataset(folder)
    monkeypatch.delenv("DDIMCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_dataset(folder)
    assert len(list((tmp_path / "own/datasets").iterdir())) == 1
    assert len(list((tmp_path / "xdg/ddimctl/datasets").iterdir())) == 1


def test_reading_a_source_entry_by_entry_gives_its_files(folder):
    with open_source(folder) as read:
        assert {e.name: read(e) for e in scan(folder).entries} == {
            p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")
        }


# batches


@pytest.mark.parametrize("channels", [1, 3])
def test_gather_equals_taking_one_image_after_the_other(channels):
    pixels = torch.randint(256, (10, 5, 4, channels), dtype=torch.uint8)
    indices = torch.tensor([3, 3, 9, 0, 7])
    flips = torch.tensor([True, False, True, False, True])
    batch = gather(pixels, indices, flips)
    for image, index, flip in zip(batch, indices, flips, strict=True):
        rows = pixels[index].double().permute(2, 0, 1) * 2 / 255 - 1
        expected = rows.flip(-1) if flip else rows
        torch.testing.assert_close(image, expected.float(), rtol=0, atol=1e-7)
    assert torch.equal(gather(pixels, indices)[1], batch[1])
    assert batch.dtype == torch.float32


def test_black_is_minus_one_and_white_is_one():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert gather(pixels, torch.arange(2)).flatten().tolist() == [-1.0, 1.0]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gather_gives_the_same_on_a_gpu():
    pixels = torch.randint(256, (50, 8, 8, 3), dtype=torch.uint8)
    indices, flips = torch.randint(50, (16,)), torch.rand(16) < 0.5
    on_gpu = gather(pixels, indices, flips, "cuda")
    torch.testing.assert_close(on_gpu.cpu(), gather(pixels, indices, flips), rtol=0, atol=1e-6)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6))
def test_each_epoch_shows_each_image_once(n, seed, epoch):
    assert sorted(sample_indices(seed, epoch * n, n, n).tolist()) == list(range(n))


@given(
    n=st.integers(1, 20),
    first=st.integers(0, 1000),
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6),
)
def test_the_order_does_not_depend_on_the_batch_size(n, first, sizes):
    batches, at = [], first
    for size in sizes:
        batches.append(sample_indices(7, at, size, n))
        at += size
    assert torch.equal(torch.cat(batches), sample_indices(7, first, sum(sizes), n))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [sample_indices(seed, epoch * 50, 50, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_writing_to_a_batch_of_indices_changes_no_later_one():
    first = sample_indices(3, 0, 5, 10)
    expected = first.clone()
    first.zero_()
    assert torch.equal(sample_indices(3, 0, 5, 10), expected)
