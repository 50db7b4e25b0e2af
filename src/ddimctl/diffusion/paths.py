"""Ways from one latent to another (Song et al. 2021, sections 5.3 and D.5)."""

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.errors import RequestError

Interpolator = Callable[[Tensor, Tensor, float], Tensor]

# Closer to opposite than this, in radians, float32's rounding decides which way round one goes.
_OPPOSITE: Final = 1e-6


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point on the arc from a (weight 0) to b (weight 1): eq. 67, each tensor one vector.

    a, b: of one shape, whichever; for a batch, call it for each latent. The result has a's dtype;
    at the ends it is a or b itself, bit for bit. Lengths other than 1 are mixed as they are.
    Raises RequestError for vectors of no direction (zero, not finite), for opposite ones, between
    which no arc is the shortest, and for different shapes.
    """
    _check_shapes(a, b)
    theta = _angle(a.double(), b.double())
    if weight in (0, 1):
        return (b if weight else a).to(a.dtype).clone()
    # sin(w theta) / sin(theta), which sinc carries through theta = 0
    back, forth = ((w * _sinc(w * theta) / _sinc(theta)) for w in (1 - weight, weight))
    return (back * a.double() + forth * b.double()).to(a.dtype)


def lerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point on the straight line from a (weight 0) to b (weight 1), which for two latents of
    noise is too short in the middle. Otherwise as slerp; any two finite vectors will do.
    """
    _check_shapes(a, b)
    if weight in (0, 1):
        return (b if weight else a).to(a.dtype).clone()
    return ((1 - weight) * a.double() + weight * b.double()).to(a.dtype)


PATHS: Final[Mapping[str, Interpolator]] = {"slerp": slerp, "lerp": lerp}


class FramePosition(NamedTuple):
    """Where a frame is: on the way from one input to another, by their numbers."""

    start: int
    end: int
    weight: float

    @property
    def shows(self) -> int | None:
        """The input that the frame is, or None between two."""
        if self.weight in (0, 1):
            return self.end if self.weight else self.start
        return None


def frame_positions(inputs: int, frames: int, loop: bool = False) -> list[FramePosition]:
    """The places of `frames` frames, in all, that visit every input in its order.

    The legs between inputs share the frames as evenly as whole numbers can. loop: a last leg goes
    back to the first input, whose frame is not repeated at the end.
    Raises RequestError for fewer than two inputs, or fewer frames than inputs.
    """
    if inputs < 2:
        raise RequestError(
            f"an interpolation needs at least two inputs, not {inputs}.",
            "Pass another file, or seeds with --seeds.",
        )
    if frames < inputs:
        raise RequestError(
            f"--frames {frames} is less than the {inputs} inputs, each of which is a frame.",
            f"Pass at least {inputs}.",
        )
    legs = inputs if loop else inputs - 1
    paces = frames if loop else frames - 1
    places = []
    for leg in range(legs):
        first, last = leg * paces // legs, (leg + 1) * paces // legs
        end = (leg + 1) % inputs
        places += [FramePosition(leg, end, k / (last - first)) for k in range(last - first)]
    if not loop:
        places.append(FramePosition(inputs - 2, inputs - 1, 1.0))
    return places


def tour(inputs: Tensor, places: list[FramePosition], path: Interpolator = slerp) -> Tensor:
    """The latents (F, C, H, W) at the places of a tour, between inputs (K, C, H, W)."""
    return torch.stack([path(inputs[start], inputs[end], w) for start, end, w in places])


def grid(corners: Tensor, rows: int, columns: int, path: Interpolator = slerp) -> Tensor:
    """The latents (rows * columns, C, H, W), row by row, that fill the space between four.

    corners: (4, C, H, W): top left, top right, bottom left, bottom right. Paths down the left and
    the right side, then paths across between the two. Raises RequestError as path and check_grid.
    """
    check_grid(len(corners), rows, columns)
    top_left, top_right, bottom_left, bottom_right = corners
    down = [row / (rows - 1) for row in range(rows)]
    across = [column / (columns - 1) for column in range(columns)]
    left = [path(top_left, bottom_left, weight) for weight in down]
    right = [path(top_right, bottom_right, weight) for weight in down]
    return torch.stack(
        [path(a, b, weight) for a, b in zip(left, right, strict=True) for weight in across]
    )


def check_grid(inputs: int, rows: int, columns: int) -> None:
    """Raise RequestError for other than four inputs, or a side of less than two."""
    if inputs != 4:
        raise RequestError(
            f"--grid needs four inputs, not {inputs}.", "Pass four inputs, or use --frames."
        )
    if min(rows, columns) < 2:
        raise RequestError(
            f"--grid {rows}x{columns} is too small.", "Each side must be at least 2."
        )


def _angle(a: Tensor, b: Tensor) -> float:
    """The angle between two float64 vectors, exact also near 0 and pi, where arccos is not.

    Kahan's formula: half of it is that of the triangle with sides |u - v| and |u + v|.
    """
    lengths = [float(torch.linalg.vector_norm(vector)) for vector in (a, b)]
    for which, length in zip(("first", "second"), lengths, strict=True):
        if length == 0:
            raise RequestError(
                f"the {which} latent is zero, which has no direction.", "Use --path lerp."
            )
        if not math.isfinite(length):
            raise RequestError(f"the {which} latent has values that are not finite.")
    u, v = a / lengths[0], b / lengths[1]
    apart, together = (float(torch.linalg.vector_norm(vector)) for vector in (u - v, u + v))
    theta = 2 * math.atan2(apart, together)
    if math.pi - theta < _OPPOSITE:
        raise RequestError(
            "the latents are opposite, so the path between them is ambiguous.",
            "Put another input between them, or use --path lerp.",
        )
    return theta


def _check_shapes(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise RequestError(
            f"latents of the shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit together."
        )


def _sinc(x: float) -> float:
    return math.sin(x) / x if x else 1.0
