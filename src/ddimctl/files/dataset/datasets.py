"""Data sets of images: read once, split by content, and gathered into training batches."""

import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ddimctl.diffusion.noise import hash_keys
from ddimctl.errors import DataError, RequestError
from ddimctl.files.dataset.cache import (
    Preparation,
    hash_json,
    not_strict,
    read_pixels,
    stream_pixels,
)
from ddimctl.files.dataset.source import Entry, printable, scan


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of one size, in memory or mapped from a file; never write to `pixels`.

    pixels:         (N, H, W, C), uint8.
    labels:         (N,), int64, indices into class_names; None without classes.
    class_names:    the class folders, sorted; empty without classes.
    training:       indices of the images to learn from, int64, ascending.
    held_out:       indices of those kept aside, int64, ascending.
    fingerprint:    sha256 of names, contents and preparation: changes when training would.
    skipped:        name and reason of every image that could not be read.
    notes:          sentences on what else was left out: files, frames, runs of this program.
    content_hashes: per image, sha256 of it as decoded, before any resizing.
    """

    pixels: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    training: Tensor
    held_out: Tensor
    fingerprint: str
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    content_hashes: tuple[str, ...]

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, height, width, channels = self.pixels.shape
        return channels, height, width


def load_dataset(
    source: Path,
    *,
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
    background: tuple[int, ...] = (0, 0, 0),
    class_conditional: bool = False,
    holdout: float = 0.0,
    strict: bool = False,
    cache_dir: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The images of a folder or a zip, upright, composited, cropped and resized to image_size.

    image_size: (H, W); None takes the images' own, which must then be square and all equal.
    class_conditional: the first folder of each name is its class.
    holdout: in [0, 1); an image is kept aside when its content's hash, as a fraction, is below:
    whatever its name, size and neighbours, so equal images stay on one side.
    strict: an unreadable image is a DataError instead of an entry in `skipped`.
    cache_dir: where decoded pixels are kept; None is the user's cache.
    on_progress: called with (images read, of how many), only when they must be decoded.
    Raises RequestError (no such source, sizes differ) and DataError (nothing to train on).
    """
    if not 0 <= holdout < 1:
        raise RequestError(f"the held-out part must be in [0, 1), not {holdout}.")
    found = scan(source)
    entries = found.entries
    class_of = _class_names(entries) if class_conditional else None
    how = Preparation(image_size, channels, background)
    folder = user_cache() if cache_dir is None else cache_dir
    pixels, index = read_pixels(
        source, entries, how, cache_dir=folder, strict=strict, on_progress=on_progress
    )
    skipped = tuple((printable(entries[at].name), reason) for at, reason in index.skipped)
    if strict and skipped:
        raise not_strict(*skipped[0])
    missing = {at for at, _ in index.skipped}
    names = [entry.name for at, entry in enumerate(entries) if at not in missing]
    training, held_out = _split(index.hashes, holdout)
    class_names = tuple(sorted(set(class_of.values()))) if class_of else ()
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = torch.tensor([numbers[class_of[name]] for name in names]) if class_of else None
    return Dataset(
        pixels=pixels,
        labels=labels,
        class_names=class_names,
        training=training,
        held_out=held_out,
        fingerprint=hash_json([names, index.hashes, index.shape, channels, background]),
        skipped=skipped,
        notes=(*found.notes, *_frames_left_out(index.animated)),
        content_hashes=index.hashes,
    )


def stream_images(
    source: Path,
    count: int,
    batch_size: int,
    *,
    image_size: tuple[int, int],
    channels: int = 3,
    background: tuple[int, ...] = (0, 0, 0),
) -> Generator[Tensor, None, None]:
    """The first `count` images by name, as load_dataset prepares them, but kept nowhere.

    Yields (n, H, W, C), uint8, n = batch_size but for the last. Raises DataError where there are
    fewer, or one cannot be read.
    """
    entries = scan(source).entries
    if count > len(entries):
        raise DataError(
            f"{source} holds {len(entries)} images, not {count}.", "Generate more images."
        )
    how = Preparation(image_size, channels, background)
    yield from stream_pixels(source, entries[:count], how, batch_size)


def user_cache() -> Path:
    """$DDIMCTL_CACHE, else ddimctl under $XDG_CACHE_HOME, else ~/.cache/ddimctl.

    A user without a home, as in containers, has it in the folder for temporary files.
    """
    if own := os.environ.get("DDIMCTL_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "ddimctl"
    try:
        return Path.home() / ".cache" / "ddimctl"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"ddimctl-{os.getuid()}"


def gather(
    pixels: Tensor,
    indices: Tensor,
    flips: Tensor | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A batch (B, C, H, W), float32 in [-1, 1], channels last in memory, on the device.

    indices: (B,), int64, into pixels (N, H, W, C).  flips: (B,), bool, mirrored left to right.
    """
    device = torch.device(device)
    batch = pixels.index_select(0, indices.to(pixels.device))
    if device.type == "cuda" and batch.device.type == "cpu":
        batch = batch.pin_memory()
    batch = batch.to(device, non_blocking=True)  # as bytes, a quarter of the floats
    if flips is not None:  # picking whole rows from both is twice as fast as torch.where
        rows = torch.arange(len(flips), device=flips.device) + len(flips) * flips
        rows = rows.to(device, non_blocking=True)
        batch = torch.cat((batch, batch.flip(2))).index_select(0, rows)
    return batch.permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)


def sample_indices(seed: int, first_sample: int, count: int, n: int) -> Tensor:
    """Which of n images the samples first_sample ... first_sample + count - 1 show, (count,).

    A run sees the n images in one random order after the other. Each order depends on the seed
    and the epoch alone, so a resumed run needs nothing restored and any batch size sees the same.
    """
    pieces, at, end = list[Tensor](), first_sample, first_sample + count
    while at < end:
        epoch, start = divmod(at, n)
        piece = _order(seed, epoch, n)[start : start + end - at]
        pieces.append(piece)
        at += len(piece)
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Tensor:
    """The epoch's permutation of range(n), int64; shared, so never to be written to."""
    return hash_keys(torch.arange(n), seed, epoch).argsort()


def _frames_left_out(animated: int) -> Iterator[str]:
    if animated:
        images = "an image has" if animated == 1 else f"{animated} images have"
        yield f"{images} several frames, of which the first is used."


def _class_names(entries: list[Entry]) -> dict[str, str]:
    """Each entry's class, by the entry's name. Raises DataError for one outside class folders."""
    for entry in entries:
        if "/" not in entry.name:
            raise DataError(
                f"{printable(entry.name)} is not in a class folder.",
                "Put each image in a folder named after its class, or leave out --class-conditional.",
            )
    return {entry.name: printable(entry.name.partition("/")[0]) for entry in entries}


def _split(hashes: tuple[str, ...], holdout: float) -> tuple[Tensor, Tensor]:
    """Indices to train on and indices held out, int64."""
    bound = int(holdout * 2**256)
    aside = torch.tensor([int(content, 16) < bound for content in hashes])
    if aside.all():
        raise DataError(
            f"--holdout {holdout:g} of {len(hashes)} images leaves none to train on.",
            "Lower --holdout, or add images.",
        )
    return (~aside).nonzero().flatten(), aside.nonzero().flatten()
