"""The output folder of a sampling run: pictures as they come, then grid, latents and manifest."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError, StorageError
from ddimctl.files.animation import encode_animation
from ddimctl.files.atomic import (
    check_writable,
    clean_temporaries,
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
    looks_whole,
    picture_pixels,
    read_picture,
    to_uint8,
)
from ddimctl.files.latents import save_latents, save_samples
from ddimctl.files.mapped import is_mapped, mapped_tensor
from ddimctl.files.video import encode_video
from ddimctl.jobs.batch_groups import (
    Group,
    batch_groups,
    bounded,
    dealt,
    halved,
    read_smaller,
)
from ddimctl.jobs.output_paths import OutputPaths, bytes_needed
from ddimctl.jobs.records import image_text, latents_metadata, sha256_hex
from ddimctl.jobs.run_manifest import Layout, check_same_run, image_record, make_manifest
from ddimctl.jobs.sampling_plan import Plan, SampleRequest
from ddimctl.jobs.shared_work import read_pictures, share_work, with_parts, write_pictures
from ddimctl.runtime.ranks import Ranks

SAVES: Final = ("grid", "images", "latents", "samples", "trajectory")
TRAJECTORY_IMAGES: Final = 16
TRAJECTORY_FRAMES: Final = 60
_ROWS: Final = 64  # images whose x_T is drawn at once


class SampleStore:
    """Where a run's images go. Use open_store, which waits for writes that are under way."""

    def __init__(
        self,
        request: SampleRequest,
        plan: Plan,
        checkpoint: Checkpoint,
        device: str,
        layout: Layout,
        paths: OutputPaths,
        writer: BackgroundWriter,
        recorded: dict[str, Any] | None,
        ranks: Ranks,
    ) -> None:
        self.paths, self._ranks = paths, ranks
        self._request, self._plan, self._checkpoint = request, plan, checkpoint
        self._device, self._layout, self._writer = device, layout, writer
        self._smaller = read_smaller((recorded or {}).get("smaller_batches", [])) or []
        self._stretch: range | None = None  # the images of this process, if there are others
        self._digests: dict[int, str] = {}
        self._pixels: dict[int, Tensor] = {}
        self._frames: dict[int, list[Tensor]] = {}
        count, last = len(plan.tau), len(plan.tau) - 1
        shown = min(count, TRAJECTORY_FRAMES)
        self._shown_steps = {round(i * last / max(shown - 1, 1)) for i in range(shown)}
        if not ranks.first:
            return
        if paths.smaller_parts():  # of processes that died with their run
            self._smaller = with_parts(self._smaller, paths.smaller_parts())
            write_json(paths.of("manifest"), self._manifest())
        paths.remove_rank_parts()
        if not (
            is_mapped(paths.samples_part, (plan.count, *plan.shape))
            and is_mapped(paths.samples_done, (plan.count,), torch.uint8)
        ):
            paths.remove_parts()

    @cached_property
    def _samples(self) -> Tensor:
        """The float samples (N, C, H, W), on disk: a long run has many, and a resume needs them."""
        return mapped_tensor(self.paths.samples_part, (self._plan.count, *self._plan.shape))

    @cached_property
    def _samples_done(self) -> Tensor:
        """(N,), uint8: 1 for each of them that is there."""
        return mapped_tensor(self.paths.samples_done, (self._plan.count,), torch.uint8)

    @property
    def resumable(self) -> bool:
        """Whether a stopped run leaves anything that a resume can use."""
        return "images" in self._request.save or "samples" in self._request.save

    def all_missing_groups(self, recorded: dict[str, Any] | None) -> list[Group] | None:
        """What all processes have to make, as the first one finds it; None in a complete run.

        Raises StorageError in a process that does not see the first one's folder.
        """
        ranks, found = self._ranks, list[Group]()
        complete = ranks.first and self.is_complete(recorded)
        if complete:
            self.paths.remove_parts()
        elif ranks.first:
            found = list(self.missing_groups())
            if "samples" in self._request.save:  # made before others use them
                _ = self._samples, self._samples_done
            ranks.add("all steps", len(found) * len(self._plan.tau))
            ranks.add("images", self._plan.count - sum(len(group.images) for group in found))
        complete, self._smaller, groups = share_work(ranks, complete, self._smaller, found)
        if not self.paths.of("manifest").exists():
            raise StorageError(
                f"{self.paths.of('manifest')}, which process 0 wrote, is not there.",
                "All machines must reach the same --out, on a shared disk.",
            )
        return None if complete else groups

    def take(self, groups: Sequence[Group]) -> list[Group]:
        """This process's share of what all have to make."""
        ranks = self._ranks
        mine = dealt(groups, ranks.rank, ranks.count)
        if ranks.count > 1 and mine:
            self._stretch = range(mine[0].images.start, mine[-1].images.stop)
        return mine

    def missing_groups(self, images: range | None = None) -> Iterator[Group]:
        """The batch groups of which anything is not yet on disk, among those images or all."""
        again = "trajectory" in self._request.save and not self.paths.of("trajectory").exists()
        for group in batch_groups(self._plan.count, self._plan.batch_size, self._smaller):
            start = group.images.start
            if (images is None or start in images) and (
                (again and start < TRAJECTORY_IMAGES) or not all(map(self._is_stored, group.images))
            ):
                yield group

    def halve(self, group: Group) -> list[Group]:
        """Have the group, for which there was no memory, and those after it made in halves.

        Returns what this process then has to make. That is recorded before the first of their
        images is written: a resume makes the same.
        """
        stretch = self._stretch or range(self._plan.count)
        before, stop = self._smaller, None
        if self._stretch:
            stop = self._stretch.stop
            before = bounded(before, self._plan.batch_size, stop)
        self._smaller = halved(before, group, stop)
        if self._ranks.first:
            write_json(self.paths.of("manifest"), self._manifest())
        else:
            mine = [change for change in self._smaller if stretch.start <= change.start]
            mine = [change for change in mine if change.start <= stretch.stop]
            write_json(self.paths.smaller_part(self._ranks.rank), mine)
        return list(self.missing_groups(range(group.images.start, stretch.stop)))

    def shown(self, images: range, index: int) -> int:
        """Of how many of the images, its first, the animation shows the step with this index."""
        if "trajectory" not in self._request.save or index not in self._shown_steps:
            return 0
        return len(range(images.start, min(images.stop, TRAJECTORY_IMAGES)))

    def keep_step(self, images: range, index: int, pixels: Tensor) -> None:
        """Remember the pixels (k, H, W, C) of the x_0 predicted in a step, of the k images shown."""
        for i, picture in zip(images, pixels, strict=False):
            before = self._frames.get(i, []) if index else []  # or it is made once more
            self._frames[i] = [*before, picture]

    def keep(self, images: range, pixels: Tensor, x: Tensor) -> None:
        """Store a group's finished samples x (n, C, H, W) and their pixels (n, H, W, C), both on the
        CPU; encoding happens elsewhere."""
        if "samples" in self._request.save:
            rows = slice(images.start, images.stop)
            self._samples[rows] = x
            sync_files([self.paths.samples_part])
            self._samples_done[rows] = 1
        for i, picture in zip(images, pixels, strict=True):
            if i < GRID_LIMIT:
                self._pixels[i] = picture
            if "images" in self._request.save:
                self._writer.submit(self._write_image, i, picture)

    def check(self) -> None:
        """Raise the error of a write in the background, if one has failed."""
        self._writer.check()

    def wait(self) -> None:
        """Return when all that was kept is on disk."""
        self._writer.wait()

    def hand_over(self) -> None:
        """In a process that is not the first, after its last group: leave all to that one."""
        self.wait()
        pixels = {} if self.resumable else self._pixels  # else they are read from the disk
        if pixels or self._frames:
            write_pictures(self.paths.pictures_part(self._ranks.rank), pixels, self._frames)

    def finish(self) -> None:
        """Write what the run ends with, the manifest last."""
        self.wait()
        self._smaller = with_parts(self._smaller, self.paths.smaller_parts())
        for part in self.paths.pictures_parts():
            pixels, frames = read_pictures(part)
            self._pixels |= pixels
            self._frames |= frames
        save = self._request.save
        if "images" in save:
            sync_files([self._image_path(i) for i in range(self._plan.count)])
        if "grid" in save:
            self._write_grid()
        if "trajectory" in save and self._frames:
            write_bytes(self.paths.of("trajectory"), self._animation())
        metadata = latents_metadata(self._plan, self._checkpoint)
        if "latents" in save:
            self._write_latents(metadata)
        if "samples" in save:
            save_samples(self.paths.of("samples"), self._samples, metadata)
        if self._layout.video:
            write_bytes(self.paths.of("video"), self._video(self._layout.video))
        images = [self._finished_record(i) for i in range(self._plan.count)]
        write_json(self.paths.of("manifest"), self._manifest(images))
        self.paths.remove_parts()

    def outputs(self) -> dict[str, Path]:
        """Every output's path by its kind."""
        videos = ("video",) if self._layout.video else ()
        names = {"images": self._layout.images}
        kinds = (*self._request.save, *videos, "manifest")
        return {names.get(kind, kind): self.paths.of(kind) for kind in kinds}

    def is_complete(self, recorded: dict[str, Any] | None) -> bool:
        """Whether the recorded run had ended and all that it made is still there.

        Never with a video, which another request may want otherwise: it is made again.
        """
        if recorded is None or not recorded.get("complete") or self._layout.video:
            return False
        images = range(self._plan.count) if "images" in self._request.save else ()
        paths = [*self.outputs().values(), *map(self._image_path, images)]
        return all(path.exists() for path in paths)

    def _is_stored(self, i: int) -> bool:
        save = self._request.save
        if "samples" in save and not (
            self.paths.samples_done.exists() and bool(self._samples_done[i])
        ):
            return False
        return self.resumable and ("images" not in save or looks_whole(self._image_path(i)))

    def _manifest(self, images: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        return make_manifest(
            self._request,
            self._plan,
            self._checkpoint,
            self._layout,
            self._device,
            images,
            [change for change in self._smaller if change.start < self._plan.count],
        )

    def _finished_record(self, i: int) -> dict[str, Any]:
        record = image_record(self._plan, self._checkpoint, self._layout, i)
        if "images" in self._request.save:
            path = self._image_path(i)
            record["file"] = f"{path.parent.name}/{path.name}"
            with storage_errors(path):
                record["sha256"] = self._digests.get(i) or sha256_hex(path.read_bytes())
        return record

    def _write_latents(self, metadata: dict[str, Any]) -> None:
        part, count = self.paths.latents_part, self._plan.count
        x_T = mapped_tensor(part, (count, *self._plan.shape))
        for start in range(0, count, _ROWS):
            rows = range(start, min(start + _ROWS, count))
            x_T[rows.start : rows.stop] = self._plan.start(rows, torch.device("cpu"))
        save_latents(self.paths.of("latents"), x_T, metadata)
        with storage_errors(part):
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
        write_bytes(self.paths.of("grid"), encode_picture(grid, "png", self._text(None)))

    def _picture(self, i: int) -> Tensor:
        """The pixels (H, W, C) of a finished image, from the disk where they were not kept."""
        if i in self._pixels:
            return self._pixels[i]
        if "images" not in self._request.save:
            return to_uint8(self._samples[i : i + 1])[0]
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
        suffix = self.paths.of("trajectory").suffix[1:]
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
        return self.paths.image(self._plan.names[i])


@contextmanager
def open_store(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    layout: Layout,
    recorded: dict[str, Any] | None,
    ranks: Ranks,
) -> Iterator[SampleStore]:
    """The store of a run, its manifest begun by the first process; waits for writes under way.

    request.out: the run's own folder (run_folder). recorded: the manifest to go on from. Raises
    RequestError when it is of another run, StorageError also where space will clearly not do.
    """
    if "samples" in request.save and ranks.machines:
        raise RequestError(
            "--save: float samples are collected from the processes of one machine only.",
            "Leave samples out, or use one machine.",
        )
    paths = OutputPaths(request.out or Path(), layout, request.format)
    if ranks.first:
        _begin(request, plan, checkpoint, device, paths, recorded)
    with BackgroundWriter(places=max(32, 2 * plan.batch_size)) as writer:
        yield SampleStore(request, plan, checkpoint, device, layout, paths, writer, recorded, ranks)


def _begin(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    paths: OutputPaths,
    recorded: dict[str, Any] | None,
) -> None:
    """Check that the run can go on, or begin it: its manifest before all else."""
    layout = paths.layout
    begun = make_manifest(request, plan, checkpoint, layout, device)
    if recorded is not None:
        check_same_run(recorded, begun, layout)
    needed = bytes_needed(request.save, plan.count, plan.shape)
    check_writable(paths.out, needed - paths.bytes_taken())
    if recorded is None:
        paths.remove_parts()
        if request.force:
            paths.remove_earlier_run()
        write_json(paths.of("manifest"), begun)  # before all else: without it nothing is resumed
    if "images" in request.save:
        make_folder(paths.of("images"))
        clean_temporaries(paths.of("images"))
