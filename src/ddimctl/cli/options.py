"""Every option, declared once: its flags, unit, range and help, grouped as the help shows them.

The words of each Literal are those of the layer that implements them; a test compares the two.
Where None is a default, the help says what takes its place.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer
from typer import Argument, Option

from ddimctl.cli.parse import MAX_IMAGES

SAVED: Final = ("grid", "images", "latents", "samples", "trajectory")

_MODEL = "Checkpoint"
_METHOD = "Sampling"
_IMAGES = "Which images"
_OUTPUT = "Output"
_MACHINE = "Device"
_DATA = "Data"
_LEARNING = "Learning"
_RUN = "Run"
_OWN_CKPT = "$DDIMCTL_CKPT, else the bundled one"

Prediction = Literal["eps", "x_0", "v"]
ScheduleKind = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
Variance = Literal["eta", "large", "learned"]
Clip = Literal["none", "static", "dynamic"]
Weights = Literal["auto", "ema", "raw"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ImageFormat = Literal["png", "webp"]
Weighting = Literal["simple", "min-snr"]
Decay = Literal["cosine", "constant"]
SavedPrecision = Literal["fp32", "fp16"]
Channels = Literal["1", "3"]


def debugging() -> bool:
    """Whether errors come with their traceback: --debug, or DDIMCTL_DEBUG=1."""
    return os.environ.get("DDIMCTL_DEBUG", "0") not in ("", "0")


def _set_debug(value: bool) -> None:
    if value:
        os.environ["DDIMCTL_DEBUG"] = "1"  # processes that a job starts inherit it


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"ddimctl {version('ddimctl')}")
        raise typer.Exit


def _finite(value: Any) -> Any:
    """Option callback: floats include nan and inf, which no range check stops."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter("it must be a finite number.")
    return value


def _option(*flags: str, panel: str, text: str, **more: Any) -> Any:
    return Option(*flags, help=text, rich_help_panel=panel, **more)


# --- everywhere ---------------------------------------------------------------------------------

Version = Annotated[
    bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
]
Debug = Annotated[
    bool,
    Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error."),
]
Json = Annotated[bool, _option("--json", panel=_OUTPUT, text="Print the result as a JSON object.")]
Force = Annotated[bool, _option("--force", panel=_OUTPUT, text="Overwrite what is in --out.")]
Device = Annotated[
    str,
    _option(
        "--device", panel=_MACHINE, metavar="NAME", text="auto (CUDA if there), cpu, cuda, cuda:1."
    ),
]
Compute = Annotated[
    Precision | None,
    _option(
        "--precision",
        panel=_MACHINE,
        show_default="auto",
        text="Of the network; auto is bf16 on CUDA, else fp32.",
    ),
]
Compile = Annotated[
    bool, _option("--compile", panel=_MACHINE, text="torch.compile the network; pays in long runs.")
]

# --- which checkpoint ---------------------------------------------------------------------------

Ckpt = Annotated[
    str | None,
    _option(
        "--ckpt",
        panel=_MODEL,
        metavar="CKPT",
        show_default=_OWN_CKPT,
        text="A folder, a file or a hub id.",
    ),
]
CkptArgument = Annotated[
    str | None,
    Argument(metavar="CKPT", show_default=_OWN_CKPT, help="A folder, a file or a hub id."),
]
Revision = Annotated[
    str | None,
    _option("--revision", panel=_MODEL, metavar="REV", text="Branch, tag or commit of a hub id."),
]
Variant = Annotated[
    str | None,
    _option("--variant", panel=_MODEL, metavar="NAME", text="Files of this variant, such as fp16."),
]
WeightsOf = Annotated[
    Weights,
    _option("--weights", panel=_MODEL, text="Averaged or raw; auto takes the averaged if there."),
]

# --- sample: the method -------------------------------------------------------------------------

Steps = Annotated[
    int | None,
    _option(
        "--steps",
        panel=_METHOD,
        min=1,
        metavar="S",
        show_default="20, or as many as --tau lists",
        text="Network evaluations for each image.",
    ),
]
Tau = Annotated[
    str | None,
    _option(
        "--tau",
        panel=_METHOD,
        show_default="linspace",
        metavar="KIND|LIST",
        text="Visited timesteps: linspace, trailing, uniform, quadratic, a list such as 0,250,999, "
        "or a file of them.",
    ),
]
Eta = Annotated[
    float | None,
    _option(
        "--eta",
        panel=_METHOD,
        min=0,
        max=1,
        callback=_finite,
        show_default="0, or 1 with --variance large or learned",
        text="Noise of each step: 0 is DDIM, 1 is DDPM.",
    ),
]
VarianceOf = Annotated[
    Variance | None,
    _option(
        "--variance",
        panel=_METHOD,
        show_default="eta",
        text="Of that noise: by --eta, the paper's large one, or the network's own.",
    ),
]
ClipTo = Annotated[
    Clip | None,
    _option(
        "--clip",
        panel=_METHOD,
        show_default="none",
        text="Hold each step's predicted image in -1 ... 1.",
    ),
]
Guidance = Annotated[
    float | None,
    _option(
        "--guidance",
        panel=_METHOD,
        callback=_finite,
        metavar="W",
        show_default="1",
        text="Weight of classifier-free guidance; 1 is none.",
    ),
]

