"""Images one after another: gif and webp by Pillow, mp4 (H.264) by PyAV, which is an extra."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import Final

from PIL import Image
from torch import Tensor

from ddimctl.errors import RequestError
from ddimctl.files.pictures import animation
from ddimctl.files.pictures.images import to_pil

FORMATS: Final = (*animation.FORMATS, "mp4")

_SIDE: Final = 256  # small images are enlarged up to this many pixels
_QUALITY: Final = "16"  # H.264's constant rate factor; 18 passes for lossless to the eye


def check_video(format: str, fps: float) -> None:
    """Raise RequestError for a video that encode_video could not make, before the work is done."""
    if format not in FORMATS:
        raise RequestError(
            f"unknown video format '{format}'.", f"Choose one of {', '.join(FORMATS)}."
        )
    if not 0 < fps <= 1000:
        raise RequestError(
            f"--fps must be above 0 and at most 1000, not {fps:g}.", "The default is 12."
        )
    if format == "mp4" and find_spec("av") is None:
        raise RequestError(
            "--video mp4 needs PyAV, which is not installed.",
            "pip install 'ddimctl[video]', or use --video webp.",
        )


def encode_video(
    frames: Sequence[Tensor],
    format: str,
    fps: float = 12.0,
    holds: Mapping[int, float] | None = None,
) -> bytes:
    """The bytes of a video of images (H, W, C), uint8, of one size; small ones are enlarged.

    holds: seconds that frames stay, by their index. gif and webp repeat for ever; GIF counts in
    hundredths of a second. Raises RequestError as check_video does.
    """
    check_video(format, fps)
    if format == "mp4":
        repeats = {i: max(1, round(seconds * fps)) for i, seconds in (holds or {}).items()}
        return _encode_mp4([f for i, f in enumerate(frames) for _ in range(repeats.get(i, 1))], fps)
    images = [_enlarged(frame) for frame in frames]
    return animation.encode_animation(images, format, fps, holds)


def _enlarged(pixels: Tensor) -> Image.Image:
    image = to_pil(pixels).convert("RGB")
    factor = max(1, _SIDE // max(image.size))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _encode_mp4(frames: Sequence[Tensor], fps: float) -> bytes:
    """H.264 in 4:2:0, the form that every player knows; odd sides lose their last pixel."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": _QUALITY})
        stream.width, stream.height = (side // 2 * 2 for side in _enlarged(frames[0]).size)
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            even = _enlarged(frame).crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())
    return buffer.getvalue()
