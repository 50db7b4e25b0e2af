"""The output folder of a sampling run: pictures as they come, then grid, latents and manifest."""

import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.files.animation import encode_animation
from ddimctl.files.atomic import (
    clean_temporaries,
    create_numbered_folder,
    make_folder,
    storage_errors,
    sync_files,
    write_bytes,
    write_json,
)
from ddimctl.files.background_writer import BackgroundWriter
from ddimctl.files.grids import GRID_LIMIT, make_grid
from ddimctl.files.images import (
    encode_image,
    encode_picture,
    picture_pixels,
    read_picture,
    to_uint8,
)
from ddimctl.files.latents import save_latents, save_samples
from ddimctl.files.video import FORMATS as VIDEOS
from ddimctl.files.video import encode_video
from ddimctl.jobs.records import image_text, latents_metadata, sha256_hex
from ddimctl.jobs.run_manifest import NAME as MANIFEST
from ddimctl.jobs.run_manifest import Layout, check_same_run, image_record, make_manifest
from ddimctl.jobs.sampling_plan import Plan, SampleRequest

SAVES: Final = ("grid", "images", "latents", "samples", "trajectory")
TRAJECTORY_IMAGES: Final = 16
TRAJECTORY_FRAMES: Final = 60
_SAMPLES_PART: Final = ".samples.part"
_LATENTS_PART: Final = ".latents.part"
_ROWS: Final = 64  # images whose x_T is drawn at once
_NAMES: Final = {
    "grid": "grid.png",
    "latents": "latents.pt",
    "samples": "samples.pt",
    "trajectory": "trajectory.gif",
    "manifest": MANIFEST,
}