# --- sample: which images -----------------------------------------------------------------------

Seeds = Annotated[
    str | None,
    _option("--seeds", panel=_IMAGES, metavar="LIST", text="One image for each, such as 0-63,70."),
]
Number = Annotated[
    int | None,
    _option(
        "-n",
        "--num",
        panel=_IMAGES,
        min=1,
        max=MAX_IMAGES,
        metavar="N",
        show_default="16",
        text="That many images, with seeds from --seed on.",
    ),
]
Seed = Annotated[
    int | None,
    _option(
        "--seed",
        panel=_IMAGES,
        min=0,
        metavar="K",
        show_default="0",
        text="The first image's seed.",
    ),
]
Classes = Annotated[
    str | None,
    _option(
        "--class",
        panel=_IMAGES,
        metavar="LIST",
        show_default="drawn by seed",
        text="Class names or indices; a list is dealt out by seed.",
    ),
]
Latents = Annotated[
    Path | None,
    _option(
        "--latents",
        panel=_IMAGES,
        metavar="FILE",
        text="Decode these x_T instead of seeds, with the settings recorded in the file.",
    ),
]
Size = Annotated[
    str | None,
    _option(
        "--size",
        panel=_IMAGES,
        metavar="HxW",
        show_default="the checkpoint's",
        text="Pixels; one number is a square.",
    ),
]

# --- sample: output -----------------------------------------------------------------------------

Out = Annotated[
    Path | None,
    _option(
        "--out",
        "-o",
        panel=_OUTPUT,
        metavar="DIR",
        show_default="the next number in runs/",
        text="The folder to write.",
    ),
]
Save = Annotated[
    str, _option("--save", panel=_OUTPUT, metavar="LIST", text=f"Any of {', '.join(SAVED)}.")
]
Scale = Annotated[
    int | None,
    _option(
        "--scale",
        panel=_OUTPUT,
        min=1,
        max=64,
        metavar="K",
        show_default="so that one can see them",
        text="Enlarge the grid's images K times.",
    ),
]
Columns = Annotated[
    int | None,
    _option(
        "--columns",
        panel=_OUTPUT,
        min=1,
        metavar="N",
        show_default="nearly square",
        text="Images in a row of the grid.",
    ),
]
Format = Annotated[ImageFormat, _option("--format", panel=_OUTPUT, text="Of the pictures.")]
Resume = Annotated[
    bool,
    _option(
        "--resume", panel=_OUTPUT, text="Go on with the stopped run in --out, if there is one."
    ),
]
DryRun = Annotated[
    bool, _option("--dry-run", panel=_OUTPUT, text="Print what would be done, and do nothing.")
]
NoMetadata = Annotated[
    bool, _option("--no-metadata", panel=_OUTPUT, text="Leave the settings out of the pictures.")
]
BatchSize = Annotated[
    int | None,
    _option(
        "--batch-size",
        panel=_MACHINE,
        min=1,
        metavar="B",
        show_default="what suits the device",
        text="Images at a time.",
    ),
]
Deterministic = Annotated[
    bool, _option("--deterministic", panel=_MACHINE, text="Same bytes each time on CUDA; slower.")
]

# --- train --------------------------------------------------------------------------------------

Data = Annotated[
    Path,
    Argument(metavar="DATA", help="A folder or a zip of pictures: PNG, JPEG, WebP."),
]
Run = Annotated[
    Path,
    _option("--out", "-o", panel=_RUN, metavar="RUN", text="The run's folder, to write or go on."),
]
ImageSize = Annotated[
    str | None,
    _option(
        "--image-size",
        panel=_DATA,
        metavar="HxW",
        show_default="the pictures' own",
        text="Crop and resize to these pixels.",
    ),
]
ChannelCount = Annotated[Channels, _option("--channels", panel=_DATA, text="3 is RGB, 1 is gray.")]
Background = Annotated[
    str,
    _option(
        "--background",
        panel=_DATA,
        metavar="COLOUR",
        text="Under transparent pixels: black, white, #rrggbb or r,g,b.",
    ),
]
Flip = Annotated[bool, _option("--flip", panel=_DATA, text="Mirror half of the pictures.")]
ClassConditional = Annotated[
    bool, _option("--class-conditional", panel=_DATA, text="Folders are classes to be learned.")
]
LabelDropout = Annotated[
    str,
    _option(
        "--label-dropout",
        panel=_DATA,
        metavar="SHARE",
        text="Labels hidden, for --guidance; 0.1 or 10%.",
    ),
]
Holdout = Annotated[
    str,
    _option(
        "--holdout",
        panel=_DATA,
        metavar="SHARE",
        text="Pictures kept aside to measure the loss on.",
    ),
]
Strict = Annotated[bool, _option("--strict", panel=_DATA, text="Fail on an unreadable picture.")]

