"""What a training run is asked to do, and what of that makes it the same run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from ddimctl.errors import RequestError, brief
from ddimctl.jobs import parse
from ddimctl.jobs.option import argument, flag
from ddimctl.jobs.requests import (
    COMPILE,
    DEVICE_NAME,
    MAIN,
    MAX_BATCH,
    PRECISION,
    Precision,
    SavedPrecision,
)

DATA: Final = "Data"
TRAINING: Final = "Training"
RUN: Final = "Run"

Prediction = Literal["eps", "x_0", "v"]
ScheduleKind = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
Weighting = Literal["simple", "min-snr"]
Decay = Literal["cosine", "constant"]
LogKind = Literal["tensorboard"]

# What may change when a run goes on; everything else decides the weights.
FREE_ON_RESUME: Final = frozenset(
    (
        *("data", "out", "init", "model"),  # where things are: contents and network are compared
        *("device", "compile", "grad_accum"),  # how it is computed: the same but for rounding and,
        # with another grad_accum, the masks of dropout
        *("steps", "time_limit"),  # for how long
        *("save_every", "sample_every", "log_every", "log", "weights_dtype"),  # what is told of it
        *("strict", "resume", "force"),
    )
)


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, and for how long.

    Several processes share each update's images.

    data: a folder or zip of images.  out: the run's folder.
    batch_size: images in one update, which grad_accum splits into that many passes (each
    process's share, where there are several).
    log: None or a word of LogKind, what shows the run besides its own files.
    clip_grad: largest norm of the gradient; 0 does not clip.
    model: a name in ARCHITECTURES or a config.json; init: a checkpoint to continue from instead.
    image_size: (H, W), or None for the images' own.  time_limit: seconds, or None.
    """

    data: Annotated[Path, argument("DATA", "Folder or zip of images: PNG, JPEG, WebP.")]
    out: Annotated[Path, flag("--out", "-o", help="Folder of the run.", panel=MAIN, metavar="RUN")]
    model: Annotated[
        str | None,
        flag(
            "--model",
            help="Network: tiny, small, cifar10, celebahq256, or a config.json of a UNet2DModel.",
            panel=MAIN,
            metavar="NAME|FILE",
            default="small",
        ),
    ] = None
    init: Annotated[
        str | None,
        flag(
            "--init",
            help="Checkpoint to fine-tune instead of a new network.",
            panel=MAIN,
            metavar="CKPT",
        ),
    ] = None
    steps: Annotated[
        int, flag("--steps", help="Number of updates.", panel=MAIN, low=1, metavar="N")
    ] = 100_000
    batch_size: Annotated[
        int,
        flag(
            "--batch-size",
            help="Images per update.",
            panel=MAIN,
            low=1,
            high=MAX_BATCH,
            metavar="B",
        ),
    ] = 64
    lr: Annotated[
        float,
        flag("--lr", help="Learning rate (AdamW).", panel=MAIN, low=0, metavar="RATE"),
    ] = 2e-4
    prediction: Annotated[
        Prediction | None,
        flag(
            "--prediction",
            help="Prediction target: noise (eps), image (x_0) or velocity (v).",
            panel=TRAINING,
            default="eps, or --init's",
        ),
    ] = None
    schedule: Annotated[
        ScheduleKind | None,
        flag(
            "--schedule",
            help="Noise schedule: linear, scaled_linear, cosine or sigmoid.",
            panel=TRAINING,
            metavar="KIND",
            default="linear, or --init's",
        ),
    ] = None
    grad_accum: Annotated[
        int,
        flag(
            "--grad-accum",
            help="Gradient accumulation: split each batch into N parts.",
            panel=TRAINING,
            low=1,
            metavar="N",
        ),
    ] = 1
    lr_decay: Annotated[
        Decay, flag("--lr-decay", help="Learning-rate schedule after warm-up.", panel=TRAINING)
    ] = "cosine"
    warmup: Annotated[
        int,
        flag(
            "--warmup",
            help="Warm-up: updates until the learning rate reaches --lr.",
            panel=TRAINING,
            low=0,
            metavar="N",
        ),
    ] = 500
    weight_decay: Annotated[
        float,
        flag(
            "--weight-decay",
            help="Weight decay (AdamW).",
            panel=TRAINING,
            low=0,
            metavar="W",
        ),
    ] = 0.0
    clip_grad: Annotated[
        float,
        flag(
            "--clip-grad",
            help="Largest gradient norm; 0 is no clipping.",
            panel=TRAINING,
            low=0,
            metavar="NORM",
        ),
    ] = 1.0
    loss_weighting: Annotated[
        Weighting,
        flag(
            "--loss-weighting",
            help="Weight of timesteps in the loss: simple (the paper's) or min-SNR.",
            panel=TRAINING,
        ),
    ] = "simple"
    ema: Annotated[
        float,
        flag(
            "--ema",
            help="Decay of the moving average (EMA) of the weights, which the checkpoint holds.",
            panel=TRAINING,
            low=0,
            high=1,
            metavar="DECAY",
        ),
    ] = 0.9999
    seed: Annotated[
        int,
        flag(
            "--seed",
            help="Seed of all random numbers.",
            panel=TRAINING,
            low=0,
            high=parse.MAX_SEED,
            metavar="K",
        ),
    ] = 0
    image_size: Annotated[
        tuple[int, int] | None,
        flag(
            "--image-size",
            help="Crop and resize the images to this size.",
            panel=DATA,
            metavar="HxW",
            default="the images' own",
            parse=parse.parse_size,
        ),
    ] = None
    channels: Annotated[
        int,
        flag(
            "--channels",
            help="Colour channels: 3 is RGB, 1 is grey.",
            panel=DATA,
            metavar="1|3",
            parse=parse.parse_channels,
            words=("1", "3"),
        ),
    ] = 3
    background: Annotated[
        tuple[int, ...],
        flag(
            "--background",
            help="Colour under transparent pixels: black, white, #rrggbb or r,g,b.",
            panel=DATA,
            metavar="COLOUR",
            default="black",
            parse=parse.parse_colour,
        ),
    ] = (0, 0, 0)
    flip: Annotated[
        bool, flag("--flip", help="Mirror half of the images at random.", panel=DATA)
    ] = False
    class_conditional: Annotated[
        bool, flag("--class-conditional", help="Train on the folders as classes.", panel=MAIN)
    ] = False
    label_dropout: Annotated[
        float,
        flag(
            "--label-dropout",
            help="Share of labels replaced by the null class, for --guidance; 0.1 or 10%.",
            panel=DATA,
            metavar="SHARE",
            parse=parse.parse_fraction,
        ),
    ] = 0.1
    holdout: Annotated[
        float,
        flag(
            "--holdout",
            help="Share of images kept aside to measure the loss on; 0.02 or 2%.",
            panel=DATA,
            metavar="SHARE",
            parse=parse.parse_fraction,
        ),
    ] = 0.0
    strict: Annotated[bool, flag("--strict", help="Fail on an unreadable image.", panel=DATA)] = (
        False
    )
    time_limit: Annotated[
        float | None,
        flag(
            "--time-limit",
            help="Stop after 90s, 30m, 2h30m or 1d; --resume continues.",
            panel=RUN,
            metavar="TIME",
            parse=parse.parse_duration,
        ),
    ] = None
    save_every: Annotated[
        int,
        flag("--save-every", help="Updates between saved states.", panel=RUN, low=1, metavar="N"),
    ] = 1000
    sample_every: Annotated[
        int,
        flag("--sample-every", help="Updates between sample grids.", panel=RUN, low=1, metavar="N"),
    ] = 1000
    log_every: Annotated[
        int, flag("--log-every", help="Updates between metrics.", panel=RUN, low=1, metavar="N")
    ] = 50
    log: Annotated[
        LogKind | None,
        flag("--log", help="Also log curves and samples to RUN/tensorboard.", panel=RUN),
    ] = None
    weights_dtype: Annotated[
        SavedPrecision, flag("--weights-dtype", help="Precision of the saved weights.", panel=RUN)
    ] = "fp32"
    resume: Annotated[
        bool,
        flag("--resume", help="Continue from the last state in RUN, if there is one.", panel=RUN),
    ] = False
    force: Annotated[
        bool, flag("--force", help="Start again where RUN holds a run.", panel=RUN)
    ] = False
    device: Annotated[str, DEVICE_NAME] = "auto"
    precision: Annotated[Precision | None, PRECISION] = None
    compile: Annotated[bool, COMPILE] = False


