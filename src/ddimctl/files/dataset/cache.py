"""Decoded images in one memory-mapped file, so that a data set is decoded once.

The file is the pixels (N, H, W, C), uint8, then a JSON index, then a footer of fixed size with the
index's length and hash. It is named by what it was made from; when in doubt it is made again.
"""

import hashlib
import io
import json
import math
import mmap
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import PIL
import torch
from torch import Tensor

from ddimctl.errors import DataError, RequestError, StorageError
from ddimctl.files.atomic import clean_temporaries, make_folder, open_atomic
from ddimctl.files.cache import make_room, mark_used
from ddimctl.files.dataset.source import Entry, open_source, printable
from ddimctl.files.pictures.images import bands, fit_image, is_animated, read_image

_FOOTER: Final = struct.Struct("<8sQ32s")  # magic, bytes of the index, sha256 of the index
_MAGIC: Final = b"ddimpix2"
_CHECKED_BYTES: Final = 256 * 2**20  # larger files are checked by a sample, so that they open fast
_MAX_WORKERS: Final = 16
_REMOVE: Final = "Remove it, then repeat the command that made it with --resume."


@dataclass(frozen=True)
class Preparation:
    """How images become pixels. image_size: (H, W), or None when all have one square size."""

    image_size: tuple[int, int] | None
    channels: int
    background: tuple[int, ...]


@dataclass(frozen=True)
class Index:
    """What lies in the pixels.

    shape:     (N, H, W, C).
    hashes:    per image, sha256 of it upright and composited but not yet resized, hexadecimal.
    checksums: per image, CRC-32 of its pixels.
    skipped:   position among the entries, and why it is not there.
    animated:  how many of the images are the first of several frames.
    """

    shape: tuple[int, int, int, int]
    hashes: tuple[str, ...]
    checksums: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]
    animated: int


