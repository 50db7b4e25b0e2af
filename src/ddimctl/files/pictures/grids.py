"""Many images in one image, enlarged so that one can see them, with labels where there are any."""

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddimctl.errors import RequestError
from ddimctl.files.pictures.images import to_pil
from ddimctl.files.pictures.lettering import Font, draw_text, text_length

GRID_LIMIT: Final = 256
"""A grid shows at most this many images, the first ones; whoever asks for more tells the user."""

_CELL: Final = 128  # small images are enlarged up to this many pixels
_LONGEST_SIDE: Final = 6000  # larger grids are shrunk
_LIMIT_SIDE: Final = 16000  # and with an explicit scale refused
_BACKGROUND: Final = (27, 29, 35)
_INK: Final = (176, 181, 192)
_SHAPE: Final = 1.4  # the width to height that the default number of columns comes near to


def make_grid(
    pixels: Tensor,
    columns: int | None = None,
    scale: int | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """An RGB image of the first GRID_LIMIT images of pixels (N, H, W, C), uint8, row by row.

    columns: by default a little wider than tall, with few empty places. scale: a whole factor,
    nearest neighbour; by default small images grow to about 128 pixels. labels: one per image,
    drawn under it, shortened to its width; one that all share is drawn once, on top.
    Raises RequestError for a scale or a number of columns that cannot be.
    """
    shown = pixels[:GRID_LIMIT]
    names = list(labels or [])[:GRID_LIMIT]
    count, height, width = shown.shape[:3]
    for option, value in (("--columns", columns), ("--scale", scale)):
        if value is not None and value < 1:
            raise RequestError(f"{option} must be at least 1, not {value}.")
    columns = min(columns or default_columns(count, width / height), count)
    factor = scale or max(1, _CELL // max(width, height))
    rows = -(-count // columns)

    side = factor * max(columns * width, rows * height)
    if scale is not None and side > _LIMIT_SIDE:
        raise RequestError(
            f"--scale {scale} makes the grid {side} pixels long; the limit is {_LIMIT_SIDE}.",
            "Choose a smaller --scale.",
        )
    shrink = 1 if scale else -(-side // _LONGEST_SIDE)
    cell_width, cell_height = max(1, width * factor // shrink), max(1, height * factor // shrink)
    images = (to_pil(image) for image in shown)
    if shrink == 1:
        cells = [
            cell.resize((cell_width, cell_height), Image.Resampling.NEAREST) for cell in images
        ]
    else:
        cells = [cell.resize((cell_width, cell_height), Image.Resampling.BOX) for cell in images]
    return _arrange(cells, columns, names)


def default_columns(count: int, cell_ratio: float = 1.0) -> int:
    """How many columns suit this many cells of that width to height."""

    def ugliness(columns: int) -> float:
        rows = -(-count // columns)
        empty = (rows * columns - count) / (rows * columns)
        shape = abs(math.log(columns * cell_ratio / rows / _SHAPE))
        return shape + 6 * empty + 0.4 * (empty > 0)

    return min(range(1, count + 1), key=ugliness)


def _arrange(cells: list[Image.Image], columns: int, labels: list[str]) -> Image.Image:
    """Cells of one size on the background, with room for labels where there are any."""
    width, height = cells[0].size
    rows = -(-len(cells) // columns)
    gap = max(2, min(8, width // 21, height // 21))
    margin = 2 * gap
    shared = len(cells) > 1 and len(set(labels)) == 1
    size = max(10, min(18, round(width / 8.5)))
    font = ImageFont.load_default(size + 2 if shared else size)
    line = round(1.7 * size) if labels else 0
    top = margin + (line if shared else 0)
    below = 0 if shared else line

    canvas_width = 2 * margin + columns * (width + gap) - gap
    canvas_height = top + margin + rows * (height + below + gap) - gap
    canvas = Image.new("RGB", (canvas_width, canvas_height), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, cell in enumerate(cells):
        x = margin + index % columns * (width + gap)
        y = top + index // columns * (height + below + gap)
        canvas.paste(cell, (x, y), cell if cell.mode == "RGBA" else None)
        if below and index < len(labels):
            text = _shortened(labels[index], width, font)
            draw_text(draw, (x + width / 2, y + height + below / 2), text, _INK, font, "mm")
    if shared:
        text = _shortened(labels[0], canvas_width - 2 * margin, font)
        draw_text(draw, (margin, margin + line / 2 - gap / 2), text, _INK, font, "lm")
    return canvas


def _shortened(text: str, width: int, font: Font) -> str:
    """The text, on one line, cut with an ellipsis where it is wider than that many pixels."""
    text = " ".join(text[: 4 * width].split())  # measuring takes time; a letter is some pixels wide
    if text_length(text, font) <= width:
        return text
    while text and text_length(text + "…", font) > width:
        text = text[:-1].rstrip()
    return text + "…" if text else ""
