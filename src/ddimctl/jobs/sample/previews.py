"""What a run draws of its images when they are made: the grid, the animation and the video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.files.pictures.animation import write_animation
from ddimctl.files.pictures.grids import GRID_LIMIT, make_grid
from ddimctl.files.pictures.images import encode_image
from ddimctl.jobs.sample.outputs import Layout
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.request import OutputSettings

TRAJECTORY_IMAGES: Final = 16
TRAJECTORY_FRAMES: Final = 60
_HOLD_LAST: Final = 1.5  # seconds, before the animation begins again


@dataclass
class Kept:
    """What is kept in memory to draw from, by image: pixels (H, W, C), uint8, of finished ones, and
    frames: those of the animation, in the order of the steps."""

    pixels: dict[int, Tensor] = field(default_factory=dict)
    frames: dict[int, list[Tensor]] = field(default_factory=dict)

    def keep_step(self, images: range, index: int, pixels: Tensor) -> None:
        """Remember the pixels (k, H, W, C) of the x_0 that step `index` predicts of the first k."""
        for i, image in zip(images, pixels, strict=False):
            before = self.frames.get(i, []) if index else []  # or it is made once more
            self.frames[i] = [*before, image]

    def take_over(self, other: "Kept") -> None:
        """Add what another process kept."""
        self.pixels |= other.pixels
        self.frames |= other.frames


def shown_images(images: range, index: int, steps: int) -> int:
    """Of how many of the images, its first, the animation shows step `index` of so many.

    It shows the steps of the first images: all, or evenly spread ones with both ends.
    """
    shown = min(steps, TRAJECTORY_FRAMES)
    if index not in {round(i * (steps - 1) / max(shown - 1, 1)) for i in range(shown)}:
        return 0
    return len(range(images.start, min(images.stop, TRAJECTORY_IMAGES)))


def make_captions(plan: Plan, checkpoint: Checkpoint, layout: Layout) -> list[str] | None:
    """The captions of the images that a grid has room for."""
    if layout.captions is not None:
        return list(layout.captions[:GRID_LIMIT])
    if plan.labels is None:
        return None
    return [checkpoint.class_name(label) for label in plan.labels[:GRID_LIMIT]]


def draw_grid(
    images: Sequence[Tensor],
    outputs: OutputSettings,
    captions: Sequence[str] | None,
    text: dict[str, str] | None,
) -> bytes:
    """A PNG of images (H, W, C), uint8, with a caption under each, and a text chunk."""
    grid = make_grid(torch.stack(list(images)), outputs.columns, outputs.scale, captions)
    return encode_image(grid, "png", text)


def draw_animation(
    file: BinaryIO,
    frames: Mapping[int, Sequence[Tensor]],
    outputs: OutputSettings,
    captions: Sequence[str] | None,
    format: str,
) -> None:
    """Write a gif or webp of grids, one for each step shown; frames by image, as many for each."""
    order = sorted(frames)
    under = None if captions is None else captions[: len(order)]
    count = len(frames[order[0]])

    def images_at(k: int) -> Tensor:
        return torch.stack([frames[i][k] for i in order])

    write_animation(
        file,
        count,
        lambda k: make_grid(images_at(k), outputs.columns, outputs.scale, under),
        format,
        fps=min(20.0, max(4.0, count / 4)),
        holds={count - 1: _HOLD_LAST},
    )
