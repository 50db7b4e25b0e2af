"""How many frames a second an animation or a video may have."""

from typing import Final

from ddimctl.errors import RequestError

MIN_FPS: Final = 0.01
MAX_FPS: Final = 1000.0


def check_frame_rate(fps: float) -> None:
    """Raise RequestError for what no file can hold."""
    if not MIN_FPS <= fps <= MAX_FPS:
        raise RequestError(
            f"--fps must be between {MIN_FPS:g} and {MAX_FPS:g}, not {fps:g}.", "The default is 12."
        )
