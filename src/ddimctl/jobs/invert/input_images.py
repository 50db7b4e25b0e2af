"""Strangers' images, found, named, and fitted to what a checkpoint knows."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.files.dataset.source import scan
from ddimctl.files.pictures.images import fit_image, image_pixels, is_animated, read_image
from ddimctl.files.untrusted.guards import is_folder
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.events import Report, ignore, notify

_LONGEST: Final = 200  # bytes of a name


@dataclass(frozen=True)
class InputImage:
    """An image file; name: what its results are called, different from every other's."""

    path: Path
    name: str


@dataclass(frozen=True)
class Fitted:
    """An image as the model takes it: pixels (H, W, C), uint8; what it was: (H, W)."""

    pixels: Tensor
    original: tuple[int, int]
    fit: str
    animated: bool = False

    def record(self) -> JsonObject:
        """What latents say of it: plain values."""
        return {"fit": self.fit, "original_size": list(self.original)}

    def sentence(self) -> str:
        """How it was fitted, in words."""
        return self._fitting() + ("; the first of several frames" if self.animated else "")

    def _fitting(self) -> str:
        (height, width), (to_height, to_width) = self.original, self.pixels.shape[:2]
        size = f"{width}x{height} pixels" + " (width x height)" * (width != height)
        if self.original == (to_height, to_width):
            return f"{size}, unchanged"
        scale = (max if self.fit == "crop" else min)(to_height / height, to_width / width)
        inner = f"{round(to_width / scale)}x{round(to_height / scale)}"
        how = {
            "crop": f"cropped to the middle {inner} and resized",
            "pad": f"padded to {inner} and resized",
            "stretch": "stretched",
        }[self.fit]
        if height * to_width == width * to_height:
            how = "resized"
        return f"{size}, {how} to {to_width}x{to_height}"


def find_inputs(given: Sequence[Path], report: Report = ignore) -> list[InputImage]:
    """The files, and the images in the folders, in order, each once.

    A name is the file's stem, cut where it is very long, with a number where an earlier one has it.
    A file that is missing or
    no image is found out when it is read. What is left out of a folder is reported. Raises
    DataError for a folder without images.
    """
    paths = dict.fromkeys(path for entry in given for path in _expand(entry, report))
    taken: set[str] = set()
    inputs = []
    for path in paths:
        stem, number = _shortened(path.stem), 1
        name = stem
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        inputs.append(InputImage(path, name))
    return inputs


def fit_input_image(path: Path, checkpoint: Checkpoint, size: tuple[int, int], fit: str) -> Fitted:
    """Read an image and fit it to (H, W). Raises DataError naming it."""
    background = checkpoint.background or (0, 0, 0)
    image = read_image(path, checkpoint.picture_shape[0], background)
    fitted = fit_image(image, size, fit, background)
    return Fitted(image_pixels(fitted), (image.height, image.width), fit, is_animated(image))


def _shortened(stem: str) -> str:
    """The stem with room for what results add to it: file systems take 255 bytes."""
    while len(os.fsencode(stem)) > _LONGEST:
        stem = stem[:-1]
    return stem


def _expand(given: Path, report: Report) -> Iterator[Path]:
    if not is_folder(given):
        yield given
        return
    found = scan(given)
    notify(report, found.notes)
    for entry in found.entries:
        yield given / entry.name
