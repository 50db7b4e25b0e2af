"""The output folder of a sampling run: images as they come, then grid, latents and manifest."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError, StorageError
from ddimctl.files.atomic import (
    check_writable,
    clean_temporaries,
    make_folder,
    open_atomic,
    storage_errors,
    sync_files,
    write_bytes,
    write_json,
)
from ddimctl.files.background_writer import BackgroundWriter
from ddimctl.files.latents import save_samples
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.files.pictures.images import (
    encode_image,
    image_bytes,
    image_pixels,
    looks_whole,
    read_image,
    to_pil,
    to_uint8,
)
from ddimctl.files.pictures.video import write_video
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.sample.batches import (
    Group,
    batch_groups,
    bounded,
    dealt,
    halved,
    read_smaller,
    with_parts,
)
from ddimctl.jobs.sample.float_samples import FloatSamples, write_latents
from ddimctl.jobs.sample.folder import RunFolder
from ddimctl.jobs.sample.manifest import (
    check_same_run,
    image_record,
    image_text,
    latents_metadata,
    make_manifest,
    sha256_hex,
)
from ddimctl.jobs.sample.outputs import bytes_needed, is_whole
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.previews import (
    TRAJECTORY_IMAGES,
    Kept,
    draw_animation,
    draw_grid,
    make_captions,
    shown_images,
)
from ddimctl.runtime.distributed import Ranks

SAVES: Final = ("grid", "images", "latents", "samples", "trajectory")


class SampleStore:
    """Where a run's images go. Use open_store, which waits for writes that are under way."""

    def __init__(
        self,
        run: RunFolder,
        plan: Plan,
        checkpoint: Checkpoint,
        device: str,
        writer: BackgroundWriter,
        ranks: Ranks,
    ) -> None:
        self.paths = paths = run.paths
        self._outputs, self._layout, self._recorded = run.outputs, run.layout, run.recorded
        self._plan, self._checkpoint, self._device = plan, checkpoint, device
        self._writer, self._ranks = writer, ranks
        self._smaller = read_smaller((run.recorded or {}).get("smaller_batches", [])) or []
        self._stretch: range | None = None  # the images of this process, if there are others
        self._digests: dict[int, str] = {}
        self._samples, self._kept = FloatSamples(paths, plan, checkpoint), Kept()
        if not ranks.first:
            return
        if paths.smaller_parts():  # of processes that died with their run
            self._smaller = with_parts(self._smaller, paths.smaller_parts())
            write_json(paths.of("manifest"), self._manifest())
        paths.remove_smaller_parts()
        if not self._samples.whole:
            paths.remove_parts()

    @property
    def resumable(self) -> bool:
        """Whether a stopped run leaves anything that a resume can use."""
        return "images" in self._outputs.save or "samples" in self._outputs.save

    def all_missing_groups(self) -> list[Group] | None:
        """What all processes have to make, as the first one finds it; None in a complete run.

        Raises StorageError in a process that does not see the first one's folder.
        """
        ranks, found = self._ranks, list[Group]()
        complete = ranks.first and self.is_complete()
        if complete:
            self.paths.remove_parts()
        elif ranks.first:
            found = list(self.missing_groups())
            if "samples" in self._outputs.save:
                self._samples.make()
        complete, self._smaller, found = ranks.share((complete, self._smaller, found))
        if not (manifest := self.paths.of("manifest")).exists():
            raise StorageError(
                f"{manifest}, which process 0 wrote, is not there.",
                "All machines must reach the same --out, on a shared disk.",
            )
        return None if complete else found

    def take(self, groups: Sequence[Group]) -> list[Group]:
        """This process's share of what all have to make."""
        ranks = self._ranks
        mine = dealt(groups, ranks.rank, ranks.count)
        if ranks.count > 1 and mine:
            self._stretch = range(mine[0].images.start, mine[-1].images.stop)
        return mine

    def missing_groups(self, images: range | None = None) -> Iterator[Group]:
        """The batch groups of which anything is not yet on disk, among those images or all."""
        again = "trajectory" in self._outputs.save and not is_whole(self.paths.of("trajectory"))
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
            mine = [each for each in self._smaller if stretch.start <= each.start <= stretch.stop]
            write_json(self.paths.smaller_part(self._ranks.rank), mine)
        return list(self.missing_groups(range(group.images.start, stretch.stop)))

    def shown(self, images: range, index: int) -> int:
        """Of how many of the images, its first, the animation shows the step with this index."""
        if "trajectory" not in self._outputs.save:
            return 0
        return shown_images(images, index, len(self._plan.timesteps))

    def keep_step(self, images: range, index: int, pixels: Tensor) -> None:
        """Remember the pixels (k, H, W, C) of the x_0 predicted in a step, of the k images shown."""
        self._kept.keep_step(images, index, pixels)

    def keep(
        self, images: range, pixels: Tensor, samples: Tensor, x_0: Tensor | None = None
    ) -> None:
        """Store a group's finished samples (n, C, H, W), their pixels (n, H, W, C), and the x_0 that
        an autoencoder decoded them from, all on the CPU; encoding happens elsewhere."""
        if "samples" in self._outputs.save:
            self._samples.keep(images, samples, x_0)
        for i, levels in zip(images, pixels, strict=True):
            if i < GRID_LIMIT:
                self._kept.pixels[i] = levels
            if "images" in self._outputs.save:
                self._writer.submit(self._write_image, i, levels)

    def check(self) -> None:
        """Raise the error of a write in the background, if one has failed."""
        self._writer.check()

    def wait(self) -> None:
        """Return when all that was kept is on disk."""
        self._writer.wait()

    def hand_over(self, meanwhile: Callable[[], None]) -> None:
        """After the last group of this process: leave all to the first one, and wait for the others.

        meanwhile: called while waiting; it may raise.
        """
        self.wait()
        pixels = {} if self.resumable else self._kept.pixels  # else they are read from the disk
        for other in self._ranks.gather(Kept(pixels, self._kept.frames), meanwhile):
            self._kept.take_over(other)

    def finish(self) -> None:
        """Write what the run ends with, the manifest last."""
        self._smaller = with_parts(self._smaller, self.paths.smaller_parts())
        save, plan = self._outputs.save, self._plan
        if "images" in save:
            sync_files([self._image_path(i) for i in range(plan.count)])
        self._draw()
        metadata = latents_metadata(plan, self._checkpoint)
        if "latents" in save:
            write_latents(self.paths, plan, metadata)
        if "samples" in save:
            more = {} if self._samples.latents is None else {"x_0": self._samples.latents}
            save_samples(self.paths.of("samples"), self._samples.values, metadata, more)
        images = [self._finished_record(i) for i in range(plan.count)]
        write_json(self.paths.of("manifest"), self._manifest(images))
        self.paths.remove_parts()

    def _draw(self) -> None:
        outputs, layout, paths = self._outputs, self._layout, self.paths
        captions = make_captions(self._plan, self._checkpoint, layout)
        everything = range(self._plan.count)
        if "grid" in outputs.save:
            first = list(map(self._image, everything[:GRID_LIMIT]))
            write_bytes(paths.of("grid"), draw_grid(first, outputs, captions, self._text(None)))
        if "trajectory" in outputs.save and self._kept.frames:
            path = paths.of("trajectory")
            with open_atomic(path) as file:
                draw_animation(file, self._kept.frames, outputs, captions, path.suffix[1:])
        if layout.video:
            with open_atomic(paths.of("video")) as file:
                write_video(
                    file, self._plan.count, self._image, layout.video, layout.fps, layout.holds
                )

    def outputs(self) -> dict[str, Path]:
        """Every output's path by its kind."""
        videos = ("video",) if self._layout.video else ()
        names = {"images": self._layout.images}
        kinds = (*self._outputs.save, *videos, "manifest")
        return {names.get(kind, kind): self.paths.of(kind) for kind in kinds}

    def is_complete(self) -> bool:
        """Whether the recorded run had ended and all that it made is still there, undamaged.

        Never with a video, which another request may want otherwise: it is made again.
        """
        recorded = self._recorded
        if recorded is None or not recorded.get("complete") or self._layout.video:
            return False
        images = range(self._plan.count) if "images" in self._outputs.save else ()
        return all(map(is_whole, self.outputs().values())) and all(map(self._is_recorded, images))

    def _is_recorded(self, i: int) -> bool:
        """Whether an image's file is that of the manifest; of a run that had ended, to the byte."""
        path, recorded = self._image_path(i), self._recorded or {}
        if not looks_whole(path):
            return False
        if not recorded.get("complete") or len(recorded["images"]) != self._plan.count:
            return True
        return bool(sha256_hex(image_bytes(path)) == recorded["images"][i].get("sha256"))

    def _is_stored(self, i: int) -> bool:
        save = self._outputs.save
        if "samples" in save and not self._samples.has(i):
            return False
        return self.resumable and ("images" not in save or self._is_recorded(i))

    def _manifest(self, images: list[JsonObject] | None = None) -> JsonObject:
        return make_manifest(
            self._outputs,
            self._plan,
            self._checkpoint,
            self._layout,
            self._device,
            images,
            [change for change in self._smaller if change.start < self._plan.count],
        )

    def _finished_record(self, i: int) -> JsonObject:
        record = image_record(self._plan, self._checkpoint, self._layout, i)
        if "images" in self._outputs.save:
            path = self._image_path(i)
            record["file"] = f"{path.parent.name}/{path.name}"
            with storage_errors(path):
                record["sha256"] = self._digests.get(i) or sha256_hex(path.read_bytes())
        return record

    def _write_image(self, i: int, pixels: Tensor) -> None:
        content = encode_image(to_pil(pixels), self._outputs.format, self._text(i))
        self._digests[i] = sha256_hex(content)
        write_bytes(self._image_path(i), content, sync=False)

    def _image(self, i: int) -> Tensor:
        """The pixels (H, W, C) of a finished image, from the disk where they were not kept."""
        if i in self._kept.pixels:
            return self._kept.pixels[i]
        if "images" not in self._outputs.save:
            return to_uint8(self._samples.values[i : i + 1])[0]
        return image_pixels(read_image(self._image_path(i), self._checkpoint.picture_shape[0]))

    def _text(self, i: int | None) -> dict[str, str] | None:
        """The text chunk of an image: one JSON object under the program's name."""
        if not self._outputs.metadata:
            return None
        return {"ddimctl": json.dumps(image_text(self._plan, self._checkpoint, i))}

    def _image_path(self, i: int) -> Path:
        return self.paths.image(self._plan.names[i])


