"""Animated images that loop for ever, written frame by frame: memory for two, however many there are."""

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Final, NamedTuple

from PIL import GifImagePlugin, Image, ImageChops

from ddimctl.errors import DataError, RequestError
from ddimctl.files.pictures.frame_rate import check_frame_rate

FORMATS: Final = ("gif", "webp")

FrameAt = Callable[[int], Image.Image]
"""Makes the frame with that number, L or RGB, each time that it is asked for."""

_COLOURS: Final = 255  # leaves GIF one for "unchanged since the last frame"
_PALETTE_PIXELS: Final = 2**15  # how many pixels the palette is chosen from
_PALETTE_FRAMES: Final = 256  # and of how many frames
_LONGEST: Final = {"gif": 655_350, "webp": 2**24 - 1}  # milliseconds that a frame can stay
_GIF_LOOP: Final = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
_WEBP_FLAGS: Final = {"animation": 0x02, "no blending": 0x02}


class _Change(NamedTuple):
    """What a frame changes: frame, the box (left, top, right, bottom) outside of which it is as the
    one before (None for the first), and how many milliseconds it stays."""

    frame: Image.Image
    before: Image.Image | None
    box: tuple[int, int, int, int]
    duration: int


def write_animation(
    file: BinaryIO,
    count: int,
    frame_at: FrameAt,
    format: str = "gif",
    fps: float = 12.0,
    holds: Mapping[int, float] | None = None,
) -> None:
    """Write a looping gif or webp (lossless) of `count` frames of one size to a seekable file.

    fps: frames a second; GIF counts in hundredths of a second and shows at most 50.
    holds: seconds that frames stay, by their index, where they stay longer than the others.
    Frames equal to the one before become one.
    Raises RequestError for an unknown format or fps, DataError without frames or with several sizes.
    """
    if format not in FORMATS:
        raise RequestError(
            f"unknown animation format '{format}'.", f"Choose one of {', '.join(FORMATS)}."
        )
    check_frame_rate(fps)
    if count < 1:
        raise DataError("an animation needs frames.")
    duration = round(1000 / fps)
    if format == "gif":
        duration = max(20, round(100 / fps) * 10)
    holds = holds or {}
    durations = [max(duration, round(1000 * holds.get(i, 0))) for i in range(count)]
    size = frame_at(0).size

    def rgb(i: int) -> Image.Image:
        frame = frame_at(i)
        if frame.size != size:
            raise DataError("the frames of an animation must be of one size.")
        return frame.convert("RGB")

    if format == "webp":
        _write_webp(file, size, _changes(rgb, durations, _LONGEST[format]))
        return
    palette = _common_palette(count, rgb)

    def indices(i: int) -> Image.Image:
        found = rgb(i).quantize(palette=palette, dither=Image.Dither.NONE)
        return Image.frombytes("L", size, found.tobytes())

    _write_gif(file, size, palette, _changes(indices, durations, _LONGEST[format]))


def _changes(frame_at: FrameAt, durations: list[int], longest: int) -> Iterator[_Change]:
    """The frames that differ from the one before, in order."""
    frame = frame_at(0)
    pending = _Change(frame, None, (0, 0, *frame.size), durations[0])
    for i in range(1, len(durations)):
        before, frame = frame, frame_at(i)
        box = ImageChops.difference(before, frame).getbbox()
        if box is None:
            together = min(pending.duration + durations[i], longest)
            pending = pending._replace(duration=together)
        else:
            yield pending
            pending = _Change(frame, before, box, durations[i])
    yield pending


def _write_gif(
    file: BinaryIO, size: tuple[int, int], palette: Image.Image, changes: Iterator[_Change]
) -> None:
    """Frames are 8-bit indices of the palette; what does not change in a box is transparent."""
    colours = bytes(palette.getpalette() or [])
    file.write(b"GIF89a" + struct.pack("<2H3B", *size, 0xF7, 0, 0) + colours + _GIF_LOOP)
    for change in changes:
        part, about = change.frame.crop(change.box), {"duration": change.duration}
        if change.before is not None:
            same = ImageChops.difference(part, change.before.crop(change.box))
            part.paste(_COLOURS, mask=same.point([255] + [0] * 255))
            about["transparency"] = _COLOURS
        part.putpalette(colours)  # which makes it an image of indices
        for block in GifImagePlugin.getdata(part, change.box[:2], **about):
            file.write(block)
    file.write(b";")


def _write_webp(file: BinaryIO, size: tuple[int, int], changes: Iterator[_Change]) -> None:
    """The container by its specification; Pillow compresses the frames."""
    start = file.tell()
    canvas = struct.pack("<B3x", _WEBP_FLAGS["animation"]) + _sides(*size)
    file.write(b"RIFF\0\0\0\0WEBP" + _chunk(b"VP8X", canvas) + _chunk(b"ANIM", bytes(6)))
    for change in changes:
        left, top, right, bottom = change.box
        left, top = left // 2 * 2, top // 2 * 2  # offsets are stored halved
        part = io.BytesIO()
        change.frame.crop((left, top, right, bottom)).save(part, "WEBP", lossless=True)
        place = _3_bytes(left // 2) + _3_bytes(top // 2) + _sides(right - left, bottom - top)
        head = place + _3_bytes(change.duration) + bytes([_WEBP_FLAGS["no blending"]])
        file.write(_chunk(b"ANMF", head + part.getvalue()[12:]))  # without its RIFF header
    end = file.tell()
    file.seek(start + 4)
    file.write(struct.pack("<I", end - start - 8))
    file.seek(end)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _sides(width: int, height: int) -> bytes:
    return _3_bytes(width - 1) + _3_bytes(height - 1)


def _3_bytes(number: int) -> bytes:
    return number.to_bytes(3, "little")


def _common_palette(count: int, frame_at: FrameAt) -> Image.Image:
    """Colours for all frames: no flicker from changing palettes or dither."""
    stride = -(-count // _PALETTE_FRAMES)
    # The last frame counts twice: it is the one that is looked at.
    chosen = [*range(0, count - 1, stride), count - 1, count - 1]
    width, height = frame_at(0).size
    # A pixel in every k-th row and column stays as it is, where averaging would invent colours.
    step = max(1, round(((len(chosen) - 1) * width * height / _PALETTE_PIXELS) ** 0.5))
    small = (max(1, width // step), max(1, height // step))
    montage = Image.new("RGB", (small[0], small[1] * len(chosen)))
    for index, number in enumerate(chosen):
        part = frame_at(number).resize(small, Image.Resampling.NEAREST)
        montage.paste(part, (0, index * small[1]))
    found = montage.quantize(_COLOURS, Image.Quantize.MEDIANCUT, kmeans=1).getpalette() or []
    found = found[: 3 * _COLOURS]
    palette = Image.new("P", (1, 1))
    palette.putpalette(found + found[:3] * (256 - len(found) // 3))  # the nearest is an earlier one
    return palette