def check_request(request: TrainRequest, processes: int) -> None:
    """Raise RequestError for settings that cannot be, or not for so many processes."""
    positive = (
        "steps",
        "batch_size",
        "grad_accum",
        "lr",
        "save_every",
        "sample_every",
        "log_every",
    )
    for name in positive:
        if not getattr(request, name) > 0:
            flag = name.replace("_", "-")
            raise RequestError(f"--{flag} must be above 0, not {getattr(request, name)}.")
    for name in ("ema", "label_dropout", "holdout"):
        if not 0 <= getattr(request, name) < 1:
            flag = name.replace("_", "-")
            raise RequestError(f"--{flag} must be in [0, 1), not {getattr(request, name)}.")
    if request.batch_size % (request.grad_accum * processes):
        among = f" in each of {processes} processes" if processes > 1 else ""
        raise RequestError(
            f"--batch-size {request.batch_size} does not divide by "
            f"--grad-accum {request.grad_accum}{among}."
        )
    choices = (
        ("loss_weighting", get_args(Weighting)),
        ("prediction", (None, *get_args(Prediction))),
        ("lr_decay", get_args(Decay)),
        ("channels", (1, 3)),
        ("weights_dtype", get_args(SavedPrecision)),
        ("log", (None, *get_args(LogKind))),
    )
    for name, allowed in choices:
        if getattr(request, name) not in allowed:
            words = ", ".join(str(choice) for choice in allowed if choice is not None)
            flag = name.replace("_", "-")
            raise RequestError(f"--{flag} must be one of {words}.")
    if request.log is not None:
        from ddimctl.files.event_log import check_event_log

        check_event_log(request.out / "tensorboard")
    if request.precision == "fp16":
        raise RequestError("training in fp16 underflows.", "Use --precision bf16 or fp32.")
    if request.init is not None and request.model is not None:
        raise RequestError("--init brings its own network.", "Leave --model out.")