TrainSteps = Annotated[
    int, _option("--steps", panel=_LEARNING, min=1, metavar="N", text="Updates of the network.")
]
TrainBatch = Annotated[
    int, _option("--batch-size", panel=_LEARNING, min=1, metavar="B", text="Pictures in an update.")
]
GradAccum = Annotated[
    int,
    _option(
        "--grad-accum",
        panel=_LEARNING,
        min=1,
        metavar="N",
        text="Parts of a batch, to save memory.",
    ),
]
LearningRate = Annotated[
    float,
    _option(
        "--lr",
        panel=_LEARNING,
        min=0,
        callback=_finite,
        metavar="RATE",
        text="Learning rate (AdamW).",
    ),
]
Warmup = Annotated[
    int,
    _option("--warmup", panel=_LEARNING, min=0, metavar="N", text="Updates until --lr is reached."),
]
LearningRateDecay = Annotated[
    Decay, _option("--lr-decay", panel=_LEARNING, text="From then on to the last step.")
]
WeightDecay = Annotated[
    float,
    _option(
        "--weight-decay", panel=_LEARNING, min=0, callback=_finite, metavar="W", text="Of AdamW."
    ),
]
ClipGrad = Annotated[
    float,
    _option(
        "--clip-grad",
        panel=_LEARNING,
        min=0,
        callback=_finite,
        metavar="NORM",
        text="Largest gradient norm.",
    ),
]
Ema = Annotated[
    float,
    _option(
        "--ema",
        panel=_LEARNING,
        min=0,
        max=1,
        callback=_finite,
        metavar="DECAY",
        text="Of the weights' moving average, which is what is kept.",
    ),
]
TrainSeed = Annotated[
    int, _option("--seed", panel=_LEARNING, min=0, metavar="K", text="Of every random number.")
]
Architecture = Annotated[
    str | None,
    _option(
        "--model",
        panel=_LEARNING,
        metavar="NAME|FILE",
        show_default="small",
        text="tiny, small, cifar10, celebahq256, or the config.json of a UNet2DModel.",
    ),
]
Init = Annotated[
    str | None,
    _option("--init", panel=_LEARNING, metavar="CKPT", text="Start from this checkpoint instead."),
]
ScheduleOf = Annotated[
    ScheduleKind | None,
    _option(
        "--schedule",
        panel=_LEARNING,
        metavar="KIND",
        show_default="linear, or --init's",
        text="Of the noise: linear, scaled_linear, cosine, sigmoid.",
    ),
]
PredictionOf = Annotated[
    Prediction | None,
    _option(
        "--prediction",
        panel=_LEARNING,
        show_default="eps, or --init's",
        text="What the network is to say: the noise, the image, or v.",
    ),
]
LossWeighting = Annotated[
    Weighting, _option("--loss-weighting", panel=_LEARNING, text="Of the timesteps in the loss.")
]

TimeLimit = Annotated[
    str | None,
    _option("--time-limit", panel=_RUN, metavar="TIME", text="Stop after 90s, 30m, 2h30m, 1d."),
]
SaveEvery = Annotated[
    int, _option("--save-every", panel=_RUN, min=1, metavar="N", text="Steps between saved states.")
]
SampleEvery = Annotated[
    int,
    _option("--sample-every", panel=_RUN, min=1, metavar="N", text="Steps between sample grids."),
]
LogEvery = Annotated[
    int, _option("--log-every", panel=_RUN, min=1, metavar="N", text="Steps between metrics.")
]
SavedWeights = Annotated[
    SavedPrecision, _option("--weights-dtype", panel=_RUN, text="Of the checkpoint's file.")
]
ResumeTraining = Annotated[
    bool, _option("--resume", panel=_RUN, text="Go on from RUN's last state, if there is one.")
]
Restart = Annotated[bool, _option("--force", panel=_RUN, text="Begin again where RUN holds a run.")]
