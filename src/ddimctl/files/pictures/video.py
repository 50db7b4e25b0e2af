"""Images one after another: gif and webp by Pillow, mp4 (H.264) by PyAV, which is an extra."""

from collections.abc import Callable
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
_HOLD: Final = 1.0  # seconds that the last frame of an animation stays, unless it is a loop
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
    loop: bool = False,
) -> None:
    """Write a video of `count` images (H, W, C), uint8, of one size, to a seekable file.

    pixels_at: the image with that number, which is asked for when it is due, and perhaps twice:
    memory holds a few, however long the video. Small ones are enlarged. gif and webp repeat for
    ever, and hold the last frame unless loop says that it leads to the first. GIF counts in
    hundredths of a second. Raises RequestError as check_video does.
    """
    check_video(format, fps)

    def frame_at(i: int) -> Image.Image:
        return _enlarged(pixels_at(i))

    if format == "mp4":
        _write_mp4(file, count, frame_at, fps)
    else:
        hold = 0 if loop else _HOLD
        animation.write_animation(file, count, frame_at, format, fps, hold_last=hold)


def _enlarged(pixels: Tensor) -> Image.Image:
    image = to_pil(pixels).convert("RGB")
    factor = max(1, _SIDE // max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _write_mp4(file: BinaryIO, count: int, frame_at: animation.FrameAt, fps: float) -> None:
    """H.264 in 4:2:0, the form that every player knows; odd sides lose their last pixel."""
    import av

    with av.open(file, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
        stream.width, stream.height = (side // 2 * 2 for side in frame_at(0).size)
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            even = frame_at(i).crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())
