"""Strangers' files: whole ones, ways to damage them, and what may come of reading either."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from ddimctl.errors import DataError, DdimctlError
from ddimctl.files.dataset.source import open_source, scan
from ddimctl.files.latents import load_latents
from ddimctl.files.pictures.images import read_image, read_image_text

# The same examples each time, and no files of Hypothesis in the repository.
FAST = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=100,
    suppress_health_check=list(HealthCheck),
)
THOROUGH = settings(FAST, max_examples=2000)


def value_or_our_error(read: Callable[[], object]) -> DdimctlError | None:
    """Run it: it must end, or fail with an error of ours that fits two lines."""
    try:
        read()
    except DdimctlError as error:
        assert len(error.cause.splitlines()) == 1
        assert error.cause.strip()
        assert len(error.remedy.splitlines()) <= 1
        assert error.exit_code in (1, 2)
        return error
    return None


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, files with their content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


# --- properties of the readers, for any bytes ---------------------------------------------------


def check_image(data: bytes) -> None:
    """The bytes are an image of both kinds, or a DataError."""
    for channels in (1, 3):
        found: list[Image.Image] = []
        error = value_or_our_error(lambda: found.append(read_image(data, channels)))  # noqa: B023
        assert error is None or isinstance(error, DataError)
        assert error or found[0].mode == {1: "L", 3: "RGB"}[channels]
    value_or_our_error(lambda: read_image_text(data))


def check_latents(path: Path, data: bytes) -> None:
    """The file is finite latents, or a DataError."""
    path.write_bytes(data)
    found: list[Any] = []
    error = value_or_our_error(lambda: found.append(load_latents(path)))
    assert error is None or isinstance(error, DataError)
    assert error or (found[0].latents.ndim == 4 and found[0].latents.isfinite().all())


def check_zip(path: Path, data: bytes) -> None:
    """Every image that the zip lists is bytes, a DataError, or refused by the system."""
    path.write_bytes(data)

    def read_all() -> None:
        entries = scan(path).entries
        with open_source(path) as read:
            for entry in entries:
                assert ".." not in entry.name.split("/")
                assert not entry.name.startswith("/")
                with suppress(OSError):
                    value_or_our_error(lambda: read(entry))  # noqa: B023

    value_or_our_error(read_all)


# --- damage -------------------------------------------------------------------------------------

_EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


@st.composite
def damaged(draw: Any, wholes: Sequence[bytes]) -> bytes:
    """One of the files: cut off, bits flipped, numbers made extreme, pieces swapped or repeated."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("number", "flip", "cut", "swap", "repeat", "junk")))
        if kind == "number":
            size = draw(st.sampled_from((1, 2, 4, 8)))
            number = draw(st.sampled_from(_EXTREMES)) % 256**size
            data[at : at + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))
        elif kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "swap":
            other, size = draw(st.integers(0, len(data))), draw(st.integers(1, 16))
            one, two = data[at : at + size], data[other : other + size]
            data[at : at + len(two)] = two
            data[other : other + len(one)] = one
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = draw(st.binary(min_size=1, max_size=12))
    return bytes(data)


def with_png_checksums(data: bytes) -> bytes:
    """The file with right checksums, so that a reader looks at what the damaged chunks say."""
    at, out = 8, bytearray(data)
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


# --- images -----------------------------------------------------------------------------------


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def sideways() -> Image.Exif:
    """EXIF of a camera held sideways, with a comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: b'ASCII\0\0\0{"ddimctl": "{}"}'}
    return exif


def some_images() -> dict[str, bytes]:
    """A small whole image of every format and kind that is read, by its file's name."""
    noise = Image.effect_noise((17, 9), 60)
    rgb = Image.merge("RGB", (noise, noise.transpose(Image.Transpose.ROTATE_180), noise))
    rgba = Image.merge("RGBA", (*rgb.split(), noise))
    moving = {"save_all": True, "append_images": [rgb.rotate(90 * i) for i in range(1, 4)]}
    text = PngInfo()
    text.add_text("ddimctl", '{"seed": 7}')
    text.add_itxt("Comment", "Größe", zip=True)
    return {
        "rgb.png": encoded(rgb, pnginfo=text),
        "rgba.png": encoded(rgba, exif=sideways()),
        "gray-alpha.png": encoded(rgba.convert("LA")),
        "bits.png": encoded(noise.convert("1")),
        "sixteen.png": encoded(noise.convert("I").point(lambda v: v * 257).convert("I;16")),
        "palette.png": encoded(rgb.quantize(16), transparency=3),
        "moving.png": encoded(rgb, **moving),
        "rgb.jpg": encoded(rgb, "JPEG", exif=sideways()),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "lossy.webp": encoded(rgb, "WEBP"),
        "rgba.webp": encoded(rgba, "WEBP", lossless=True, exif=sideways()),
        "moving.webp": encoded(rgb, "WEBP", **moving),
        "moving.gif": encoded(rgb, "GIF", **moving),
        "clear.gif": encoded(rgb.quantize(16), "GIF", transparency=0),
        "rgb.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "sixteen.tif": encoded(noise.convert("I;16"), "TIFF"),
        "cmyk.tif": encoded(rgb.convert("CMYK"), "TIFF"),
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "rgba.tga": encoded(rgba, "TGA", compression="tga_rle"),
        "rgba.ico": encoded(rgba, "ICO"),
        "rgb.pcx": encoded(rgb, "PCX"),
        "rgb.jp2": encoded(rgb, "JPEG2000"),
    }


