import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.paths import PATHS, FramePosition, frame_positions, grid, lerp, slerp, tour
from ddimctl.errors import RequestError

SHAPE = (3, 8, 8)
weights = st.floats(0, 1)


def noise(*seeds):
    return seeded_noise(list(seeds), SHAPE)


def unit(seed, dtype=torch.float64):
    vector = noise(seed)[0].to(dtype)
    return vector / vector.norm()


def turned(a, b, theta):
    """The unit vector at the angle theta from the unit vector a, in the plane of a and b."""
    across = b - (a * b).sum() * a
    return math.cos(theta) * a + math.sin(theta) * across / across.norm()


def angle(a, b):
    return 2 * math.atan2(float((a - b).norm()), float((a + b).norm()))


def test_ends_are_the_inputs_bit_for_bit():
    for path in PATHS.values():
        for dtype in (torch.float32, torch.float64, torch.float16):
            a, b = (noise(seed)[0].to(dtype) for seed in (0, 1))
            for weight, end in ((0.0, a), (1.0, b), (0, a), (1, b)):
                found = path(a, b, weight)
                assert torch.equal(found, end)
                assert found.dtype == dtype
                assert found.data_ptr() != end.data_ptr()


@settings(deadline=None, max_examples=50)
@given(weights)
def test_equation_67(weight):
    a, b = noise(0)[0].double(), noise(1)[0].double()
    theta = math.acos(float((a * b).sum() / (a.norm() * b.norm())))
    expected = math.sin((1 - weight) * theta) * a + math.sin(weight * theta) * b
    torch.testing.assert_close(slerp(a, b, weight), expected / math.sin(theta))


@settings(deadline=None, max_examples=50)
@given(weights, st.floats(1e-9, math.pi - 1e-4))
def test_unit_vectors_stay_on_the_sphere_at_their_share_of_the_angle(weight, theta):
    a = unit(0)
    b = turned(a, unit(1), theta)
    found = slerp(a, b, weight)
    assert float(found.norm()) == pytest.approx(1, abs=1e-9)
    assert angle(a, found) == pytest.approx(weight * theta, rel=1e-6, abs=1e-9)
    assert angle(found, b) == pytest.approx((1 - weight) * theta, rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(weights, st.sampled_from([slerp, lerp]))
def test_the_way_back_is_the_way_there(weight, path):
    a, b = noise(0)[0], noise(1)[0]
    torch.testing.assert_close(path(a, b, weight), path(b, a, 1 - weight), rtol=0, atol=1e-6)


def test_at_small_angles_the_arc_is_the_line():
    a = 20 * unit(0)
    for theta in (0.0, 1e-12, 1e-8, 1e-5):
        b = 30 * turned(unit(0), unit(1), theta)
        for weight in (0.1, 0.5, 0.9):
            torch.testing.assert_close(
                slerp(a, b, weight), lerp(a, b, weight), rtol=1e-9, atol=1e-9
            )


def test_noise_stays_as_long_as_noise_where_the_line_is_too_short():
    a, b = noise(0, 1)
    assert slerp(a, b, 0.5).std() == pytest.approx(1, abs=0.1)
    assert lerp(a, b, 0.5).std() == pytest.approx(0.5**0.5, abs=0.1)


def test_nearly_opposite_vectors_have_an_arc():
    a = unit(0)
    half = slerp(a, turned(a, unit(1), math.pi - 1e-4), 0.5)
    assert float(half.norm()) == pytest.approx(1, abs=1e-6)
    assert angle(a, half) == pytest.approx(math.pi / 2, abs=1e-4)


def test_opposite_latents_are_refused():
    a = noise(0)[0]
    for scale in (-1.0, -0.3, -7.1):
        for weight in (0.0, 0.5, 1.0):
            with pytest.raises(RequestError, match="opposite"):
                slerp(a, scale * a, weight)


def test_vectors_without_direction_are_refused():
    a = noise(0)[0]
    for value, named in ((0.0, "zero"), (math.nan, "not finite"), (math.inf, "not finite")):
        for pair in ((a, torch.full(SHAPE, value)), (torch.full(SHAPE, value), a)):
            with pytest.raises(RequestError, match=named):
                slerp(*pair, 0.5)


def test_a_line_may_cross_zero():
    a = noise(0)[0]
    assert torch.equal(lerp(a, -a, 0.5), torch.zeros(SHAPE))


def test_different_shapes_are_refused():
    for path in PATHS.values():
        with pytest.raises(RequestError, match=r"\(3, 8, 8\) and \(1, 8, 8\)"):
            path(noise(0)[0], noise(0)[0, :1], 0.5)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 9), st.integers(0, 60), st.booleans())
def test_a_tour_has_the_frames_asked_for_and_every_input_in_order(inputs, more, loop):
    places = frame_positions(inputs, inputs + more, loop)
    assert len(places) == inputs + more
    assert [p.shows for p in places if p.shows is not None] == list(range(inputs))
    assert (places[0].start, places[0].weight) == (0, 0)
    legs = [sum(p.start == leg and p.weight < 1 for p in places) for leg in range(inputs)]
    used = legs if loop else legs[:-1]
    assert max(used) - min(used) <= 1


def test_two_inputs_are_evenly_spaced():
    assert frame_positions(2, 5) == [FramePosition(0, 1, k / 4) for k in range(5)]


def test_a_loop_ends_one_frame_before_it_begins_again():
    assert frame_positions(2, 4, loop=True) == [
        FramePosition(0, 1, 0.0), FramePosition(0, 1, 0.5), FramePosition(1, 0, 0.0), FramePosition(1, 0, 0.5),
    ]  # fmt: skip


def test_impossible_tours_are_refused():
    for inputs, frames, named in ((0, 5, "two inputs"), (1, 5, "two inputs"), (3, 2, "3 inputs")):
        with pytest.raises(RequestError, match=named):
            frame_positions(inputs, frames)


def test_a_tour_shows_its_inputs_and_what_is_between():
    inputs = noise(0, 1, 2)
    for loop in (False, True):
        places = frame_positions(3, 7, loop)
        frames = tour(inputs, places)
        for frame, (start, end, weight) in zip(frames, places, strict=True):
            assert torch.equal(frame, slerp(inputs[start], inputs[end], weight))
        assert all(any(torch.equal(frame, latent) for frame in frames) for latent in inputs)
        assert torch.equal(frames[0], inputs[0])
        assert torch.equal(frames[-1], inputs[2]) is not loop


def test_a_grid_has_its_inputs_in_the_corners_and_slerps_of_slerps_between():
    corners = noise(0, 1, 2, 3)
    cells = grid(corners, 3, 5).view(3, 5, *SHAPE)
    found = torch.stack([cells[0, 0], cells[0, 4], cells[2, 0], cells[2, 4]])
    assert torch.equal(found, corners)
    left, right = slerp(corners[0], corners[2], 0.5), slerp(corners[1], corners[3], 0.5)
    for column in range(5):
        assert torch.equal(cells[1, column], slerp(left, right, column / 4))
        assert torch.equal(cells[0, column], slerp(corners[0], corners[1], column / 4))


def test_impossible_grids_are_refused():
    for seeds, size, named in (
        ((0, 1, 2), (3, 3), "four inputs"),
        ((0, 1, 2, 3), (1, 4), "too small"),
    ):
        with pytest.raises(RequestError, match=named):
            grid(noise(*seeds), *size)
