"""Text in images. Pillow's own font has no Greek: η and σ̂ are drawn from its n and o."""

from typing import Final

from PIL import ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

_HAT: Final = "\u0302"
_LIKE: Final = str.maketrans({"η": "n", "σ": "o", _HAT: None})


def text_length(text: str, font: Font) -> float:
    """Pixels from the beginning to the end of a line."""
    return font.getlength(text.translate(_LIKE))


def draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    colour: str | tuple[int, int, int],
    font: Font,
    anchor: str,
) -> None:
    """Draw a line of text; anchor as Pillow's, with Greek letters only "s" or "m" for the height."""
    plain = text.translate(_LIKE)
    draw.text(at, plain, colour, font, anchor=anchor)
    if plain == text or not isinstance(font, ImageFont.FreeTypeFont):
        return
    ascent, descent = font.getmetrics()
    before = {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * font.getlength(plain)
    baseline = at[1] + (ascent - descent) / 2 * (anchor[1] == "m")
    size, width = font.size, max(1, round(font.size * 0.085))

    def stroke(x: float, *points: tuple[float, float]) -> None:
        """Points right of x and above the baseline, in parts of the font's size."""
        draw.line([(x + a * size, baseline - b * size) for a, b in points], colour, width, "curve")

    for place, letter in enumerate(text):
        x = at[0] - before + text_length(text[:place], font)
        if letter == "η":
            stroke(x, (0.485, 0.1), (0.485, -0.2))
        elif letter == "σ":
            stroke(x, (0.3, 0.5), (0.6, 0.5))
        elif letter == _HAT:
            x -= font.getlength("o")
            stroke(x, (0.15, 0.62), (0.29, 0.76), (0.43, 0.62))
