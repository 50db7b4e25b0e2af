"""The output folder of a sampling run: pictures as they come, then grid, latents and manifest."""

import json
import math
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
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
from ddimctl.jobs.records import image_text, latents_metadata, sha256_hex
from ddimctl.jobs.sampling_plan import Plan, SampleRequest

SAVES: Final = ("grid", "images", "latents", "samples", "trajectory")
TRAJECTORY_IMAGES: Final = 16
TRAJECTORY_FRAMES: Final = 60
_SAMPLES_PART: Final = ".samples.part"
_LATENTS_PART: Final = ".latents.part"
_ROWS: Final = 64  # images whose x_T is drawn at once
_NAMES: Final = {
    "grid": "grid.png",
    "images": "images",
    "latents": "latents.pt",
    "samples": "samples.pt",
    "trajectory": "trajectory.gif",
    "manifest": "manifest.json",
}
_OURS: Final = re.compile(r"\d{6,}\.(png|webp)")


def read_manifest(request: SampleRequest) -> dict[str, Any] | None:
    """The manifest of the run that request.out already holds, when it is to be resumed.

    Raises RequestError where something would be overwritten, DataError for a damaged manifest.
    """
    if request.out is None:
        if request.resume:
            raise RequestError("--resume needs the folder to go on in.", "Name it with --out.")
        return None
    path = request.out / "manifest.json"
    if request.out.exists() and not request.out.is_dir():
        raise RequestError(f"--out {request.out} is a file.", "Name a folder.")
    if not request.out.exists() or request.force:
        return None
    if request.resume and path.exists():
        try:
            manifest = json.loads(path.read_text("utf-8"))
            if manifest["command"] == "sample" and isinstance(manifest["settings"], dict):
                return dict(manifest)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise DataError(f"{path} is not the manifest of a sampling run.", "Begin with --force.")
    if any(not entry.name.startswith(".") for entry in request.out.iterdir()):
        raise RequestError(
            f"{request.out} is not empty.",
            "Go on with --resume, write over it with --force, or name another --out.",
        )
    return None


