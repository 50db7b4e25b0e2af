"""Files of strangers: a value or an error of ours, little memory, and nothing written."""

import io
import os
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bad_input import (
    FAST,
    a_zip,
    bombs,
    check_image,
    check_latents,
    check_zip,
    damaged,
    encoded,
    pickle_bombs,
    sideways,
    some_images,
    some_latents,
    tree,
    value_or_our_error,
    with_pickle,
    with_png_checksums,
)
from ddimctl.errors import DataError, RequestError
from ddimctl.files.dataset.datasets import load_dataset
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.files.pictures.images import (
    MAX_PIXELS,
    MAX_SIDE,
    image_pixels,
    read_image,
    read_image_text,
)
from ddimctl.jobs.interpolate.inputs import read_inputs
from ddimctl.jobs.invert.input_images import find_inputs
from peak import IMPORT_PEAK

IMAGES = some_images()
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged files


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    return some_latents(tmp_path_factory.mktemp("latents"))


# any bytes


@FAST
@given(damaged(list(IMAGES.values())))
def test_a_damaged_image_is_an_image_or_a_data_error(data):
    check_image(data)


@FAST
@given(damaged([data for name, data in IMAGES.items() if name.endswith(".png")]))
def test_a_png_with_wrong_numbers_and_right_checksums(data):
    check_image(with_png_checksums(data))


@FAST
@given(st.binary(max_size=200))
def test_bytes_that_are_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("bytes")
    check_image(data)
    check_latents(folder / "a.pt", data)
    check_latents(folder / "a.safetensors", data)
    check_zip(folder / "a.zip", data)


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "a.safetensors"])
def test_damaged_latents_are_latents_or_a_data_error(tmp_path, latents, name):
    FAST(given(damaged([latents[name]]))(lambda data: check_latents(tmp_path / name, data)))()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_zip_is_read_as_far_as_it_goes(tmp_path, method):
    FAST(given(damaged([a_zip(method)]))(lambda data: check_zip(tmp_path / "d.zip", data)))()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_cut_off_anywhere_is_an_image_or_a_data_error(name):
    whole = IMAGES[name]
    assert read_image(whole, 3).width in (9, 16, 17)
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        check_image(whole[:end])


# what images claim and hold

PEAK = """
import warnings
from pathlib import Path
from ddimctl.errors import DataError
from ddimctl.files.pictures.images import read_image_text, read_image
from ddimctl.files.latents import load_latents
warnings.simplefilter("ignore")
before = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    readers = [lambda path: read_image(path, 3), read_image_text]
    for read in [load_latents] if path.suffix == ".pt" else readers:
        try:
            read(path)
        except DataError as error:
            print(path.name, error.cause)
print(int(peak() - before))
"""


def test_bombs_are_refused_without_taking_memory(tmp_path, clean_env, latents):
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    for name, data in pickle_bombs().items():
        (tmp_path / f"{name}.pt").write_bytes(with_pickle(latents["new.pt"], data))
        (tmp_path / f"{name}-packed.pt").write_bytes(
            with_pickle(latents["new.pt"], data, zipfile.ZIP_DEFLATED)
        )
        (tmp_path / f"{name}-bare.pt").write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_PEAK + PEAK, tmp_path],
        env=clean_env,
        capture_output=True,
        text=True,
    )
    *refused, megabytes = ran.stdout.splitlines()
    assert {line.split()[0] for line in refused} == {path.name for path in tmp_path.iterdir()}
    assert int(megabytes) < 200


@pytest.mark.parametrize(
    "size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (MAX_PIXELS // 9999, 10001)]
)
def test_too_many_pixels_are_refused_with_their_number_and_the_limit(size):
    with pytest.raises(DataError, match=r"the limit is 128 million, and 65,535 per side") as raised:
        read_image(encoded(Image.new("1", size)), 1)
    assert f"{size[0]}x{size[1]}" in raised.value.cause


