"""Images in and out: tensors to 8-bit images with their settings, and strangers' files to tensors."""

import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ddimctl.errors import DataError, RequestError
from ddimctl.files.pictures.formats import ANIMATED, HEIC_HINT, is_heic, readable
from ddimctl.files.untrusted.guards import (
    Refused,
    check_plain_file,
    check_regular,
    reason,
    refusals,
)
from ddimctl.files.untrusted.settings import parse_json

FORMATS: Final = ("png", "webp")
FITS: Final = ("crop", "pad", "stretch")

MAX_PIXELS: Final = 128_000_000
"""Larger images are refused before they are decoded, which takes 8 bytes of memory a pixel."""
MAX_BYTES: Final = 256 * 2**20  # of one encoded image
MAX_SIDE: Final = 65_535  # what JPEG knows; resizing a longer strip takes gigabytes

_ANIMATED: Final = "animated"  # in the info of an image
_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}
# Pillow's decoders raise all of these on damaged files.
_DECODING_ERRORS: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(EOFError, MemoryError, RuntimeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_PNG_BEGIN: Final = b"\x89PNG\r\n\x1a\n"
_PNG_END: Final = b"\0\0\0\0IEND\xaeB`\x82"  # its last chunk, which is empty
_COMMENT_CODE: Final = b"ASCII\0\0\0"  # how EXIF marks the encoding of a UserComment
_BAND: Final = 256  # rows of an image that are converted at once
_16_TO_8_BITS: Final = [(level + 128) // 257 for level in range(65536)]  # 65535 = 255 * 257
# What makes an image upright, by its EXIF orientation.
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_uint8(x_0: Tensor) -> Tensor:
    """8-bit pixels (N, H, W, C) from x_0 (N, C, H, W), [-1, 1] nominal; what lies outside is clamped."""
    levels = (x_0.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(pixels: Tensor) -> Tensor:
    """x_0 (N, C, H, W), float32 in [-1, 1], from pixels (N, H, W, C), uint8."""
    return (pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()


def to_pil(pixels: Tensor) -> Image.Image:
    """A gray, RGB or RGBA image from pixels (H, W, C), uint8. Raises DataError for another C."""
    height, width, channels = pixels.shape
    if channels not in _MODES:
        raise DataError(
            f"an image of {channels} channels cannot be saved as an image file.",
            "Save the samples or latents instead.",
        )
    data = pixels.cpu().contiguous().numpy().tobytes()
    return Image.frombytes(_MODES[channels], (width, height), data)


def image_pixels(image: Image.Image) -> Tensor:
    """The pixels (H, W, C), uint8, of a gray, RGB or RGBA image."""
    # frombuffer needs a buffer that may be written
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return levels.view(image.height, image.width, len(image.getbands()))


def encode_image(
    image: Image.Image, format: str = "png", text: Mapping[str, str] | None = None
) -> bytes:
    """The bytes of a lossless png or webp file, the same for the same arguments.

    text: stored as PNG text chunks, in WebP as one JSON object in the EXIF UserComment.
    """
    buffer = io.BytesIO()
    if format == "png":
        chunks = PngInfo()
        for key, value in (text or {}).items():
            chunks.add_text(key, value)
        image.save(buffer, "PNG", pnginfo=chunks)
    elif format == "webp":
        exif = Image.Exif()
        if text:
            comment = _COMMENT_CODE + json.dumps(dict(text)).encode("ascii")
            exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: comment}
        image.save(buffer, "WEBP", lossless=True, exact=True, exif=exif)
    else:
        raise RequestError(
            f"unknown image format '{format}'.", f"Choose one of {', '.join(FORMATS)}."
        )
    return buffer.getvalue()


def is_undamaged(path: Path) -> bool:
    """Whether an image that this program wrote is still as it was, as far as its format can tell:
    a PNG has checksums, GIF and WebP have none.
    """
    if not looks_whole(path):
        return False
    try:
        with Image.open(path, formats=("PNG", "WEBP", "GIF")) as image:
            image.verify()
    except _DECODING_ERRORS:
        return False
    return True


def looks_whole(path: Path) -> bool:
    """Whether a png, webp or gif file that this program wrote begins and ends as such files do.

    After a power cut a file may have its name and size, but not its content.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
            file.seek(max(0, size - len(_PNG_END)))
            tail = file.read()
    except OSError:
        return False
    if head.startswith(b"RIFF"):
        length = int.from_bytes(head[4:8], "little") + 8
        return head.endswith(b"WEBP") and size == length and any(tail)
    if head.startswith(b"GIF8"):
        return tail.endswith(b";")
    return head.startswith(_PNG_BEGIN) and tail == _PNG_END


def image_bytes(path: Path) -> bytes:
    """An image file's content. Raises DataError also for one that is too large: holes take no disk."""
    with refusals(str(path), DataError):
        check_regular(path)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise Refused(f"has {size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} are read.")
        return path.read_bytes()


def read_image_text(source: Path | bytes) -> dict[str, str]:
    """The text that encode_picture stored in a PNG or WebP file, or a stranger in a PNG; else empty.

    Raises DataError for what cannot be read as an image.
    """
    name = "the image" if isinstance(source, bytes) else str(source)
    try:
        with _open(source, name) as image:
            if image.format == "PNG":
                image.load()  # text may follow the pixels
                return {str(key): str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except _DECODING_ERRORS as error:
        raise _unreadable(name, error) from error
    return _comment_text(comment)


def read_image(
    source: Path | bytes | BinaryIO | Image.Image,
    channels: int,
    background: Sequence[int] = (0, 0, 0),
    *,
    name: str | None = None,
) -> Image.Image:
    """Any image, from a file or opened already, as an upright 8-bit image, RGB (channels = 3) or L
    (1); the first frame, where there are several: is_animated tells that of the image returned.

    Transparent pixels show the background (1 or 3 levels). 16 bits are scaled to 8. EXIF that
    cannot be read is passed over.
    name: what errors call the image; by default the path. Raises DataError naming it, also for
    one of more than MAX_PIXELS.
    """
    if name is None:
        name = str(source) if isinstance(source, Path) else "the image"
    if channels not in (1, 3):
        raise DataError(
            f"images cannot be read as {channels} channels.", "Choose 1 (grey) or 3 (RGB)."
        )
    colour = _rgb(background)
    try:
        with _open(source, name) as image:
            animated = image.format in ANIMATED and getattr(image, "is_animated", False)
            image.load()
            turn = _turn(image)
            result = Image.new(_MODES[channels], image.size)
            for top, band in bands(image):
                result.paste(_flat(band, colour).convert(result.mode), (0, top))
    except _DECODING_ERRORS as error:
        raise _unreadable(name, error) from error
    upright = result if turn is None else result.transpose(turn)
    if animated:
        upright.info[_ANIMATED] = True
    return upright


def is_animated(image: Image.Image) -> bool:
    """Whether an image of read_image is the first of several frames."""
    return bool(image.info.get(_ANIMATED))


def bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in pieces of its whole width, each with its first row, so that work on every
    pixel needs little memory at once.
    """
    for top in range(0, image.height, _BAND):
        yield top, image.crop((0, top, image.width, min(top + _BAND, image.height)))


def fit_image(
    image: Image.Image,
    size: tuple[int, int],
    fit: str = "crop",
    background: Sequence[int] = (0, 0, 0),
) -> Image.Image:
    """The image at size (H, W), resized with Lanczos.

    crop fills the size and cuts what is over, pad shows all of it on the background, stretch
    ignores the proportions. An image of that size comes back pixel for pixel.
    """
    height, width = size
    if image.size == (width, height):
        return image.copy()
    if fit == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    if fit == "stretch":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if fit != "pad":
        raise RequestError(f"unknown fit '{fit}'.", f"Choose one of {', '.join(FITS)}.")
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), _rgb(background)).convert(image.mode)
    place = ((width - inner[0]) // 2, (height - inner[1]) // 2)
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), place)
    return canvas


def _open(source: Path | bytes | BinaryIO | Image.Image, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        image = source.copy()
    else:
        if isinstance(source, Path):
            check_plain_file(source)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            image = Image.open(file, formats=readable())
        except UnidentifiedImageError as error:
            raise _unknown(source, name) from error
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        image.close()
        raise _too_large(f"{name} has {width}x{height} pixels")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes the image upright, if its EXIF says so; strangers' EXIF may be anything."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DECODING_ERRORS:
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _flat(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The image in 8 bits a channel, its transparent pixels on the background."""
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers of an unknown range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = image.convert("I")
        low, high = cast(tuple[float, float], levels.getextrema())
        if low < 0 or high > 65535:
            raise ValueError("it holds 32-bit numbers of an unknown range")
        return levels.point(_16_TO_8_BITS, "L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    below = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")


def _rgb(background: Sequence[int]) -> tuple[int, int, int]:
    red, green, blue = background if len(background) == 3 else (*background,) * 3
    return red, green, blue


def _comment_text(comment: object) -> dict[str, str]:
    if not isinstance(comment, bytes) or not comment.startswith(_COMMENT_CODE):
        return {}
    try:
        text = parse_json(comment.removeprefix(_COMMENT_CODE), paths=True)
    except Refused:
        return {}  # another program's comment
    if not isinstance(text, dict):
        return {}
    return {key: value for key, value in text.items() if isinstance(value, str)}


def _too_large(cause: str) -> DataError:
    limit = f"the limit is {MAX_PIXELS // 10**6} million, and {MAX_SIDE:,} per side"
    return DataError(f"{cause}; {limit}.", "Resize it.")


def _unknown(source: Path | bytes | BinaryIO, name: str) -> DataError:
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(12)
    else:
        head = source[:12] if isinstance(source, bytes) else b""
    if is_heic(head):
        return DataError(f"{name} is HEIC, which is not read without an extra.", HEIC_HINT)
    return DataError(f"{name} is not an image of a known format.", "Convert it to PNG or JPEG.")


def _unreadable(name: str, error: BaseException) -> DataError:
    if isinstance(error, PermissionError):
        return DataError(f"{name}: no permission to read it.", "Check its owner and permissions.")
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(f"{name} has too many pixels")
    return DataError(
        f"{name} cannot be read as an image: {reason(error)}.", "Save it again as PNG."
    )
