"""Where in its folder a sampling run puts each thing."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ddimctl.files.own_output import MANIFEST, remove_files
from ddimctl.files.pictures.images import is_undamaged
from ddimctl.files.pictures.video import FORMATS as VIDEOS
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.reader import read_tensor_file

_NAMES: Final = {
    "grid": "grid.png",
    "latents": "latents.pt",
    "samples": "samples.pt",
    "trajectory": "trajectory.gif",
    "manifest": MANIFEST,
}


@dataclass(frozen=True)
class Layout:
    """What a command calls the things in its output folder, and what it adds to them.

    command: in the manifest, and in the names of numbered folders.
    images: the images' folder; their numbers have at least that many digits.
    captions: one per image, for the grid; None for the classes' names.
    video, fps: gif, webp or mp4 of all images in their order; holds: seconds that images stay in it.
    details: more entries of the manifest; records: more entries of each image in it.
    """

    command: str
    images: str
    digits: int
    captions: tuple[str, ...] | None = None
    video: str | None = None
    fps: float = 12.0
    holds: Mapping[int, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()


SAMPLES: Final = Layout("sample", "images", 6)
FRAMES: Final = Layout("interpolate", "frames", 4)


@dataclass(frozen=True)
class OutputPaths:
    """The paths in a folder for images of a format; what is half done is in dotfiles."""

    out: Path
    layout: Layout
    format: str

    def of(self, kind: str) -> Path:
        """The file or folder of one kind of output."""
        if kind == "images":
            return self.out / self.layout.images
        if kind == "video":
            return self.out / f"video.{self.layout.video}"
        if kind == "trajectory" and self.format == "webp":
            return self.out / "trajectory.webp"
        return self.out / _NAMES[kind]

    def image(self, name: int) -> Path:
        """The image with that number."""
        return self.of("images") / f"{name:0{self.layout.digits}d}.{self.format}"

    @property
    def samples_part(self) -> Path:
        """The float samples while they are made."""
        return self.out / ".samples.part"

    @property
    def x_0_part(self) -> Path:
        """The x_0 that samples are decoded from, while they are made."""
        return self.out / ".x_0.part"

    @property
    def samples_done(self) -> Path:
        """A byte for each image: whether its samples are in samples_part."""
        return self.out / ".samples.done"

    @property
    def latents_part(self) -> Path:
        """The latents while they are drawn."""
        return self.out / ".latents.part"

    def smaller_part(self, rank: int) -> Path:
        """Where a process that is not the first notes its smaller batches."""
        return self.out / f".smaller-{rank}.json"

    def smaller_parts(self) -> list[Path]:
        """Those that there are."""
        return sorted(self.out.glob(".smaller-*.json"))

    def remove_parts(self) -> None:
        """Take away what was half done."""
        remove_files(
            self.out, [self.samples_part, self.x_0_part, self.samples_done, self.latents_part]
        )
        self.remove_smaller_parts()

    def remove_smaller_parts(self) -> None:
        """Take away what other processes noted for the first."""
        remove_files(self.out, self.smaller_parts())

    def remove_earlier_run(self) -> None:
        """Take away what an earlier run would leave among a new one's files; strangers' files stay."""
        ours = re.compile(rf"\d{{{self.layout.digits},}}\.(png|webp)")
        old = [path for path in self.of("images").glob("*") if ours.fullmatch(path.name)]
        old += [self.out / name for name in (*_NAMES.values(), "trajectory.webp")]
        old += [self.out / f"video.{format}" for format in VIDEOS]
        remove_files(self.out, old)

    def bytes_taken(self) -> int:
        """How much is in the folder already."""
        folders = [folder for folder in (self.out, self.of("images")) if folder.is_dir()]
        files = [path for folder in folders for path in folder.iterdir() if path.is_file()]
        return sum(path.stat().st_size for path in files)


def is_whole(path: Path) -> bool:
    """Whether one of a run's outputs is there and, where its format can tell, undamaged."""
    if path.suffix in (".png", ".gif", ".webp"):
        return is_undamaged(path)
    if path.suffix == ".pt":
        try:
            read_tensor_file(path)  # which compares its checksums
        except (Refused, OSError):
            return False
    return path.exists()


def bytes_needed(save: Iterable[str], count: int, shape: Sequence[int]) -> int:
    """What images of that shape take on the disk at least.

    Latents and samples take their size, and once more while they get their final name; images
    are rarely smaller than a quarter of their pixels.
    """
    numbers = count * math.prod(shape)
    floats = sum(kind in save for kind in ("latents", "samples"))
    return 4 * numbers * (floats + 1 if floats else 0) + ("images" in save) * numbers // 4