class SampleStore:
    """Where a run's images go. Use open_store, which waits for writes that are under way."""

    def __init__(
        self,
        request: SampleRequest,
        plan: Plan,
        checkpoint: Checkpoint,
        device: str,
        layout: Layout,
        out: Path,
        writer: BackgroundWriter,
    ) -> None:
        self.out = out
        self._request, self._plan, self._checkpoint = request, plan, checkpoint
        self._device, self._layout, self._writer = device, layout, writer
        self._digests: dict[int, str] = {}
        self._pixels: dict[int, Tensor] = {}
        self._frames: dict[int, list[Tensor]] = {}
        count, last = len(plan.tau), len(plan.tau) - 1
        shown = min(count, TRAJECTORY_FRAMES)
        self._shown_steps = {round(i * last / max(shown - 1, 1)) for i in range(shown)}
        self._samples_begun = (out / _SAMPLES_PART).exists()

    @cached_property
    def _samples(self) -> Tensor:
        """The float samples (N, C, H, W), on disk: a long run has many, and a resume needs them."""
        return _mapped(self.out / _SAMPLES_PART, self._plan.count, self._plan.shape)

    @property
    def resumable(self) -> bool:
        """Whether a stopped run leaves anything that a resume can use."""
        return "images" in self._request.save

    def missing_groups(self) -> Iterator[range]:
        """The batch groups of which anything is not yet on disk."""
        count, size = self._plan.count, self._plan.batch_size
        trajectory_missing = (
            "trajectory" in self._request.save and not self._path_of("trajectory").exists()
        )
        samples_missing = "samples" in self._request.save and not self._samples_begun
        for start in range(0, count, size):
            group = range(start, min(start + size, count))
            stored = (
                not samples_missing
                and "images" in self._request.save
                and all(self._image_path(i).exists() for i in group)
            )
            if not stored or (trajectory_missing and start < TRAJECTORY_IMAGES):
                yield group

    def keep_step(self, group: range, index: int, x_0: Tensor) -> None:
        """Remember the predicted x_0 (n, C, H, W) of a step, if the animation shows it."""
        wanted = [i for i in group if i < TRAJECTORY_IMAGES]
        if "trajectory" in self._request.save and wanted and index in self._shown_steps:
            pixels = to_uint8(x_0[: len(wanted)]).cpu()
            for i, picture in zip(wanted, pixels, strict=True):
                self._frames.setdefault(i, []).append(picture)

    def keep(self, group: range, x: Tensor) -> None:
        """Store the finished samples (n, C, H, W) of a group; encoding happens elsewhere."""
        if "samples" in self._request.save:
            self._samples[group.start : group.stop] = x.float().cpu()
        pixels = to_uint8(x).cpu()
        for i, picture in zip(group, pixels, strict=True):
            if i < GRID_LIMIT:
                self._pixels[i] = picture
            if "images" in self._request.save:
                self._writer.submit(self._write_image, i, picture)

    def finish(self) -> None:
        """Write what the run ends with, the manifest last."""
        self._writer.wait()
        save = self._request.save
        if "images" in save:
            sync_files([self._image_path(i) for i in range(self._plan.count)])
        if "grid" in save:
            self._write_grid()
        if "trajectory" in save and self._frames:
            write_bytes(self._path_of("trajectory"), self._animation())
        metadata = latents_metadata(self._plan, self._checkpoint)
        if "latents" in save:
            self._write_latents(metadata)
        if "samples" in save:
            save_samples(self._path_of("samples"), self._samples, metadata)
            (self.out / _SAMPLES_PART).unlink(missing_ok=True)
        if self._layout.video:
            write_bytes(self._path_of("video"), self._video(self._layout.video))
        write_json(self._path_of("manifest"), self.manifest(complete=True))

    def outputs(self) -> dict[str, Path]:
        """Every output's path by its kind."""
        videos = ("video",) if self._layout.video else ()
        names = {"images": self._layout.images}
        kinds = (*self._request.save, *videos, "manifest")
        return {names.get(kind, kind): self._path_of(kind) for kind in kinds}

    def is_complete(self, recorded: dict[str, Any] | None) -> bool:
        """Whether the recorded run had ended and all that it made is still there.

        Never with a video, which another request may want otherwise: it is made again.
        """
        if recorded is None or not recorded.get("complete") or self._layout.video:
            return False
        images = range(self._plan.count) if "images" in self._request.save else ()
        paths = [*self.outputs().values(), *map(self._image_path, images)]
        return all(path.exists() for path in paths)

    def manifest(self, complete: bool) -> dict[str, Any]:
        """What manifest.json says now; once complete, also of the files."""
        images = None
        if complete:
            images = [self._finished_record(i) for i in range(self._plan.count)]
        return make_manifest(
            self._request, self._plan, self._checkpoint, self._layout, self._device, images
        )

    def _finished_record(self, i: int) -> dict[str, Any]:
        record = image_record(self._plan, self._checkpoint, self._layout, i)
        if "images" in self._request.save:
            path = self._image_path(i)
            record["file"] = f"{path.parent.name}/{path.name}"
            record["sha256"] = self._digests.get(i) or sha256_hex(path.read_bytes())
        return record

    def _write_latents(self, metadata: dict[str, Any]) -> None:
        part = self.out / _LATENTS_PART
        count = self._plan.count
        x_T = _mapped(part, count, self._plan.shape)
        for start in range(0, count, _ROWS):
            rows = range(start, min(start + _ROWS, count))
            x_T[rows.start : rows.stop] = self._plan.start(rows, torch.device("cpu"))
        save_latents(self._path_of("latents"), x_T, metadata)
        part.unlink()

    def _write_image(self, i: int, pixels: Tensor) -> None:
        content = encode_image(pixels, self._request.format, self._text(i))
        self._digests[i] = sha256_hex(content)
        write_bytes(self._image_path(i), content, sync=False)

    def _write_grid(self) -> None:
        count = min(self._plan.count, GRID_LIMIT)
        grid = make_grid(
            torch.stack([self._picture(i) for i in range(count)]),
            self._request.columns,
            self._request.scale,
            self._captions(count),
        )
        write_bytes(self._path_of("grid"), encode_picture(grid, "png", self._text(None)))

    def _picture(self, i: int) -> Tensor:
        """The pixels (H, W, C) of a finished image, from its file where they were not kept."""
        if i in self._pixels:
            return self._pixels[i]
        return picture_pixels(read_picture(self._image_path(i), self._plan.shape[0]))

    def _video(self, format: str) -> bytes:
        frames = [self._picture(i) for i in range(self._plan.count)]
        return encode_video(frames, format, self._layout.fps, self._layout.loop)

    def _animation(self) -> bytes:
        order = sorted(self._frames)
        frames = [
            make_grid(
                torch.stack([self._frames[i][k] for i in order]),
                self._request.columns,
                self._request.scale,
                self._captions(len(order)),
            )
            for k in range(len(self._frames[order[0]]))
        ]
        suffix = self._path_of("trajectory").suffix[1:]
        return encode_animation(frames, suffix, fps=min(20.0, max(4.0, len(frames) / 4)))

    def _text(self, i: int | None) -> dict[str, str] | None:
        """The text chunk of a picture: one JSON object under the program's name."""
        if not self._request.metadata:
            return None
        return {"ddimctl": json.dumps(image_text(self._plan, self._checkpoint, i))}

    def _captions(self, count: int) -> list[str] | None:
        """What the grid says under its first images."""
        if self._layout.captions is not None:
            return list(self._layout.captions[:count])
        if self._plan.labels is None:
            return None
        return [self._checkpoint.class_name(label) for label in self._plan.labels[:count]]

    def _image_path(self, i: int) -> Path:
        name = f"{self._plan.names[i]:0{self._layout.digits}d}.{self._request.format}"
        return self._path_of("images") / name

    def _path_of(self, kind: str) -> Path:
        if kind == "images":
            return self.out / self._layout.images
        if kind == "video":
            return self.out / f"video.{self._layout.video}"
        if kind == "trajectory" and self._request.format == "webp":
            return self.out / "trajectory.webp"
        return self.out / _NAMES[kind]


