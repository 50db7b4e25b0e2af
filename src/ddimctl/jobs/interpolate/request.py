"""The options of `ddimctl interpolate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from ddimctl.errors import RequestError
from ddimctl.files.pictures.frame_rate import MAX_FPS, MIN_FPS
from ddimctl.jobs import parse
from ddimctl.jobs.option import argument, flag
from ddimctl.jobs.requests import (
    COLUMNS,
    MAIN,
    NO_METADATA,
    OUTPUT,
    SCALE,
    SIZE,
    YES,
    CheckpointOptions,
    DeviceOptions,
    OutputOptions,
    PromptOptions,
    StepOptions,
)

PATH: Final = "Path"
DEFAULT_FRAMES: Final = 16

PathKind = Literal["slerp", "lerp"]
VideoFormat = Literal["gif", "webp", "mp4"]


@dataclass(frozen=True)
class EndOptions:
    """What is between the ends. seeds: inputs after the files.  classes: one, of all frames."""

    seeds: Annotated[
        tuple[int, ...],
        flag(
            "--seeds",
            "Seeds of noise to interpolate between, after the files; such as 3,9.",
            MAIN,
            metavar="LIST",
            parse=parse.parse_seeds,
        ),
    ] = ()
    classes: Annotated[
        tuple[str, ...] | None,
        flag(
            "--class",
            "Class name or index, for all frames.",
            MAIN,
            metavar="NAME",
            default="the inputs' own, if they agree",
            parse=parse.parse_classes,
        ),
    ] = None
    size: Annotated[tuple[int, int] | None, SIZE] = None
    yes: Annotated[bool, YES] = False


@dataclass(frozen=True)
class TourOptions:
    """The way through the inputs. frames: in all, every input included; None is 16.

    grid: (rows, columns) between four inputs instead.  loop: back to the first input.
    """

    frames: Annotated[
        int | None,
        flag(
            "--frames",
            "Number of frames, including the inputs; up to 9999.",
            MAIN,
            low=2,
            high=9999,
            metavar="N",
            default=str(DEFAULT_FRAMES),
        ),
    ] = None
    path: Annotated[
        PathKind,
        flag("--path", "Interpolation: spherical (slerp) or linear (lerp).", PATH),
    ] = "slerp"
    loop: Annotated[bool, flag("--loop", "End the path at the first input again.", PATH)] = False
    grid: Annotated[
        tuple[int, int] | None,
        flag(
            "--grid",
            "Interpolate a grid between four corner inputs.",
            PATH,
            metavar="ROWSxCOLUMNS",
            parse=parse.parse_size,
        ),
    ] = None

    @property
    def count(self) -> int:
        """How many frames there are."""
        rows, columns = self.grid or (1, self.frames or DEFAULT_FRAMES)
        return rows * columns


@dataclass(frozen=True)
class FrameOutputOptions(OutputOptions):
    """What is made of the frames. video: of fps frames a second, inputs held for some seconds."""

    video: Annotated[
        VideoFormat | None,
        flag("--video", "Also write a video of the frames; mp4 needs the extra 'video'.", OUTPUT),
    ] = None
    fps: Annotated[
        float,
        flag("--fps", "Frames per second.", OUTPUT, low=MIN_FPS, high=MAX_FPS, metavar="F"),
    ] = 12.0
    hold: Annotated[
        float,
        flag(
            "--hold",
            "Seconds that each input stays in the video.",
            OUTPUT,
            low=0,
            high=60,
            metavar="SECONDS",
        ),
    ] = 0.0
    scale: Annotated[int | None, SCALE] = None
    columns: Annotated[int | None, COLUMNS] = None
    no_metadata: Annotated[bool, NO_METADATA] = False


@dataclass(frozen=True)
class InterpolateRequest:
    """What to interpolate between, and how. files: latent files and input images, in order."""

    files: Annotated[
        tuple[Path, ...],
        argument(
            "FILE",
            "Latent files (.pt, .safetensors; all their latents) and input images, in order.",
        ),
    ] = ()
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    ends: EndOptions = field(default_factory=EndOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    tour: TourOptions = field(default_factory=TourOptions)
    sampler: StepOptions = field(default_factory=StepOptions)
    output: FrameOutputOptions = field(default_factory=FrameOutputOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)

    def __post_init__(self) -> None:
        if not self.files and not self.ends.seeds:
            raise RequestError(
                "there is nothing to interpolate between.",
                "Name two latents or images, or seeds with --seeds 3,9.",
            )
        if self.tour.grid is None:
            return
        given = {
            "--frames": self.tour.frames is not None,
            "--loop": self.tour.loop,
            "--video": self.output.video is not None,
        }
        for option in (name for name, present in given.items() if present):
            raise RequestError(
                f"{option} does not apply to --grid.", f"Leave {option} or --grid out."
            )