def memory_remedy(request: TrainRequest, processes: int) -> str:
    """What to do when a pass over a part of a batch does not fit in memory."""
    batch, parts = request.batch_size // processes, request.grad_accum
    if batch == parts:
        return "One image at once is too much for it: use a smaller --model or --image-size."
    more = next(n for n in range(parts + 1, batch + 1) if batch % n == 0)
    return (
        f"It had {batch // parts} images at once: --resume with --grad-accum {more} "
        f"takes {batch // more} at once."
    )


def settings_of(request: TrainRequest, precision: str) -> dict[str, Any]:
    """The settings that decide the weights, as JSON gives them back."""
    settings = {k: v for k, v in asdict(request).items() if k not in FREE_ON_RESUME}
    plain: dict[str, Any] = json.loads(json.dumps(settings | {"precision": precision}))
    return plain


def check_same_run(was: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise RequestError, with the differences, unless both are records of one run.

    A record holds plain values under "settings", "network" (its config) and "data".
    """
    changed = [
        *_changes("--", was["settings"], now["settings"]),
        *_changes("the network's ", was["network"], now["network"]),
    ]
    if was["data"] != now["data"]:
        changed.append(
            f"the data set is another: it had {_data_words(was['data'])}, "
            f"has {_data_words(now['data'])}"
        )
    if changed:
        raise RequestError(
            f"--resume: not the run that was begun: {'; '.join(changed)}.",
            "Repeat the first command, or begin again with --force.",
        )


def _changes(prefix: str, was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    flags = [
        f"{prefix}{name.replace('_', '-')}" if prefix == "--" else f"{prefix}{name}"
        for name in names
    ]
    return [
        f"{flag} was {brief(was.get(name))}, is {brief(now.get(name))}"
        for flag, name in zip(flags, names, strict=True)
    ]


def _data_words(data: dict[str, Any]) -> str:
    words = f"{data['pictures']} images to learn from and {data['held_out']} held out"
    return f"{words} (fingerprint {data['fingerprint'][:12]})"
