import math

import pytest

from ddimctl.files.pictures.plots import SIZE, line_plot

FALLING = [(step, 1 / (1 + step)) for step in range(0, 1000, 10)]


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
        column = [y for y in range(image.height) if is_blue(*image.getpixel((84, y)))]
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


def test_any_points_make_a_image():
    for points in (
        [],
        [(1.0, 2.0)],
        [(0.0, 0.0), (1.0, -3.0)],
        [(0.0, 5.0), (10.0, 5.0)],
        [(0.0, math.nan), (1.0, math.inf), (2.0, 1.0)],
        [(0.0, 1e-12), (1e9, 1e12)],
    ):
        assert line_plot({"series": points}, "x", "y").size == SIZE