Progress = Callable[[int, int], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class _Image:
    pixels: bytes
    size: tuple[int, int]  # (W, H)
    hash: str
    animated: bool


def read_pixels(
    source: Path,
    entries: Sequence[Entry],
    how: Preparation,
    *,
    cache_dir: Path,
    strict: bool,
    on_progress: Progress | None,
) -> tuple[Tensor, Index]:
    """Pixels (N, H, W, C), uint8, never to be written to, from the cache or decoded into it.

    Where the cache cannot be written they are kept in memory; it is made anew when an image that
    could not be read now can. on_progress is not called when the cache serves.
    Raises as decode does, and StorageError when memory ends.
    """
    key = _key(entries, how)
    path = cache_dir / "datasets" / f"{key}.pixels"
    found = _open(path, key)
    if found is not None and not _readable_now(source, entries, how, found[1]):
        mark_used(path)
        return found

    def fill(sink: _Sink) -> Index:
        return decode(source, entries, how, sink, strict=strict, on_progress=on_progress)

    try:
        _write(path, key, fill)
        make_room(path)
        found = _open(path, key)
    except StorageError:  # a full or read-only disk: it would only have saved time
        found = None
    return _in_memory(fill) if found is None else found


def decode(
    source: Path,
    entries: Sequence[Entry],
    how: Preparation,
    sink: _Sink,
    *,
    strict: bool,
    on_progress: Progress | None,
) -> Index:
    """Write the pixels of every readable image to sink, in order, decoding in threads.

    Raises DataError when no image can be read or, if strict, for the first that cannot;
    RequestError when how.image_size is None and the images are not all square and of one size.
    """
    hashes, checksums = list[str](), list[int]()
    skipped = list[tuple[int, str]]()
    first: tuple[str, tuple[int, int]] | None = None
    animated = 0
    with closing(_images(source, entries, how)) as images:
        for position, image in enumerate(images):
            name = printable(entries[position].name)
            if isinstance(image, _Image):
                first = first or (name, image.size)
                if how.image_size is None:
                    _check_same_size(first, (name, image.size))
                animated += image.animated
                sink.write(image.pixels)
                hashes.append(image.hash)
                checksums.append(zlib.crc32(image.pixels))
            elif strict:
                raise not_strict(name, image)
            else:
                skipped.append((position, image))
            if on_progress is not None:
                on_progress(position + 1, len(entries))
    if first is None:
        raise DataError(
            f"none of the {len(entries)} images in {source} can be read; "
            f"{printable(entries[0].name)}: {skipped[0][1]}",
            "Name a folder or a zip of PNG, JPEG or WebP images.",
        )
    width, height = first[1]
    shape = (len(hashes), height, width, how.channels)
    return Index(shape, tuple(hashes), tuple(checksums), tuple(skipped), animated)


def stream_pixels(
    source: Path, entries: Sequence[Entry], how: Preparation, batch_size: int
) -> Generator[Tensor, None, None]:
    """The images in batches (n, H, W, C), uint8, in order, kept nowhere; all brought to one size.

    They are decoded in threads, some ahead. Raises DataError for one that cannot be read.
    """
    assert how.image_size is not None
    batch = list[bytes]()
    with closing(_images(source, entries, how)) as images:
        for position, image in enumerate(images):
            if not isinstance(image, _Image):
                raise DataError(f"{printable(entries[position].name)}: {image}", _REMOVE)
            batch.append(image.pixels)
            if len(batch) == batch_size or position == len(entries) - 1:
                shape = (len(batch), *how.image_size, how.channels)
                yield torch.frombuffer(bytearray(b"".join(batch)), dtype=torch.uint8).view(shape)
                batch = []


def _images(
    source: Path, entries: Sequence[Entry], how: Preparation
) -> Generator[_Image | str, None, None]:
    """Every image, or why there is none, in order, decoded in threads."""
    with (
        open_source(source) as read,
        closing(_map_in_order(partial(_attempt, read, how), entries)) as images,
    ):
        yield from images


def not_strict(name: str, reason: str) -> DataError:
    """What --strict says of an image that cannot be read."""
    return DataError(f"{name}: {reason}", "Remove it, or leave out --strict (in evaluate: -n).")


def _readable_now(source: Path, entries: Sequence[Entry], how: Preparation, index: Index) -> bool:
    """Whether an image that was skipped can be read by now: access was given, a zip repaired."""
    if not index.skipped:
        return False
    with open_source(source) as read:
        again = (_attempt(read, how, entries[position]) for position, _ in index.skipped)
        return any(isinstance(image, _Image) for image in again)


def _attempt(read: Callable[[Entry], bytes], how: Preparation, entry: Entry) -> _Image | str:
    """The image, or why there is none."""
    try:
        return _prepare(read(entry), how)
    except DataError as error:
        return error.cause
    except OSError as error:
        return f"{error.strerror or error}."


def _prepare(data: bytes, how: Preparation) -> _Image:
    image = read_image(data, how.channels, how.background, name="it")
    animated = is_animated(image)
    content = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    for _, band in bands(image):
        content.update(band.tobytes())
    if how.image_size is not None:
        image = fit_image(image, how.image_size, "crop", how.background)
    return _Image(image.tobytes(), image.size, content.hexdigest(), animated)


def _check_same_size(first: tuple[str, tuple[int, int]], this: tuple[str, tuple[int, int]]) -> None:
    for name, (width, height) in (first, this):
        if (width, height) != first[1] or width != height:
            raise RequestError(
                f"the images are not all square and of one size: {first[0]} is "
                f"{first[1][0]}x{first[1][1]}, {name} is {width}x{height} (width x height).",
                "Pass the size to crop and resize to: --image-size 64 in train, else --size 64.",
            )


def _map_in_order(work: Callable[[_T], _R], items: Iterable[_T]) -> Generator[_R, None, None]:
    """map(work, items) in threads, with at most a few results in memory for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, _MAX_WORKERS)
    waiting = deque[Future[_R]]()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _key(entries: Sequence[Entry], how: Preparation) -> str:
    """What the pixels depend on, wherever the source lies and whatever it is called."""
    files = [(entry.name, entry.size, entry.stamp) for entry in entries]
    return hash_json([_MAGIC.decode(), PIL.__version__, asdict(how), files])


def hash_json(value: Any) -> str:
    """sha256 of plain values, hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write(path: Path, key: str, fill: Callable[[_Sink], Index]) -> None:
    make_folder(path.parent)
    clean_temporaries(path.parent)
    with open_atomic(path) as file:
        index = json.dumps({"key": key, **vars(fill(file))}).encode()
        file.write(index)
        file.write(_FOOTER.pack(_MAGIC, len(index), hashlib.sha256(index).digest()))


def _open(path: Path, key: str) -> tuple[Tensor, Index] | None:
    """The pixels under this key, or None when there is no file or it is not whole."""
    try:
        with path.open("rb") as file:
            # read-only and shared: a private mapping would count against the memory limit
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    index = _read_index(view, key)
    if index is None or not _whole(view, index):
        view.close()
        return None
    return _as_pixels(view, index), index


def _read_index(view: mmap.mmap, key: str) -> Index | None:
    end = len(view) - _FOOTER.size
    if end < 0:
        return None
    magic, length, digest = _FOOTER.unpack(view[end:])
    text = view[max(end - length, 0) : end]
    if magic != _MAGIC or hashlib.sha256(text).digest() != digest:
        return None
    fields = json.loads(text)
    if fields["key"] != key:
        return None
    index = Index(
        shape=tuple(fields["shape"]),
        hashes=tuple(fields["hashes"]),
        checksums=tuple(fields["checksums"]),
        skipped=tuple((position, reason) for position, reason in fields["skipped"]),
        animated=fields["animated"],
    )
    return index if math.prod(index.shape) == end - length else None


def _whole(view: mmap.mmap, index: Index) -> bool:
    """Whether evenly spread images, all of them in a file that is not huge, are as written."""
    count, size = index.shape[0], math.prod(index.shape[1:])
    stride = max(1, count * size // _CHECKED_BYTES)
    return all(
        zlib.crc32(view[at * size : (at + 1) * size]) == index.checksums[at]
        for at in range(0, count, stride)
    )


def _in_memory(fill: Callable[[_Sink], Index]) -> tuple[Tensor, Index]:
    sink = io.BytesIO()
    try:
        index = fill(sink)
    except MemoryError as error:
        raise StorageError(
            "the data set does not fit in memory, and its cache cannot be written.",
            "Set DDIMCTL_CACHE to a folder on a disk with space.",
        ) from error
    return _as_pixels(sink.getbuffer(), index), index


def _as_pixels(buffer: mmap.mmap | memoryview, index: Index) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        pixels = torch.frombuffer(buffer, dtype=torch.uint8, count=math.prod(index.shape))
    return pixels.view(index.shape)
