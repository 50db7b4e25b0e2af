import io
import math
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageChops

from ddimctl.files.pictures.plots import SIZE, Plot, encode_plots

SVG = "{http://www.w3.org/2000/svg}"

FALLING = [(step, 1 / (1 + step)) for step in range(0, 1000, 10)]


def line_plot(series, x_label, y_label, log_x=False):
    return Image.open(io.BytesIO(encode_plots([Plot(series, x_label, y_label, log_x)])))


def colours(image):
    return {colour for _, colour in image.getcolors(maxcolors=2**24)}


def test_each_series_is_drawn_in_a_colour_of_its_own():
    one = line_plot({"a": FALLING}, "step", "loss")
    two = line_plot({"a": FALLING, "b": [(x, 2 * y) for x, y in FALLING]}, "step", "loss")
    assert one.size == two.size == SIZE
    assert (59, 111, 182) in colours(one)  # the first colour
    assert (209, 116, 44) not in colours(one)
    assert (209, 116, 44) in colours(two)


def test_few_points_are_marked_and_many_are_not():
    def spots(points):  # a dot is wider than the line is thick
        image = line_plot({"": points}, "", "")
        column = [y for y in range(SIZE[1] - 40) if is_blue(*image.getpixel((84, y)))]
        return len(column)

    level = [(x, 1.0 + 0.001 * x) for x in range(100)]
    assert spots(level[:3]) > 4 > spots(level)


def test_numbers_that_are_near_each_other_are_on_a_plain_axis():
    """A point half way up is half way up."""
    image = line_plot({"": [(0.0, 10.0), (1.0, 11.0), (2.0, 12.0)]}, "", "")
    rows = [y for y in range(image.height) if is_blue(*image.getpixel((508, y)))]
    assert sum(rows) / len(rows) == pytest.approx((28 + SIZE[1] - 56) / 2, abs=1.5)


def is_blue(red, green, blue):
    return blue > red + 40


def test_a_falling_series_falls_from_left_to_right():
    image = line_plot({"": FALLING}, "", "")
    rows = {
        x: [y for y in range(image.height) if is_blue(*image.getpixel((x, y)))]
        for x in (100, 500, 900)
    }
    assert min(rows[100]) < min(rows[500]) < min(rows[900])


def test_any_points_make_an_image():
    for points in (
        [],
        [(1.0, 2.0)],
        [(0.0, 0.0), (1.0, -3.0)],
        [(0.0, 5.0), (10.0, 5.0)],
        [(0.0, math.nan), (1.0, math.inf), (2.0, 1.0)],
        [(0.0, 1e-12), (1e9, 1e12)],
    ):
        assert line_plot({"series": points}, "x", "y").size == SIZE


def lines_of_series(count):
    return {f"series {i}": [(x, 1.0 + i + x) for x in range(4)] for i in range(count)}


def test_lines_are_told_apart_without_colour():
    """By dashes and by markers, as an SVG file says them; nine series, in two rows of the legend."""
    found = ElementTree.fromstring(encode_plots([Plot(lines_of_series(9), "x", "y")], "svg"))
    lines = [line for line in found.iter(SVG + "polyline") if line.get("stroke-width") == "2"]
    assert len(lines) == 2 * 9  # with the legend's
    dashes = [line.get("stroke-dasharray") for line in lines[::2]]
    assert [line.get("stroke-dasharray") for line in lines[1::2]] == dashes
    assert len(set(dashes[:6])) == 6
    looks = {(line.get("stroke"), dash) for line, dash in zip(lines[::2], dashes, strict=True)}
    assert len(looks) == 9
    markers = [marker.get("points") for marker in found.iter(SVG + "polygon")]
    assert len(markers) == 9 * (4 + 1)
    at_origin = {shape_of(points) for points in markers[::5]}
    assert len(at_origin) == 6


def shape_of(points):
    corners = [tuple(map(float, corner.split(","))) for corner in points.split()]
    left, top = (min(each) for each in zip(*corners, strict=True))
    return tuple((round(x - left, 1), round(y - top, 1)) for x, y in corners)


def test_a_dashed_line_has_gaps():
    """The seventh series has the colour of the first, which is solid."""
    line = [(x, 1.0 + x / 10) for x in range(30)]  # too many to be marked
    first, seventh = {"": line}, {name: [] for name in "abcdef"} | {"": line}
    solid, dashed = (
        sum(is_blue(*colour) * n for n, colour in image.getcolors(2**24))
        for image in (line_plot(first, "", ""), line_plot(seventh, "", ""))
    )
    assert 0.5 * solid < dashed < 0.9 * solid


def test_svg_and_png_show_the_same():
    plots = [Plot(lines_of_series(2), "steps", "a < b & c", True), Plot({}, "x", "y")]
    plots[0] = plots[0]._replace(series={"η = 0.2": [(1.0, 2.0), (10.0, 30.0)], "σ̂": [(1.0, 9.0)]})
    found = ElementTree.fromstring(encode_plots(plots, "svg"))
    assert (found.get("width"), found.get("height")) == ("960", "1080")
    texts = [text.text for text in found.iter(SVG + "text")]
    assert {"η = 0.2", "σ̂", "a < b & c", "steps", "10"} <= set(texts)
    assert Image.open(io.BytesIO(encode_plots(plots))).size == (SIZE[0], 2 * SIZE[1])
    assert encode_plots(plots) == encode_plots(plots)


def test_greek_names_are_drawn_and_no_empty_boxes():
    def legend(name):
        plot = line_plot({name: []}, "", "")
        return plot.crop((120, 500, 400, SIZE[1])).convert("L")

    for greek, latin in (("η = 0.2", "n = 0.2"), ("σ̂", "o"), ("σ", "o")):
        added = ImageChops.subtract(legend(latin), legend(greek))
        removed = ImageChops.subtract(legend(greek), legend(latin))
        assert added.getbbox() is not None, greek
        assert max(removed.tobytes()) < 20, greek  # the letter like it, and strokes
