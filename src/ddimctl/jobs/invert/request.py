"""The options of `ddimctl invert` and `ddimctl reconstruct`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from ddimctl.jobs import parse
from ddimctl.jobs.option import above_zero, argument, flag
from ddimctl.jobs.requests import (
    DEVICE,
    DRY_RUN,
    FORCE,
    GUIDANCE_RESCALE,
    IMAGES,
    MAIN,
    OUT,
    OUTPUT,
    PLOT_FORMAT,
    RESUME,
    SIZE,
    TIMESTEPS_HELP,
    CheckpointOptions,
    ComputeOptions,
    FixedKind,
    PlotFormat,
    PromptOptions,
    check_steps,
)

INVERSION: Final = "Inversion"
DEFAULT_STEPS: Final = 50

Method = Literal["exact", "fixed-point", "naive"]
Fit = Literal["crop", "pad", "stretch"]
InversionPrecision = Literal["fp32", "bf16", "fp16"]

_TOLERANCE: Final = flag(
    "--tolerance",
    "Largest residual of an inverted step; one level of 255 is 0.008.",
    INVERSION,
    check=above_zero,
    metavar="X",
)


@dataclass(frozen=True)
class InversionDeviceOptions(ComputeOptions):
    """What computes; exact inversion is in fp32."""

    precision: Annotated[
        InversionPrecision,
        flag("--precision", "Compute precision; exact inversion needs fp32.", DEVICE),
    ] = "fp32"


@dataclass(frozen=True)
class DatasetImageOptions:
    """How the images of a data set are prepared. classes: one name or index; None is the null class."""

    size: Annotated[tuple[int, int] | None, SIZE] = None
    classes: Annotated[
        tuple[str, ...] | None,
        flag(
            "--class",
            "Class name or index of the input images.",
            MAIN,
            metavar="NAME",
            default="the null class",
            parse=parse.parse_classes,
        ),
    ] = None


@dataclass(frozen=True)
class InputImageOptions(DatasetImageOptions):
    """And of input images that need not be of one shape."""

    fit: Annotated[
        Fit,
        flag(
            "--fit",
            "Method to fit an input image of another shape: crop, pad or stretch.",
            IMAGES,
        ),
    ] = "crop"


@dataclass(frozen=True)
class InversionOptions:
    """How images are inverted. timesteps: as StepOptions'."""

    steps: Annotated[
        int | None,
        flag(
            "--steps",
            "Number of sampling steps to invert; more steps are more accurate.",
            MAIN,
            low=1,
            metavar="S",
            default="50, or the length of the --tau list",
        ),
    ] = None
    timesteps: Annotated[
        str | tuple[int, ...] | None,
        flag(
            "--tau",
            TIMESTEPS_HELP.format(auto=""),
            INVERSION,
            default="linspace",
            metavar="KIND|LIST",
            parse=parse.parse_timesteps,
            words=get_args(FixedKind),
        ),
    ] = None
    guidance: Annotated[
        float | None,
        flag(
            "--guidance",
            "Guidance scale; decode with the same one. More than 1 spoils edits.",
            INVERSION,
            metavar="W",
            default="1",
        ),
    ] = None
    guidance_rescale: Annotated[float | None, GUIDANCE_RESCALE] = None
    method: Annotated[
        Method,
        flag(
            "--method",
            "Inversion method: exact (solved to --tolerance), fixed-point (plain "
            "iteration), or naive (one evaluation).",
            INVERSION,
        ),
    ] = "exact"
    tolerance: Annotated[float, _TOLERANCE] = 1e-6

    def __post_init__(self) -> None:
        check_steps(self.steps, self.timesteps)


@dataclass(frozen=True)
class InversionOutputOptions:
    """Where latents and comparisons go. out None: the current folder."""

    out: Annotated[
        Path | None,
        flag(
            "--out -o",
            "Output folder, for NAME.pt and NAME.inversion.png.",
            MAIN,
            metavar="DIR",
            default="the current folder",
        ),
    ] = None
    resume: Annotated[bool, RESUME] = False
    force: Annotated[bool, flag("--force", "Overwrite existing files.", OUTPUT)] = False
    dry_run: Annotated[bool, DRY_RUN] = False


@dataclass(frozen=True)
class InvertRequest:
    """What to invert and how. input images: files and folders."""

    inputs: Annotated[
        tuple[Path, ...],
        argument("IMAGE|DIR", "Input images, or folders of images."),
    ]
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    images: InputImageOptions = field(default_factory=InputImageOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    inversion: InversionOptions = field(default_factory=InversionOptions)
    output: InversionOutputOptions = field(default_factory=InversionOutputOptions)
    device: InversionDeviceOptions = field(default_factory=InversionDeviceOptions)


@dataclass(frozen=True)
class ReconstructionOptions:
    """How often, and in what, images are inverted and decoded.

    decode_steps: S of the decodes, each of every inversion; None is the inversion's own.
    limit: at most so many images.  holdout: only those that training with it keeps aside.
    """

    steps: Annotated[
        tuple[int, ...],
        flag(
            "--steps",
            "Numbers of steps to compare.",
            MAIN,
            metavar="LIST",
            parse=parse.parse_counts,
        ),
    ] = (10, 20, 50, 100)
    decode_steps: Annotated[
        tuple[int, ...] | None,
        flag(
            "--decode-steps",
            "Numbers of sampling steps to decode each latent with.",
            INVERSION,
            metavar="LIST",
            default="those of the inversion",
            parse=parse.parse_counts,
        ),
    ] = None
    timesteps: Annotated[
        FixedKind,
        flag(
            "--tau",
            "Timesteps to visit: linspace, trailing, uniform or quadratic.",
            INVERSION,
            metavar="KIND",
        ),
    ] = "linspace"
    methods: Annotated[
        tuple[Method, ...],
        flag(
            "--method",
            "Inversion methods: any of exact, fixed-point and naive.",
            INVERSION,
            metavar="LIST",
            parse=lambda text, option: parse.parse_choices(text, option, get_args(Method)),
        ),
    ] = ("exact", "naive")
    tolerance: Annotated[float, _TOLERANCE] = 1e-6
    limit: Annotated[
        int | None,
        flag(
            "--limit",
            "Largest number of images to use, drawn at random.",
            IMAGES,
            low=1,
            high=parse.MAX_IMAGES,
            metavar="N",
            default="all",
        ),
    ] = None
    holdout: Annotated[
        float | None,
        flag(
            "--holdout",
            "Use only the images that `train --holdout` with the same share holds out.",
            IMAGES,
            metavar="SHARE",
            parse=parse.parse_fraction,
        ),
    ] = None


@dataclass(frozen=True)
class TableOutputOptions:
    """Where the table goes. out None: the next numbered folder under runs/."""

    out: Annotated[Path | None, OUT] = None
    plot_format: Annotated[PlotFormat, PLOT_FORMAT] = "png"
    force: Annotated[bool, FORCE] = False
    dry_run: Annotated[bool, DRY_RUN] = False


@dataclass(frozen=True)
class ReconstructRequest:
    """What to reconstruct, and how often. data: a folder or a zip."""

    data: Annotated[Path, argument("DATA", "Folder or zip of images.")]
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    images: DatasetImageOptions = field(default_factory=DatasetImageOptions)
    reconstruction: ReconstructionOptions = field(default_factory=ReconstructionOptions)
    output: TableOutputOptions = field(default_factory=TableOutputOptions)
    device: InversionDeviceOptions = field(default_factory=InversionDeviceOptions)
