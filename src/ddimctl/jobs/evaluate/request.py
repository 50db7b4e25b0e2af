"""The options of `ddimctl evaluate` and `ddimctl reference`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from ddimctl.errors import RequestError
from ddimctl.jobs import parse
from ddimctl.jobs.option import argument, flag
from ddimctl.jobs.requests import (
    CLASSES,
    DEVICE_NAME,
    MAIN,
    OUTPUT,
    PLOT_FORMAT,
    SAMPLER,
    SEED,
    SIZE,
    CheckpointOptions,
    DeviceOptions,
    Kind,
    OutputOptions,
    PlotFormat,
    PromptOptions,
    SolverOptions,
    check_last_seed,
    consecutive_seeds,
)

SCORES: Final = "Scores"
DEFAULT_COUNT: Final = 10_000
PRESET_COUNT: Final = 50_000
STEPS: Final = (10, 20, 50, 100)
ETAS: Final = (0.0, 0.2, 0.5, 1.0)

Metric = Literal["swd", "fid", "kid"]
AddedVariance = Literal["large", "learned"]
PresetName = Literal["paper-cifar10", "paper-celeba", "paper-bedroom", "paper-church"]

_BACKGROUND_HELP: Final = "Background colour of transparent images: black, white, #rrggbb or r,g,b."
_INCEPTION: Final = flag(
    "--inception",
    "File of torch-fidelity's Inception weights, for FID and KID.",
    SCORES,
    metavar="FILE",
    default="downloaded once",
)


def _metrics(text: str, option: str) -> tuple[str, ...]:
    return parse.parse_choices(text, option, get_args(Metric))


@dataclass(frozen=True)
class ScoringOptions:
    """What to compare with, and by which metrics: data, or a reference made of it.

    metrics, background None: the preset's or reference's, else swd, and the checkpoint's or black.
    """

    data: Annotated[
        Path | None,
        flag(
            "--data",
            "Folder or zip of images to compare with, cropped and resized as in `train`.",
            MAIN,
            metavar="DIR|ZIP",
            default="",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        flag(
            "--reference",
            "Reference file of `ddimctl reference` to compare with, instead of --data.",
            SCORES,
            metavar="FILE",
            default="",
        ),
    ] = None
    metrics: Annotated[
        tuple[str, ...] | None,
        flag(
            "--metric",
            "Metrics: swd (sliced Wasserstein distance), fid, kid (both need the extra 'fid').",
            MAIN,
            metavar="LIST",
            default="swd; with --preset all",
            parse=_metrics,
        ),
    ] = None
    inception: Annotated[Path | None, _INCEPTION] = None
    background: Annotated[
        tuple[int, int, int] | None,
        flag(
            "--background",
            _BACKGROUND_HELP,
            SCORES,
            metavar="COLOUR",
            default="the checkpoint's or reference's, else black",
            parse=parse.parse_colour,
        ),
    ] = None


def check_target(scoring: ScoringOptions) -> None:
    """Raise RequestError unless there is one thing to compare with."""
    if (scoring.data is None) == (scoring.reference is None):
        raise RequestError("exactly one reference is needed.", "Name --data or --reference.")


@dataclass(frozen=True)
class TableOptions:
    """The table's columns (steps), rows (etas, then variances) and repeats; None: the default's.

    preset: a table of the paper, for its timesteps, rows and numbers.  timesteps: a kind of them.
    """

    steps: Annotated[
        tuple[int, ...] | None,
        flag(
            "--steps",
            "Numbers of sampling steps, the columns of the table.",
            MAIN,
            metavar="LIST",
            default="10,20,50,100; with --tau auto 10,20,50",
            parse=parse.parse_counts,
        ),
    ] = None
    eta: Annotated[
        tuple[float, ...] | None,
        flag(
            "--eta",
            "Values of eta, the rows of the table.",
            MAIN,
            metavar="LIST",
            default="0,0.2,0.5,1",
            parse=lambda text, option: parse.parse_numbers(text, option, 0, 1),
        ),
    ] = None
    variance: Annotated[
        tuple[str, ...],
        flag(
            "--variance",
            "Variances to add as rows: large (the paper's) or learned (by the network).",
            SAMPLER,
            metavar="LIST",
            default="none; a preset's own",
            parse=lambda text, option: parse.parse_choices(text, option, get_args(AddedVariance)),
        ),
    ] = ()
    timesteps: Annotated[
        Kind | None,
        flag(
            "--tau",
            "Timesteps to visit: linspace, trailing, uniform, quadratic, or auto (optimised for "
            "the checkpoint, up to 50 steps).",
            SAMPLER,
            metavar="KIND",
            default="linspace; a preset's own",
        ),
    ] = None
    preset: Annotated[
        PresetName | None,
        flag(
            "--preset",
            "Table of the paper to reproduce, with its timesteps, steps and eta: paper-cifar10, "
            "paper-celeba, paper-bedroom, paper-church.",
            SAMPLER,
            metavar="NAME",
            default="",
        ),
    ] = None
    repeats: Annotated[
        int,
        flag(
            "--repeats",
            "Number of image sets with different seeds; the table shows mean and half the range.",
            SCORES,
            low=1,
            high=100,
            metavar="K",
        ),
    ] = 1
    plot_format: Annotated[PlotFormat, PLOT_FORMAT] = "png"

    def __post_init__(self) -> None:
        if self.preset and self.timesteps:
            raise RequestError(
                "--preset cannot be combined with --tau.", "Leave one of the two out."
            )


@dataclass(frozen=True)
class CellImageOptions:
    """Which images each cell has."""

    num: Annotated[
        int | None,
        flag(
            "-n --num",
            "Number of images per cell of the table; with --samples, number of images to score.",
            MAIN,
            low=2,
            high=parse.MAX_IMAGES,
            metavar="N",
            default="10000; with --preset 50000; with --samples all",
        ),
    ] = None
    seed: Annotated[int | None, SEED] = None
    classes: Annotated[tuple[str, ...] | None, CLASSES] = None
    size: Annotated[tuple[int, int] | None, SIZE] = None


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate, at which settings, and against what."""

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    images: CellImageOptions = field(default_factory=CellImageOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    table: TableOptions = field(default_factory=TableOptions)
    sampler: SolverOptions = field(default_factory=SolverOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    device: DeviceOptions = field(default_factory=DeviceOptions)

    def __post_init__(self) -> None:
        check_last_seed(self.images.seed or 0, self.count * self.table.repeats)

    @property
    def count(self) -> int:
        """How many images each cell has."""
        return self.images.num or (PRESET_COUNT if self.table.preset else DEFAULT_COUNT)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of the first repeat."""
        return consecutive_seeds(self.images.seed, self.count)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those to score by."""
        return self.scoring.metrics or (get_args(Metric) if self.table.preset else ("swd",))

    @property
    def steps(self) -> tuple[int, ...]:
        """The table's columns."""
        return self.table.steps or ((10, 20, 50) if self.table.timesteps == "auto" else STEPS)

    @property
    def etas(self) -> tuple[float, ...]:
        """The table's first rows, without a preset's."""
        deterministic = self.sampler.solver not in (None, "ddim")
        return self.table.eta or ((0.0,) if deterministic else ETAS)


@dataclass(frozen=True)
class ScoreRequest:
    """Which existing images to compare with what.

    samples: a folder or zip.  count: exactly so many of them, the first by name; None is all.
    size: (H, W) of both sides; None is the reference's, else the samples' own.
    channels: None is the reference's, else 3.
    """

    samples: Path
    scoring: ScoringOptions
    count: int | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    device: str = "auto"


CHANNELS: Final = flag(
    "--channels",
    "Colour channels: 3 is RGB, 1 is grey.",
    SCORES,
    metavar="1|3",
    parse=parse.parse_channels,
    words=("1", "3"),
)


@dataclass(frozen=True)
class ReferenceRequest:
    """What to keep of a data set, and where. out: a file; None is DATA.reference.safetensors."""

    data: Annotated[Path, argument("DATA", "Folder or zip of images.")]
    metrics: Annotated[
        tuple[str, ...],
        flag(
            "--metric",
            "Metrics to prepare: any of swd, fid and kid.",
            SCORES,
            metavar="LIST",
            parse=_metrics,
        ),
    ] = ("swd",)
    inception: Annotated[Path | None, _INCEPTION] = None
    size: Annotated[
        tuple[int, int] | None,
        flag(
            "--size",
            "Crop and resize the images to this size.",
            SCORES,
            metavar="HxW",
            default="the images' own",
            parse=parse.parse_size,
        ),
    ] = None
    channels: Annotated[int, CHANNELS] = 3
    background: Annotated[
        tuple[int, int, int],
        flag(
            "--background",
            _BACKGROUND_HELP,
            SCORES,
            metavar="COLOUR",
            default="black",
            parse=parse.parse_colour,
        ),
    ] = (0, 0, 0)
    out: Annotated[
        Path | None,
        flag(
            "--out -o", "Output file.", OUTPUT, metavar="FILE", default="DATA.reference.safetensors"
        ),
    ] = None
    force: Annotated[bool, flag("--force", "Overwrite existing output.", OUTPUT)] = False
    device: Annotated[str, DEVICE_NAME] = "auto"
