"""Tables in the Markdown pages, each between two comments, and text as an image of a terminal."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddimctl.files.atomic import write_bytes

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs/images"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FONT = "DejaVuSansMono"
_BACKGROUND, _INK, _PROMPT = (27, 29, 35), (232, 234, 238), (136, 204, 136)


def put(name: str, text: str) -> None:
    """Replace what stands between <!-- measured: NAME --> and <!-- end --> in the page that has it.

    Raises ValueError where no page, or more than one, has the place.
    """
    place = re.compile(rf"(<!-- measured: {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
    found = [(page, page.read_text("utf-8")) for page in PAGES]
    having = [(page, old) for page, old in found if place.search(old)]
    if len(having) != 1:
        raise ValueError(f"{len(having)} pages have a place for '{name}'")
    page, old = having[0]
    new = place.sub(lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", old)
    write_bytes(page, new.encode())
    print(f"{page.relative_to(ROOT)}: {name}", flush=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_terminal(path: Path, lines: Sequence[str], size: int = 20) -> None:
    """An image of a terminal's lines; those that begin with $ are commands."""
    plain = ImageFont.truetype(f"{_FONT}.ttf", size)
    bold = ImageFont.truetype(f"{_FONT}-Bold.ttf", size)
    width = max(plain.getlength(line) for line in lines)
    step = round(1.35 * size)
    canvas = Image.new("RGB", (round(width) + 48, step * len(lines) + 44), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, line in enumerate(lines):
        command = line.startswith("$ ")
        place = (24, 22 + i * step)
        draw.text(place, line, _PROMPT if command else _INK, bold if command else plain)
    canvas.quantize(32).save(path, optimize=True)
