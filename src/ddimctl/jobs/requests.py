"""The option groups that commands share. Each option is declared once, as a field of a group.

A request is a frozen dataclass of groups; the command line is made from it, and the job receives
it. None means: the latents' own setting, else the default that the help names.
The words of each Literal are those of the layer that implements them; a test compares the two.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from ddimctl.errors import RequestError
from ddimctl.jobs import parse
from ddimctl.jobs.option import flag

MAIN: Final = "Main options"
CHECKPOINT: Final = "Checkpoint"
IMAGES: Final = "Images"
SAMPLER: Final = "Sampler"
OUTPUT: Final = "Output"
DEVICE: Final = "Device"

DEFAULT_COUNT: Final = 16
TEXT_GUIDANCE: Final = 7.5
"""The usual guidance scale of checkpoints that take text."""
MAX_BATCH: Final = 2**20  # images; nothing ends before a batch does

Weights = Literal["auto", "ema", "raw"]
SavedPrecision = Literal["fp32", "fp16"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Variance = Literal["eta", "large", "learned"]
Clip = Literal["none", "static", "dynamic"]
Solver = Literal["ddim", "ipndm", "dpm++2m"]
ImageFormat = Literal["png", "webp"]
FixedKind = Literal["linspace", "trailing", "uniform", "quadratic"]
Kind = Literal[FixedKind, "auto"]
Output = Literal["grid", "images", "latents", "samples", "trajectory"]

CKPT_HELP: Final = "Checkpoint: folder, file, hub id, or 'bundled'."
CKPT_DEFAULT: Final = "$DDIMCTL_CKPT, else the bundled one"


@dataclass(frozen=True)
class CheckpointName:
    """Which checkpoint. ckpt None: the latents', else the default."""

    ckpt: Annotated[
        str | None, flag("--ckpt", CKPT_HELP, MAIN, metavar="CKPT", default=CKPT_DEFAULT)
    ] = None


@dataclass(frozen=True)
class CheckpointFileOptions:
    """Which of a checkpoint's files, and what they do not say."""

    revision: Annotated[
        str | None,
        flag("--revision", "Branch, tag or commit of a hub id.", CHECKPOINT, metavar="REV"),
    ] = None
    variant: Annotated[
        str | None,
        flag(
            "--variant",
            "Variant of the weight files, such as fp16.",
            CHECKPOINT,
            metavar="NAME",
        ),
    ] = None
    weights: Annotated[
        Weights,
        flag(
            "--weights",
            "Weights to load: averaged (ema), raw, or auto (averaged if available).",
            CHECKPOINT,
        ),
    ] = "auto"
    vae: Annotated[
        str | None,
        flag(
            "--vae",
            "Autoencoder to use instead of the checkpoint's own: a folder or a hub id.",
            CHECKPOINT,
            metavar="VAE",
        ),
    ] = None
    lora: Annotated[
        tuple[str, ...],
        flag(
            "--lora",
            "LoRA file to add to the weights, with its scale; may be repeated.",
            CHECKPOINT,
            metavar="FILE[:SCALE]",
            parse=parse.parse_texts,
            repeat=True,
        ),
    ] = ()
    model_flags: Annotated[
        tuple[tuple[str, str], ...],
        flag(
            "--model-flag",
            "Network setting missing from the files, such as num_heads=4; may be repeated.",
            CHECKPOINT,
            metavar="NAME=VALUE",
            parse=parse.parse_flags,
            repeat=True,
        ),
    ] = ()
    allow_nonfinite: Annotated[
        bool, flag("--allow-nonfinite", "Accept weights that are NaN or infinite.", CHECKPOINT)
    ] = False


@dataclass(frozen=True)
class CheckpointOptions(CheckpointFileOptions, CheckpointName):  # the last base's fields come first
    """Which checkpoint, which of its files, and what they do not say."""


SIZE: Final = flag(
    "--size",
    "Image size in pixels; one number means a square.",
    IMAGES,
    metavar="HxW",
    default="the checkpoint's",
    parse=parse.parse_size,
)
CLASSES: Final = flag(
    "--class",
    "Class names or indices; with several, the seed chooses.",
    MAIN,
    metavar="LIST",
    default="drawn by seed",
    parse=parse.parse_classes,
)
SEED: Final = flag(
    "--seed",
    "Seed of the first image.",
    IMAGES,
    low=0,
    high=parse.MAX_SEED,
    metavar="K",
    default="0",
)
YES: Final = flag("--yes", "Allow downloading the recorded checkpoint from the hub.", CHECKPOINT)
NUM: Final = flag(
    "-n --num",
    "Number of images; seeds count from --seed.",
    MAIN,
    low=1,
    high=parse.MAX_IMAGES,
    metavar="N",
    default=str(DEFAULT_COUNT),
)