@pytest.mark.parametrize("size", [(MAX_SIDE, 1), (1, MAX_SIDE), (1, 1), (1, 600), (257, 513)])
def test_images_of_odd_shapes_are_read_pixel_for_pixel(size):
    levels = torch.randint(0, 256, (size[0] * size[1] * 4,), dtype=torch.uint8)
    rgba = Image.frombytes("RGBA", size, bytes(levels.tolist()))
    below = Image.new("RGBA", size, (9, 99, 200, 255))
    expected = Image.alpha_composite(below, rgba).convert("RGB")
    assert read_image(encoded(rgba), 3, (9, 99, 200)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_thousands_of_frames_only_the_first_is_looked_at(format):
    frames = [Image.new("L", (8, 8), i % 251) for i in range(3000)]
    data = encoded(frames[7], format, save_all=True, append_images=frames, lossless=True)
    if format != "WEBP":  # which tells its length in front
        data = data[: len(data) // 10]
    assert read_image(data, 1).getpixel((0, 0)) == 7


GARBAGE = [
    b"garbage",
    b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0",  # orientation 99
    b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04six\0\0\0\0\0",  # orientation "six"
    b"MM\0*\0\0\0\x08\xff\xff\x87\x69\0\x04\0\0\0\x01\0\0\0\x08",  # a loop that never ends
    b"II*\0\xff\xff\xff\xff",
]


@pytest.mark.parametrize("exif", GARBAGE)
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_garbage_in_the_exif_does_not_cost_the_image(exif, format):
    image = read_image(encoded(Image.new("RGB", (8, 16)), format, exif=b"Exif\0\0" + exif), 3)
    assert image.size == (8, 16)


def test_exif_that_turns_and_is_damaged_elsewhere_turns():
    exif = sideways().tobytes()
    turned = encoded(Image.new("RGB", (8, 16)), "JPEG", exif=exif[:-3])
    assert read_image(turned, 3).size == (16, 8)


@pytest.mark.parametrize(("name", "suffix"), [("rgb.jpg", ".png"), ("rgba.png", ".gif")])
def test_a_suffix_that_lies_does_not_matter(tmp_path, name, suffix):
    path = (tmp_path / "lie").with_suffix(suffix)
    path.write_bytes(IMAGES[name])
    assert torch.equal(image_pixels(read_image(path, 3)), image_pixels(read_image(IMAGES[name], 3)))
    assert len(load_dataset(tmp_path, image_size=(4, 4), cache_dir=tmp_path / "c").pixels) == 1


# what latents claim and hold


@pytest.mark.parametrize("bomb", pickle_bombs())
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_pickle_that_would_unfold_is_refused(tmp_path, latents, bomb, method):
    path = tmp_path / "a.pt"
    path.write_bytes(with_pickle(latents["new.pt"], pickle_bombs()[bomb], method))
    with pytest.raises(DataError, match=r"are encoded|call builtins\.bytearray|is compressed"):
        load_latents(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["eta", "guidance"])
def test_numbers_that_no_float_holds_are_refused(tmp_path, suffix, name):
    save_latents(tmp_path / f"a{suffix}", torch.zeros(1, 3, 2, 2), {name: 10**400})
    with pytest.raises(DataError, match=f"more than 64 bits, in '{name}'"):
        load_latents(tmp_path / f"a{suffix}")


# paths

LONG = "x" * 300


def read_any(path: Path) -> None:
    """Whatever a command does with a path that is named on its line."""
    errors = [
        value_or_our_error(read)
        for read in (
            lambda: read_image(path, 3),
            lambda: read_image_text(path),
            lambda: load_latents(path),
            lambda: read_inputs([path], ()),
            lambda: read_inputs([path.with_suffix(".pt")], ()),
            lambda: load_dataset(path, cache_dir=path.parent / "cache"),
            lambda: find_inputs([path]) and read_image(path, 3),
        )
    ]
    assert all(isinstance(error, DataError | RequestError) for error in errors)


@pytest.mark.parametrize(
    "make",
    [
        lambda at: at / LONG,
        lambda at: at / "nul\0.png",
        lambda at: at / os.fsdecode(b"\xff\xfe.png"),
        lambda at: (at / "file", (at / "file").write_bytes(b""))[0] / "below.png",
        lambda at: (at / "loop.png", (at / "loop.png").symlink_to("loop.png"))[0],
        lambda at: (at / "folder.png", (at / "folder.png").mkdir())[0],
        lambda at: (at / "empty.png", (at / "empty.png").write_bytes(b""))[0],
        lambda at: (at / "pipe.png", os.mkfifo(at / "pipe.png"), os.mkfifo(at / "pipe.pt"))[0],
        lambda at: Path("/dev/zero"),
    ],
    ids=["long", "nul", "bytes", "below", "loop", "folder", "empty", "pipe", "device"],
)
def test_a_path_that_is_no_file_is_refused_at_once_and_nothing_is_written(tmp_path, make):
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    worker = threading.Thread(target=lambda: (read_any(path), done.append(True)), daemon=True)
    done: list[bool] = []
    worker.start()
    worker.join(20)  # a pipe would be waited for without end
    assert done
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_refused(tmp_path):
    (tmp_path / "closed").mkdir()
    for name in ("secret.png", "secret.pt", "closed/inside.png"):
        (tmp_path / name).write_bytes(IMAGES["rgb.png"])
    (tmp_path / "secret.png").chmod(0)
    (tmp_path / "secret.pt").chmod(0)
    (tmp_path / "closed").chmod(0)
    try:
        for name in ("secret.png", "closed/inside.png"):
            with pytest.raises(DataError, match="permission"):
                read_image(tmp_path / name, 3)
        with pytest.raises(DataError, match="permission"):
            load_latents(tmp_path / "secret.pt")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_reading_changes_nothing_where_the_files_are(tmp_path, latents):
    folder = tmp_path / "given"
    folder.mkdir()
    for name, data in (IMAGES | latents | {"d.zip": a_zip()}).items():
        (folder / name).write_bytes(data)
        (folder / f"torn-{name}").write_bytes(data[: len(data) // 2])
    before = tree(folder)
    for path in sorted(folder.iterdir()):
        value_or_our_error(lambda path=path: read_inputs([path], ()))
        value_or_our_error(lambda path=path: load_dataset(path, cache_dir=tmp_path / "cache"))
    value_or_our_error(lambda: load_dataset(folder, image_size=(4, 4), cache_dir=tmp_path / "c"))
    assert tree(folder) == before


# names


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1), max_size=4))
@FAST
def test_inputs_of_any_names_get_different_ones_that_a_disk_takes(stems):
    inputs = find_inputs([Path(f"{i}/{stem[:230]}.png") for i, stem in enumerate(stems)])
    taken = {input_image.name.casefold() for input_image in inputs}
    assert len(taken) == len(inputs) == len(stems)
    for input_image in inputs:
        assert "/" not in input_image.name
        assert len(os.fsencode(f"{input_image.name}.inversion.png")) <= 255


def test_long_names_that_are_cut_alike_are_numbered():
    inputs = find_inputs([Path(f"{'x' * 240}{i}.png") for i in range(3)])
    assert [input_image.name for input_image in inputs] == [
        "x" * 200,
        "x" * 200 + "-2",
        "x" * 200 + "-3",
    ]


# zips


def test_zips_in_zips_and_what_macos_adds_are_no_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("a.png", IMAGES["rgb.png"])
        archive.writestr("inner.zip", a_zip())
        archive.writestr("inner.png", a_zip())
        archive.writestr("__MACOSX/._a.png", b"\0\5\26\7")
        archive.writestr("._b.png", b"\0\5\26\7")
    data = load_dataset(tmp_path / "d.zip", image_size=(4, 4), cache_dir=tmp_path)
    assert len(data.pixels) == 1
    assert [name for name, _ in data.skipped] == ["inner.png"]


def test_each_of_several_members_of_one_name_is_read(tmp_path):
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for level in (0, 100, 200):
            archive.writestr("a/x.png", encoded(Image.new("L", (4, 4), level)))
    data = load_dataset(tmp_path / "d.zip", class_conditional=True, cache_dir=tmp_path)
    assert sorted(data.pixels[:, 0, 0, 0].tolist()) == [0, 100, 200]
    assert data.class_names == ("a",)


@FAST
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
def test_members_of_any_names_stay_inside(tmp_path_factory, names):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for name in names:
            with_suffix = f"{name}.png".encode("utf-8", "replace").decode()
            archive.writestr(with_suffix, IMAGES["rgb.png"])
    check_zip(tmp_path_factory.mktemp("names") / "d.zip", buffer.getvalue())


def test_a_member_that_lies_beyond_the_end_is_named(tmp_path):
    data = bytearray(a_zip())
    at = data.rfind(b"PK\x01\x02")
    data[at + 42 : at + 46] = b"\xfe\xff\xff\x7f"
    (tmp_path / "d.zip").write_bytes(data.replace(b"no.png", b"zz.png"))
    loaded = load_dataset(tmp_path / "d.zip", cache_dir=tmp_path)
    assert [name for name, _ in loaded.skipped] == ["b/zz.png"]
