"""An image beside its reconstruction and beside what they differ in."""

import torch
from torch import Tensor

from ddimctl.files.pictures.grids import make_grid
from ddimctl.files.pictures.images import encode_image

_CELL = 256  # small images are enlarged to about that many pixels


def inversion_sheet(original: Tensor, decoded: Tensor, steps: int, text: dict[str, str]) -> bytes:
    """A PNG of three images, labelled: both (H, W, C), uint8, and their absolute difference.

    The difference is multiplied until its worst level (of 255) can be seen; the label tells both.
    """
    difference = (original.int() - decoded.int()).abs()
    worst = int(difference.max())
    factor = 255 // worst if worst else 1
    found = f"difference x {factor}" if factor > 1 else "difference"
    labels = (
        "input image, fitted",
        f"decoded in {steps} step{'s' if steps > 1 else ''}",
        f"{found}, worst {worst}" if worst else "no difference",
    )
    pixels = torch.stack((original, decoded, (difference * factor).to(torch.uint8)))
    scale = max(1, _CELL // max(original.shape[:2]))
    return encode_image(make_grid(pixels, 3, scale, labels), "png", text)
