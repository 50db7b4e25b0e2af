"""Images one after another: gif and webp by Pillow, mp4 (H.264) by PyAV, which is an extra."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from importlib.util import find_spec
from typing import BinaryIO, Final

from PIL import Image
from torch import Tensor

from ddimctl.errors import RequestError
from ddimctl.files.pictures import animation
from ddimctl.files.pictures.frame_rate import check_frame_rate
from ddimctl.files.pictures.images import to_pil

FORMATS: Final = (*animation.FORMATS, "mp4")

_SIDE: Final = 256  # small images are enlarged up to this many pixels
_QUALITY: Final = "16"  # H.264's constant rate factor; 18 passes for lossless to the eye


def check_video(format: str, fps: float) -> None:
    """Raise RequestError for a video that write_video could not make, before the work is done."""
    if format not in FORMATS:
        raise RequestError(
            f"unknown video format '{format}'.", f"Choose one of {', '.join(FORMATS)}."
        )
    check_frame_rate(fps)
    if format == "mp4" and find_spec("av") is None:
        raise RequestError(
            "--video mp4 needs PyAV, which is not installed.",
            "pip install 'ddimctl[video]', or use --video webp.",
        )


def write_video(
    file: BinaryIO,
    count: int,
    pixels_at: Callable[[int], Tensor],
    format: str,
    fps: float = 12.0,
    holds: Mapping[int, float] | None = None,
) -> None:
    """Write a video of `count` images (H, W, C), uint8, of one size, to a seekable file.

    pixels_at: the image with that number, which is asked for when it is due, and perhaps twice:
    memory holds a few, however long the video. Small ones are enlarged. holds: seconds that frames
    stay, by their index. gif and webp repeat for ever; GIF counts in hundredths of a second.
    Raises RequestError as check_video does.
    """
    check_video(format, fps)

    def frame_at(i: int) -> Image.Image:
        return _enlarged(pixels_at(i))

    if format == "mp4":
        repeats = {i: max(1, round(seconds * fps)) for i, seconds in (holds or {}).items()}
        _write_mp4(file, count, frame_at, fps, repeats)
    else:
        animation.write_animation(file, count, frame_at, format, fps, holds)


def _enlarged(pixels: Tensor) -> Image.Image:
    image = to_pil(pixels).convert("RGB")
    factor = max(1, _SIDE // max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _write_mp4(
    file: BinaryIO,
    count: int,
    frame_at: animation.FrameAt,
    fps: float,
    repeats: Mapping[int, int],
) -> None:
    """repeats: how many times frames are shown, by their index, where more than once. H.264 in 4:2:0, the form that every player knows; odd sides lose their last pixel."""
    import av

    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
        stream.width, stream.height = (side // 2 * 2 for side in frame_at(0).size)
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            even = frame_at(i).crop((0, 0, stream.width, stream.height))
            for _ in range(repeats.get(i, 1)):
                container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())