class SampleStore:
    """Where a run's images go. Use open_store, which waits for writes that are under way."""

    def __init__(
        self,
        request: SampleRequest,
        plan: Plan,
        checkpoint: Checkpoint,
        device: str,
        out: Path,
        writer: BackgroundWriter,
    ) -> None:
        self.out = out
        self._request, self._plan, self._checkpoint = request, plan, checkpoint
        self._device, self._writer = device, writer
        self._digests: dict[int, str] = {}
        self._pixels: dict[int, Tensor] = {}
        self._frames: dict[int, list[Tensor]] = {}
        count, last = len(plan.tau), len(plan.tau) - 1
        shown = min(count, TRAJECTORY_FRAMES)
        self._shown_steps = {round(i * last / max(shown - 1, 1)) for i in range(shown)}
        self._samples, self._begun = None, True
        if "samples" in request.save:  # mapped: a long run keeps them on disk, also for a resume
            self._begun = (out / _SAMPLES_PART).exists()
            self._samples = _mapped(out / _SAMPLES_PART, len(plan.seeds), plan.shape)

    def missing_groups(self) -> Iterator[range]:
        """The batch groups of which anything is not yet on disk."""
        count, size = len(self._plan.seeds), self._plan.batch_size
        trajectory_missing = (
            "trajectory" in self._request.save and not self._path_of("trajectory").exists()
        )
        for start in range(0, count, size):
            group = range(start, min(start + size, count))
            stored = (
                self._begun
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
        if self._samples is not None:
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
            sync_files([self._image_path(i) for i in range(len(self._plan.seeds))])
        if "grid" in save:
            self._write_grid()
        if "trajectory" in save and self._frames:
            write_bytes(self._path_of("trajectory"), self._animation())
        metadata = latents_metadata(self._plan, self._checkpoint)
        if "latents" in save:
            self._write_latents(metadata)
        if self._samples is not None:
            save_samples(self._path_of("samples"), self._samples, metadata)
            (self.out / _SAMPLES_PART).unlink(missing_ok=True)
        write_json(self._path_of("manifest"), self.manifest(complete=True))

    def outputs(self) -> dict[str, Path]:
        """Every output's path by its kind."""
        return {kind: self._path_of(kind) for kind in (*self._request.save, "manifest")}

    def is_complete(self, recorded: dict[str, Any] | None) -> bool:
        """Whether the recorded run had ended and all that it made is still there."""
        if recorded is None or not recorded.get("complete"):
            return False
        images = range(len(self._plan.seeds)) if "images" in self._request.save else ()
        paths = [*self.outputs().values(), *map(self._image_path, images)]
        return all(path.exists() for path in paths)

    def manifest(self, complete: bool) -> dict[str, Any]:
        """What manifest.json says: every setting, the versions, and each image with its sha256."""
        return {
            "format_version": 1,
            "command": "sample",
            "complete": complete,
            "ddimctl": version("ddimctl"),
            "checkpoint": self._checkpoint.provenance.record(),
            "settings": self._plan.settings,
            "schedule": self._checkpoint.schedule.settings,
            "prediction": self._checkpoint.prediction,
            "save": list(self._request.save),
            "format": self._request.format,
            "device": self._device,
            "threads": torch.get_num_threads(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "diffusers", "pillow")},
            },
            "images": [self._image_record(i, complete) for i in range(len(self._plan.seeds))],
        }

    def _image_record(self, i: int, complete: bool) -> dict[str, Any]:
        record: dict[str, Any] = {"seed": self._plan.seeds[i]}
        if self._plan.labels is not None:
            record["label"] = self._plan.labels[i]
            record["class"] = self._class_name(i)
        if "images" in self._request.save:
            path = self._image_path(i)
            record["file"] = f"images/{path.name}"
            if complete:
                record["sha256"] = self._digests.get(i) or sha256_hex(path.read_bytes())
        return record

    def _write_latents(self, metadata: dict[str, Any]) -> None:
        part = self.out / _LATENTS_PART
        count = len(self._plan.seeds)
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
        count = min(len(self._plan.seeds), GRID_LIMIT)
        pixels = [
            self._pixels[i]
            if i in self._pixels
            else picture_pixels(read_picture(self._image_path(i), self._plan.shape[0]))
            for i in range(count)
        ]
        grid = make_grid(
            torch.stack(pixels), self._request.columns, self._request.scale, self._names(count)
        )
        write_bytes(self._path_of("grid"), encode_picture(grid, "png", self._text(None)))

    def _animation(self) -> bytes:
        order = sorted(self._frames)
        frames = [
            make_grid(
                torch.stack([self._frames[i][k] for i in order]),
                self._request.columns,
                self._request.scale,
                self._names(len(order)),
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

    def _names(self, count: int) -> list[str] | None:
        return None if self._plan.labels is None else [self._class_name(i) for i in range(count)]

    def _class_name(self, i: int) -> str:
        return self._checkpoint.class_name((self._plan.labels or ())[i])

    def _image_path(self, i: int) -> Path:
        return self.out / "images" / f"{self._plan.names[i]:06d}.{self._request.format}"

    def _path_of(self, kind: str) -> Path:
        name = _NAMES[kind]
        if kind == "trajectory" and self._request.format == "webp":
            name = "trajectory.webp"
        return self.out / name


@contextmanager
def open_store(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: str,
    recorded: dict[str, Any] | None,
) -> Iterator[SampleStore]:
    """The store of a run, its folder made and its manifest begun; waits for writes under way.

    recorded: the manifest to go on from. Raises RequestError when it is of another run.
    """
    out = request.out or create_numbered_folder(Path("runs"), "sample")
    images = out / "images"
    make_folder(images if "images" in request.save else out)
    for folder in filter(Path.is_dir, (out, images)):
        clean_temporaries(folder)
    if request.force:
        _remove_earlier_run(out)
    with BackgroundWriter() as writer:
        store = SampleStore(request, plan, checkpoint, device, out, writer)
        if recorded is not None:
            _check_same_run(recorded, store.manifest(complete=False))
        else:
            write_json(out / "manifest.json", store.manifest(complete=False))
        yield store


def _check_same_run(recorded: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key} was {_short(recorded.get(part, {}).get(key))}, is {_short(value)}"
        for part in ("checkpoint", "settings")
        for key, value in now[part].items()
        if recorded.get(part, {}).get(key) != value
    ]
    changed += [f"{key} differs" for key in ("save", "format") if recorded.get(key) != now[key]]
    who = [
        [(image.get("seed"), image.get("label")) for image in manifest["images"]]
        for manifest in (recorded, now)
    ]
    if who[0] != who[1]:
        changed.append("the seeds or classes differ")
    if changed:
        raise RequestError(
            f"--resume: not the run that was begun: {'; '.join(changed)}.",
            "Repeat the first command, or begin again with --force.",
        )


def _remove_earlier_run(out: Path) -> None:
    """Take away what an earlier run would leave among the new one's files; strangers' files stay."""
    old = [path for path in (out / "images").glob("*") if _OURS.fullmatch(path.name)]
    old += [out / name for name in (*_NAMES.values(), _SAMPLES_PART) if name != "images"]
    for path in old:
        path.unlink(missing_ok=True)


def _mapped(path: Path, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Float32 (count, *shape) backed by a file, made if it is not there."""
    size = count * math.prod(shape)
    with storage_errors(path):
        return torch.from_file(str(path), shared=True, size=size).view(count, *shape)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
