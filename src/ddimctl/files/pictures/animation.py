"""Animated images that loop for ever."""

import io
from collections.abc import Mapping, Sequence
from typing import Final

from PIL import Image

from ddimctl.errors import DataError, RequestError

FORMATS: Final = ("gif", "webp")

_COLOURS: Final = 255  # leaves GIF one for "unchanged since the last frame"
_PALETTE_PIXELS: Final = 2**15  # how many pixels the palette is chosen from


def encode_animation(
    frames: Sequence[Image.Image],
    format: str = "gif",
    fps: float = 12.0,
    holds: Mapping[int, float] | None = None,
) -> bytes:
    """The bytes of a looping gif or webp (lossless) of frames of one size, L or RGB.

    fps: frames a second; GIF counts in hundredths of a second and shows at most 50.
    holds: seconds that frames stay, by their index, where they stay longer than the others.
    Raises RequestError for an unknown format or fps, DataError without frames or with several sizes.
    """
    if format not in FORMATS:
        raise RequestError(
            f"unknown animation format '{format}'.", f"Choose one of {', '.join(FORMATS)}."
        )
    if not 0 < fps <= 1000:
        raise RequestError(
            f"fps must be above 0 and at most 1000, not {fps:g}.", "The default is 12."
        )
    if len({frame.size for frame in frames}) != 1:
        raise DataError("an animation needs frames, all of one size.")
    duration = round(1000 / fps)
    if format == "gif":
        duration = max(20, round(100 / fps) * 10)
    holds = holds or {}
    durations = [max(duration, round(1000 * holds.get(i, 0))) for i in range(len(frames))]

    buffer = io.BytesIO()
    if format == "webp":
        first, *others = [frame.convert("RGB") for frame in frames]
        settings = {"lossless": True}
    else:
        first, *others = _with_one_palette(frames)
        settings = {"optimize": False}
    first.save(
        buffer, format, save_all=True, append_images=others, duration=durations, loop=0, **settings
    )
    return buffer.getvalue()


def _with_one_palette(frames: Sequence[Image.Image]) -> list[Image.Image]:
    """The frames in colours that they share: no flicker from changing palettes or dither."""
    colours = [frame.convert("RGB") for frame in frames]
    width, height = colours[0].size
    # A pixel in every k-th row and column stays as it is, where averaging would invent colours.
    step = max(1, round((len(frames) * width * height / _PALETTE_PIXELS) ** 0.5))
    small = (max(1, width // step), max(1, height // step))
    montage = Image.new("RGB", (small[0], small[1] * (len(frames) + 1)))
    # The last frame counts twice: it is the one that is looked at.
    for index, frame in enumerate([*colours, colours[-1]]):
        montage.paste(frame.resize(small, Image.Resampling.NEAREST), (0, index * small[1]))
    palette = montage.quantize(_COLOURS, Image.Quantize.MEDIANCUT, kmeans=1)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in colours]
