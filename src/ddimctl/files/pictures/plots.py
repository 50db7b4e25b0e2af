"""Line plots, as PNG drawn with Pillow or as SVG: enough for loss curves and error curves."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from ddimctl.files.pictures.images import encode_image
from ddimctl.files.pictures.lettering import draw_text, text_length

Points = Sequence[tuple[float, float]]

FORMATS: Final = ("png", "svg")
SIZE: Final = (960, 540)
_SCALE: Final = 2  # drawn twice as large, then reduced: Pillow's lines are not smooth
_FONT_SIZE: Final = 14
# A series is told by its colour, its dashes (pixels on and off; none is solid) and its marker.
_COLOURS: Final = ("#3b6fb6", "#d1742c", "#4c9a54", "#b2475f", "#7a5aa8", "#6b6b6b")
_DASHES: Final = ((), (9, 4), (2, 4), (9, 4, 2, 4), (16, 5), (5, 3))
_MARKERS: Final = (  # corners, in radii
    tuple((math.cos(k * math.pi / 12), math.sin(k * math.pi / 12)) for k in range(24)),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
    ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    ((0, 1.3), (1.2, -0.9), (-1.2, -0.9)),
    (
        *((-0.4, -1.3), (0.4, -1.3), (0.4, -0.4), (1.3, -0.4), (1.3, 0.4), (0.4, 0.4)),
        *((0.4, 1.3), (-0.4, 1.3), (-0.4, 0.4), (-1.3, 0.4), (-1.3, -0.4), (-0.4, -0.4)),
    ),
)
_RADIUS: Final = 3.5
_LEAST_RATIO: Final = 3.0  # below, a logarithmic axis has no round numbers to mark
_MARKED: Final = 24  # a line of so few points shows where they are
_MARGIN: Final = (84, 28, 28, 56)  # left, top, right, bottom
_SAMPLE, _ROW, _GAP = 34, 20, 20  # of the legend: a line's sample, a row's height, between names


class Plot(NamedTuple):
    """Named series of points against labelled axes; log_x: x, all of it positive, is logarithmic.

    y is on a logarithmic axis where all of it is positive and far apart. Points that are not finite
    are left out; without any point the axes stay empty.
    """

    series: Mapping[str, Points]
    x_label: str
    y_label: str
    log_x: bool = False


class _Line(NamedTuple):
    points: Points
    colour: str
    width: float
    dashes: tuple[int, ...] = ()


class _Polygon(NamedTuple):
    points: Points
    colour: str


class _Text(NamedTuple):
    at: tuple[float, float]
    text: str
    colour: str
    anchor: str  # as Pillow's


_Mark = _Line | _Polygon | _Text


def encode_plots(plots: Sequence[Plot], format: str = "png") -> bytes:
    """The bytes of a file of FORMATS that shows the plots, one below the other."""
    drawn = [list(_marks(plot)) for plot in plots]
    width, height = SIZE
    if format == "svg":
        body = "\n".join(
            f'<g transform="translate(0 {row * height})">\n{_svg(marks)}\n</g>'
            for row, marks in enumerate(drawn)
        )
        size = f'width="{width}" height="{height * len(drawn)}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, '
        head += f'sans-serif" font-size="{_FONT_SIZE}">\n<rect {size} fill="white"/>\n'
        return f"{head}{body}\n</svg>\n".encode()
    stacked = Image.new("RGB", (width, height * len(drawn)))
    for row, marks in enumerate(drawn):
        stacked.paste(_painted(marks), (0, row * height))
    return encode_image(stacked)


def _marks(plot: Plot) -> Iterator[_Mark]:
    """What to draw, in pixels of SIZE."""
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in plot.series.items()
    }
    xs = [x for points in finite.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in finite.values() for _, y in points] or [1.0, 2.0]
    across = _axis(xs, plot.log_x)
    up = _axis(ys, min(ys) > 0 and max(ys) >= _LEAST_RATIO * min(ys))

    legend, rows = _legend(list(finite), plot.x_label)
    left, top, right, bottom = _MARGIN
    right, bottom = SIZE[0] - right, SIZE[1] - bottom - _ROW * (rows - 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + across.share(x) * (right - left), bottom - up.share(y) * (bottom - top)

    for y in up.ticks:
        line = [place(across.low, y), place(across.high, y)]
        yield _Line(line, "#e4e4e4", 1)
        yield _Text((left - 8, line[0][1]), f"{y:g}", "#444444", "rm")
    for x in across.ticks:
        spot = place(x, up.low)
        yield _Text((spot[0], spot[1] + 8), f"{x:,.10g}", "#444444", "mt")
    yield _Line([place(across.low, up.low), place(across.high, up.low)], "#888888", 1)
    yield _Text((right, SIZE[1] - 12), plot.x_label, "#444444", "rs")
    yield _Text((8, 6), plot.y_label, "#444444", "lt")
    for index, ((name, points), spot) in enumerate(zip(finite.items(), legend, strict=True)):
        line = [place(x, y) for x, y in points]
        marked = len(line) <= _MARKED
        yield from _series(index, line, marked=marked)
        x, y = spot[0], spot[1] - 5
        sample = [(x, y), (x + _SAMPLE / 2, y), (x + _SAMPLE, y)]
        yield from _series(index, sample[::2], marked=False)
        yield from _series(index, sample[1:2], marked=marked)
        yield _Text((x + _SAMPLE + 6, spot[1]), name, _COLOURS[index % len(_COLOURS)], "ls")


def _series(index: int, line: Points, *, marked: bool) -> Iterator[_Mark]:
    """The line of a series and its points, as its place among the series tells them apart."""
    again = index // len(_COLOURS)
    colour = _COLOURS[index % len(_COLOURS)]
    corners = _MARKERS[(index + again) % len(_MARKERS)]
    if len(line) > 1:
        yield _Line(line, colour, 2, _DASHES[(index + again) % len(_DASHES)])
    for x, y in line if marked else []:
        yield _Polygon([(x + a * _RADIUS, y + b * _RADIUS) for a, b in corners], colour)


def _legend(names: Sequence[str], x_label: str) -> tuple[list[tuple[float, float]], int]:
    """Where the samples of the series begin, below the axis, where no line runs; in how many rows."""
    font = ImageFont.load_default(_FONT_SIZE)
    left, end = _MARGIN[0], SIZE[0] - _MARGIN[2] - text_length(x_label, font) - _GAP
    places: list[tuple[float, int]] = []
    x, row = float(left), 0
    for name in names:
        needed = _SAMPLE + 6 + text_length(name, font)
        if x > left and x + needed > end:
            x, row = float(left), row + 1
        places.append((x, row))
        x += needed + _GAP
    return [(x, SIZE[1] - 12 - _ROW * (row - place)) for x, place in places], row + 1


class _Axis(NamedTuple):
    """ticks: the marked values. low, high: where the axis begins and ends."""

    ticks: list[float]
    low: float
    high: float
    logarithmic: bool

    def share(self, value: float) -> float:
        """How far along the axis a value is, in [0, 1]."""
        scaled = math.log if self.logarithmic else float
        low, high = scaled(self.low), scaled(self.high)
        return (scaled(value) - low) / ((high - low) or 1)


def _axis(values: Sequence[float], logarithmic: bool) -> _Axis:
    ticks = (_log_ticks if logarithmic else _ticks)(min(values), max(values))
    return _Axis(ticks, min(*ticks, *values), max(*ticks, *values), logarithmic)


def _painted(marks: Sequence[_Mark]) -> Image.Image:
    image = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(_FONT_SIZE * _SCALE)
    for mark in marks:
        if isinstance(mark, _Text):
            at = (mark.at[0] * _SCALE, mark.at[1] * _SCALE)
            draw_text(draw, at, mark.text, mark.colour, font, mark.anchor)
            continue
        points = [(x * _SCALE, y * _SCALE) for x, y in mark.points]
        if isinstance(mark, _Polygon):
            draw.polygon(points, fill=mark.colour)
            continue
        for part in _dashed(points, [length * _SCALE for length in mark.dashes]):
            draw.line(part, fill=mark.colour, width=round(mark.width * _SCALE), joint="curve")
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _dashed(points: Points, dashes: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
    """The parts of a line that are drawn; all of it without dashes."""
    if not dashes:
        yield list(points)
        return
    part, k, left = [points[0]], 0, dashes[0]
    for (x, y), (to_x, to_y) in pairwise(points):
        length, done = math.hypot(to_x - x, to_y - y), 0.0
        while length - done > left:
            done += left
            spot = (x + (to_x - x) * done / length, y + (to_y - y) * done / length)
            if k % 2 == 0:
                yield [*part, spot]
            k, part = k + 1, [spot]
            left = dashes[k % len(dashes)]
        left -= length - done
        part.append((to_x, to_y))
    if k % 2 == 0 and len(part) > 1:
        yield part


def _svg(marks: Sequence[_Mark]) -> str:
    lines = []
    for mark in marks:
        if isinstance(mark, _Text):
            anchor = {"l": "start", "m": "middle", "r": "end"}[mark.anchor[0]]
            down = {"t": 0.75, "m": 0.35, "s": 0.0}[mark.anchor[1]] * _FONT_SIZE
            lines.append(
                f'<text x="{mark.at[0]:.1f}" y="{mark.at[1] + down:.1f}" fill="{mark.colour}" '
                f'text-anchor="{anchor}">{escape(mark.text)}</text>'
            )
            continue
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in mark.points)
        if isinstance(mark, _Polygon):
            lines.append(f'<polygon points="{points}" fill="{mark.colour}"/>')
            continue
        dashes = f' stroke-dasharray="{" ".join(map(str, mark.dashes))}"' if mark.dashes else ""
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{mark.colour}" '
            f'stroke-width="{mark.width}" stroke-linejoin="round"{dashes}/>'
        )
    return "\n".join(lines)


def _ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that span [low, high], about `count` of them."""
    if high <= low:
        return [low, low + 1]
    raw = (high - low) / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 times powers of ten around [low, high]; only powers where there are many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in factors]
    below = [tick for tick in ticks if tick <= low][-1:]
    above = [tick for tick in ticks if tick >= high][:1]
    return below + [tick for tick in ticks if low < tick < high] + above