@dataclass(frozen=True)
class PromptOptions:
    """What images show, for checkpoints that take text. prompts: image i gets one by its seed."""

    prompts: Annotated[
        tuple[str, ...],
        flag(
            "--prompt",
            "Text that the image shows; with several, the seed chooses. May be repeated.",
            MAIN,
            metavar="TEXT",
            parse=parse.parse_prompts,
            repeat=True,
        ),
    ] = ()
    prompt_file: Annotated[
        Path | None,
        flag("--prompts", "File of prompts, one per line.", IMAGES, metavar="FILE"),
    ] = None
    negative: Annotated[
        str | None,
        flag(
            "--negative",
            "Text that guidance leads away from.",
            IMAGES,
            metavar="TEXT",
            parse=parse.parse_prompt,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.prompts and self.prompt_file is not None:
            raise RequestError(
                "--prompt and --prompts name prompts twice.", "Leave one of them out."
            )


@dataclass(frozen=True)
class ImageOptions:
    """Which images: of seeds, of consecutive seeds, or of latents.

    classes: names or indices; image i gets classes[seed mod length].  size: (H, W).
    """

    num: Annotated[int | None, NUM] = None
    seed: Annotated[int | None, SEED] = None
    seeds: Annotated[
        tuple[int, ...] | None,
        flag(
            "--seeds",
            "Seeds and ranges of seeds, such as 0-63,70; one image per seed.",
            IMAGES,
            metavar="LIST",
            parse=parse.parse_seeds,
        ),
    ] = None
    classes: Annotated[tuple[str, ...] | None, CLASSES] = None
    latents: Annotated[
        Path | None,
        flag(
            "--latents",
            "Latent file (x_T) to sample from instead of seeds, with its recorded settings.",
            IMAGES,
            metavar="FILE",
        ),
    ] = None
    size: Annotated[tuple[int, int] | None, SIZE] = None
    yes: Annotated[bool, YES] = False

    def __post_init__(self) -> None:
        if self.latents is not None and (self.seeds, self.num, self.seed) != (None, None, None):
            raise RequestError(
                "--latents cannot be combined with --seeds, -n or --seed.",
                "Leave one of the two out.",
            )
        if self.seeds is not None and (self.num, self.seed) != (None, None):
            raise RequestError(
                "--seeds cannot be combined with -n or --seed.",
                "Leave one of the two out.",
            )
        check_last_seed(self.seed or 0, self.num or DEFAULT_COUNT)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """One seed per image, without latents."""
        if self.seeds is not None:
            return self.seeds
        return consecutive_seeds(self.seed, self.num or DEFAULT_COUNT)


def consecutive_seeds(first: int | None, count: int) -> tuple[int, ...]:
    """That many seeds from the first (0) on."""
    return tuple(range(first or 0, (first or 0) + count))


def check_last_seed(first: int, count: int) -> None:
    """Raise RequestError where consecutive seeds pass the largest one."""
    if first + count - 1 > parse.MAX_SEED:
        raise RequestError(f"--seed {first}: seeds end at 2^63 - 1.", "Start at a smaller seed.")


STEPS: Final = flag(
    "--steps",
    "Number of sampling steps (network evaluations).",
    MAIN,
    low=1,
    metavar="S",
    default="20, or the length of the --tau list",
)
TIMESTEPS_HELP: Final = (
    "Timesteps to visit: linspace, trailing, uniform, quadratic, {auto}a list such as 0,250,999, "
    "or a file with a list."
)


GUIDANCE_RESCALE: Final = flag(
    "--guidance-rescale",
    "Share in which guided predictions get the deviation of unguided ones (0 to 1).",
    SAMPLER,
    low=0,
    high=1,
    metavar="X",
    default="0",
)


@dataclass(frozen=True)
class SolverOptions:
    """Of any deterministic sampling."""

    guidance: Annotated[
        float | None,
        flag(
            "--guidance",
            "Classifier-free guidance scale; 1 means none.",
            MAIN,
            metavar="W",
            default="1",
        ),
    ] = None
    guidance_rescale: Annotated[float | None, GUIDANCE_RESCALE] = None
    solver: Annotated[
        Solver | None,
        flag(
            "--solver",
            "Sampling method: ddim, or a higher-order solver (more accurate in few steps; eta 0 only).",
            SAMPLER,
            default="ddim",
        ),
    ] = None
    clip: Annotated[
        Clip | None,
        flag(
            "--clip",
            "Clipping of the predicted x_0 to [-1, 1] at each step: none, static, or dynamic (thresholding).",
            SAMPLER,
            default="none",
        ),
    ] = None


@dataclass(frozen=True)
class StepOptions(SolverOptions):
    """With one list of timesteps: a kind of them, "auto", or the timesteps themselves, ascending."""

    steps: Annotated[int | None, STEPS] = None
    timesteps: Annotated[
        str | tuple[int, ...] | None,
        flag(
            "--tau",
            TIMESTEPS_HELP.format(auto="auto (optimised for the checkpoint), "),
            SAMPLER,
            default="linspace",
            metavar="KIND|LIST",
            parse=parse.parse_timesteps,
            words=get_args(Kind),
        ),
    ] = None

    def __post_init__(self) -> None:
        check_steps(self.steps, self.timesteps)


def check_steps(steps: int | None, timesteps: str | tuple[int, ...] | None) -> None:
    """Raise RequestError where --steps contradicts a list of timesteps."""
    if isinstance(timesteps, tuple) and steps not in (None, len(timesteps)):
        raise RequestError(
            f"--steps {steps} contradicts --tau, which lists {len(timesteps)} timesteps.",
            "Leave --steps out.",
        )


@dataclass(frozen=True)
class SamplerOptions(StepOptions):
    """With noise in each step: eta of eq. 16, or another variance."""

    eta: Annotated[
        float | None,
        flag(
            "--eta",
            "Stochasticity: 0 is DDIM (deterministic), 1 is DDPM.",
            SAMPLER,
            low=0,
            high=1,
            metavar="X",
            default="0, or 1 with --variance large or learned",
        ),
    ] = None
    variance: Annotated[
        Variance | None,
        flag(
            "--variance",
            "Variance of the noise added in each step: eta (set by --eta), large (the paper's "
            "sigma-hat), or learned (by the network).",
            SAMPLER,
            default="eta",
        ),
    ] = None


OUT: Final = flag(
    "--out -o",
    "Output folder.",
    MAIN,
    metavar="DIR",
    default="the next numbered folder in runs/",
)
FORCE: Final = flag("--force", "Overwrite existing output.", OUTPUT)
DRY_RUN: Final = flag("--dry-run", "Print the settings of the run without running it.", OUTPUT)
RESUME: Final = flag(
    "--resume",
    "Continue the stopped run in --out; start it if there is none.",
    OUTPUT,
)
SCALE: Final = flag(
    "--scale",
    "Enlarge the images in the grid K times (up to 64).",
    OUTPUT,
    low=1,
    high=64,
    metavar="K",
    default="by image size",
)
COLUMNS: Final = flag(
    "--columns",
    "Number of images per row of the grid.",
    OUTPUT,
    low=1,
    metavar="N",
    default="nearly square",
)
PlotFormat = Literal["png", "svg"]
PLOT_FORMAT: Final = flag("--plot-format", "File format of the plot.", OUTPUT)
NO_METADATA: Final = flag("--no-metadata", "Do not store the settings in the images.", OUTPUT)


@dataclass(frozen=True)
class OutputOptions:
    """Where a run goes. out None: the next numbered folder under runs/."""

    out: Annotated[Path | None, OUT] = None
    resume: Annotated[bool, RESUME] = False
    force: Annotated[bool, FORCE] = False
    dry_run: Annotated[bool, DRY_RUN] = False


@dataclass(frozen=True)
class ImageOutputOptions(OutputOptions):
    """What a sampling run writes. save: which outputs.  scale, columns: None chooses."""

    save: Annotated[
        tuple[str, ...],
        flag(
            "--save",
            f"Outputs to write, any of {', '.join(get_args(Output))}.",
            OUTPUT,
            metavar="LIST",
            parse=lambda text, option: parse.parse_choices(text, option, get_args(Output)),
        ),
    ] = ("grid", "images", "latents")
    scale: Annotated[int | None, SCALE] = None
    columns: Annotated[int | None, COLUMNS] = None
    format: Annotated[ImageFormat, flag("--format", "File format of the images.", OUTPUT)] = "png"
    no_metadata: Annotated[bool, NO_METADATA] = False


DEVICE_NAME: Final = flag(
    "--device", "Device: auto (CUDA if available), cpu, cuda or cuda:1.", DEVICE, metavar="NAME"
)
BATCH_SIZE: Final = flag(
    "--batch-size",
    "Number of images per batch.",
    DEVICE,
    low=1,
    high=MAX_BATCH,
    metavar="B",
    default="chosen for the device",
)
DETERMINISTIC: Final = flag(
    "--deterministic",
    "Use deterministic CUDA kernels: the same bytes every time, but slower.",
    DEVICE,
)


PRECISION: Final = flag(
    "--precision",
    "Compute precision; auto is bf16 on CUDA, fp32 elsewhere.",
    DEVICE,
    default="auto",
)
COMPILE: Final = flag(
    "--compile",
    "Compile the network with torch.compile; worthwhile for long runs.",
    DEVICE,
)


@dataclass(frozen=True)
class ComputeOptions:
    """What computes, and how. precision None: auto, or the latents' own.  batch_size None: by device."""

    device: Annotated[str, DEVICE_NAME] = "auto"
    precision: Annotated[Precision | None, PRECISION] = None
    batch_size: Annotated[int | None, BATCH_SIZE] = None
    deterministic: Annotated[bool, DETERMINISTIC] = False
    compile = False  # an option only where a network runs for long


@dataclass(frozen=True)
class DeviceOptions(ComputeOptions):
    """And for runs that may be long."""

    compile: Annotated[bool, COMPILE] = False


@dataclass(frozen=True)
class TrainedSize:
    """size: (H, W) of the training images."""

    size: Annotated[
        tuple[int, int] | None,
        flag(
            "--size",
            "Size of the training images, if the files do not hold it.",
            CHECKPOINT,
            metavar="HxW",
            default="from the files",
            parse=parse.parse_size,
        ),
    ] = None