@contextmanager
def open_store(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    layout: Layout,
    recorded: dict[str, Any] | None,
) -> Iterator[SampleStore]:
    """The store of a run, its folder made and its manifest begun; waits for writes under way.

    recorded: the manifest to go on from. Raises RequestError when it is of another run.
    """
    begun = make_manifest(request, plan, checkpoint, layout, device)
    if recorded is not None:
        check_same_run(recorded, begun, layout)
    out = request.out or create_numbered_folder(Path("runs"), layout.command)
    images = out / layout.images
    make_folder(images if "images" in request.save else out)
    for folder in filter(Path.is_dir, (out, images)):
        clean_temporaries(folder)
    if request.force and recorded is None:
        _remove_earlier_run(out, layout)
    with BackgroundWriter() as writer:
        store = SampleStore(request, plan, checkpoint, device, layout, out, writer)
        if recorded is None:
            write_json(out / MANIFEST, begun)
        yield store


def _remove_earlier_run(out: Path, layout: Layout) -> None:
    """Take away what an earlier run would leave among the new one's files; strangers' files stay."""
    ours = re.compile(rf"\d{{{layout.digits},}}\.(png|webp)")
    old = [path for path in (out / layout.images).glob("*") if ours.fullmatch(path.name)]
    old += [out / name for name in (*_NAMES.values(), _SAMPLES_PART)]
    old += [out / f"video.{format}" for format in VIDEOS]
    for path in old:
        path.unlink(missing_ok=True)


def _mapped(path: Path, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Float32 (count, *shape) backed by a file, made if it is not there."""
    size = count * math.prod(shape)
    with storage_errors(path):
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
            with path.open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, 4 * size)
        return torch.from_file(str(path), shared=True, size=size).view(count, *shape)
