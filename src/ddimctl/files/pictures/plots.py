"""A line plot, drawn with Pillow: enough for loss curves and error curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]

SIZE: Final = (960, 540)
_SCALE: Final = 2  # drawn twice as large, then reduced: Pillow's lines are not smooth
_COLOURS: Final = ("#3b6fb6", "#d1742c", "#4c9a54", "#b2475f", "#7a5aa8", "#6b6b6b")
_LEAST_RATIO: Final = 3.0  # below, a logarithmic axis has no round numbers to mark
_MARKED: Final = 24  # a line of so few points shows where they are
_WIDTH, _HEIGHT = SIZE[0] * _SCALE, SIZE[1] * _SCALE
_LEFT, _TOP, _RIGHT, _BOTTOM = (side * _SCALE for side in (84, 28, 28, 56))  # margins


def line_plot(
    series: Mapping[str, Points], x_label: str, y_label: str, *, log_x: bool = False
) -> Image.Image:
    """A plot of the named series, y on a logarithmic axis where all of it is positive and far apart.

    log_x: x, all of it positive, on a logarithmic axis too.

    Points that are not finite are left out; without any point the axes stay empty.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    xs = [x for points in finite.values() for x, _ in points] or [0.0, 1.0]
    ys = [y for points in finite.values() for _, y in points] or [1.0, 2.0]
    log_y = min(ys) > 0 and max(ys) >= _LEAST_RATIO * min(ys)
    across, up = _axis(xs, log_x), _axis(ys, log_y)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14 * _SCALE)

    def place(x: float, y: float) -> tuple[float, float]:
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across.share(x) * width, _HEIGHT - _BOTTOM - up.share(y) * height

    for y in up.ticks:
        line = [place(across.low, y), place(across.high, y)]
        draw.line(line, fill="#e4e4e4", width=_SCALE)
        draw.text((_LEFT - 8 * _SCALE, line[0][1]), f"{y:g}", "#444444", font, anchor="rm")
    for x in across.ticks:
        left, top = place(x, up.low)
        draw.text((left, top + 8 * _SCALE), f"{x:,.10g}", "#444444", font, anchor="mt")
    line = [place(across.low, up.low), place(across.high, up.low)]
    draw.line(line, fill="#888888", width=_SCALE)
    below = _HEIGHT - 12 * _SCALE
    draw.text((_WIDTH - _RIGHT, below), x_label, "#444444", font, anchor="rs")
    draw.text((8 * _SCALE, 6 * _SCALE), y_label, "#444444", font, anchor="lt")

    name_at = _LEFT  # names stand below the axis, where no line runs
    for index, (name, points) in enumerate(finite.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        _draw_series(draw, [place(x, y) for x, y in points], colour)
        draw.text((name_at, below), name, colour, font, anchor="ls")
        name_at += round(draw.textlength(name, font)) + 20 * _SCALE
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def stack_plots(plots: Sequence[Image.Image]) -> Image.Image:
    """Plots of one size, one below the other."""
    width, height = plots[0].size
    stacked = Image.new("RGB", (width, height * len(plots)))
    for row, plot in enumerate(plots):
        stacked.paste(plot, (0, row * height))
    return stacked


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


def _draw_series(draw: ImageDraw.ImageDraw, line: list[tuple[float, float]], colour: str) -> None:
    if len(line) > 1:
        draw.line(line, fill=colour, width=2 * _SCALE, joint="curve")
    radius = 3 * _SCALE
    for x, y in line if len(line) <= _MARKED else []:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


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