def png(width: int, height: int, pixels: bytes = b"", bits: int = 8, colour: int = 2) -> bytes:
    """A PNG file that declares this size, whatever its compressed pixels hold."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def bombs() -> dict[str, bytes]:
    """Small files that declare more pixels than are read, or more text."""
    text, profile = PngInfo(), b"\0" * 10**7
    text.add_text("a", "x" * 10**7, zip=True)
    empty = b"\0" * 6 + b",\0\0\0\0\1\0\1\0\0\2\2L\1\0;"
    gif, tga, bmp, qoi = "<HHBBB", "<BBBHHBHHHHBB", "<2sIHHIIiiHHIIiiII", ">4sIIBB"
    return {
        "declared.png": png(100_000, 100_000),
        "strip.png": png(10**8, 1),
        "large.png": png(13_000, 13_000),
        "limit.png": png(11_000, 11_000),  # within the limit, but there is nothing in it
        "text.png": encoded(Image.new("L", (4, 4)), pnginfo=text),
        "profile.png": encoded(Image.new("L", (4, 4)), icc_profile=profile),
        "large.gif": b"GIF89a" + struct.pack(gif, 65_535, 65_535, 0, 0, 0) + empty,
        "middle.gif": b"GIF89a" + struct.pack(gif, 12_000, 12_000, 0x80, 0, 0) + empty,
        "large.tga": struct.pack(tga, 0, 0, 2, 0, 0, 0, 0, 0, 65_535, 65_535, 24, 0),
        "large.bmp": struct.pack(
            bmp, b"BM", 54, 0, 0, 54, 40, 10**5, 10**5, 1, 24, 0, 0, 0, 0, 0, 0
        ),
        "large.ppm": b"P6 12000 12000 255\n",
        "large.qoi": struct.pack(qoi, b"qoif", 65_535, 65_535, 3, 0),
    }


# --- latents ------------------------------------------------------------------------------------


def some_latents(folder: Path) -> dict[str, bytes]:
    """Whole latent files by the suffix that their reader goes by."""
    x_T = torch.arange(12.0).view(1, 3, 2, 2)
    metadata = {"timesteps": [0, 999], "checkpoint": {"name": "a"}, "eta": 0.0}
    torch.save({"latents": x_T, "metadata": metadata}, folder / "new.pt")
    torch.save(x_T, folder / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"latents": x_T}, folder / "a.safetensors", {"ddimctl": '{"eta": 0.5, "top": 9}'})
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def pickle_bombs() -> dict[str, bytes]:
    """Pickles of few bytes that weights_only allows and that stand for gigabytes."""
    doubling = b"\x80\x02" + b"c_codecs\nencode\n" * 31 + b"X\x01\0\0\0aX\x05\0\0\0utf-8\x86R"
    zeros = b"\x80\x02c__builtin__\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little")
    return {"encode": doubling + b"X\x03\0\0\0hex\x86R" * 30 + b".", "bytearray": zeros + b"\x85R."}


def with_pickle(whole: bytes, pickled: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


# --- zips ---------------------------------------------------------------------------------------


def a_zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A data set of two classes and a file that is no image."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in ("a/x.png", "a/y.png", "b/z.png"):
            archive.writestr(name, encoded(Image.new("RGB", (4, 4), (9, 9, 9))))
        archive.writestr("b/no.png", b"no image")
    return buffer.getvalue()