def _begin_run(run: RunFolder, plan: Plan, checkpoint: Checkpoint, device: str) -> None:
    """Check that the run can continue, or begin it: its manifest before all else.

    Raises RequestError when the recorded run is another, StorageError also where space will clearly
    not do.
    """
    paths, save = run.paths, run.outputs.save
    begun = make_manifest(run.outputs, plan, checkpoint, run.layout, device)
    if run.recorded is not None:
        check_same_run(run.recorded, begun, run.layout)
    shape = (checkpoint.picture_shape[0], *plan.image_size)
    needed = bytes_needed(save, plan.count, shape)
    check_writable(paths.out, needed - paths.bytes_taken())
    if run.recorded is None:
        paths.remove_parts()
        if run.force:
            paths.remove_earlier_run()
        write_json(paths.of("manifest"), begun)  # before all else: without it nothing is resumed
    if "images" in save:
        make_folder(paths.of("images"))
        clean_temporaries(paths.of("images"))


@contextmanager
def open_store(
    run: RunFolder, plan: Plan, checkpoint: Checkpoint, device: str, ranks: Ranks
) -> Iterator[SampleStore]:
    """The store of a run, its manifest begun by the first process; waits for writes under way.

    Raises RequestError when the recorded run is another, StorageError also where space will clearly
    not do.
    """
    if "samples" in run.outputs.save and ranks.machines:
        raise RequestError(
            "--save: float samples can be collected on one machine only.",
            "Leave samples out, or use one machine.",
        )
    if ranks.first:
        _begin_run(run, plan, checkpoint, device)
    with BackgroundWriter(places=max(32, 2 * plan.batch_size)) as writer:
        yield SampleStore(run, plan, checkpoint, device, writer, ranks)
