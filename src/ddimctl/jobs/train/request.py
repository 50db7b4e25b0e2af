"""What a training run is, and which settings make it the same run."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from ddimctl.errors import RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs import parse
from ddimctl.jobs.option import argument, check_choices, flag
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

    data: Annotated[Path, argument("DATA", "Folder or zip of images (PNG, JPEG, WebP).")]
    out: Annotated[Path, flag("--out -o", "Output folder of the run.", MAIN, metavar="RUN")]
    model: Annotated[
        str | None,
        flag(
            "--model",
            "Network: tiny, small, cifar10, celebahq256, or a config.json of a UNet2DModel.",
            MAIN,
            metavar="NAME|FILE",
            default="small",
        ),
    ] = None
    init: Annotated[
        str | None,
        flag("--init", "Checkpoint to fine-tune instead of a new network.", MAIN, metavar="CKPT"),
    ] = None
    steps: Annotated[int, flag("--steps", "Number of updates.", MAIN, low=1, metavar="N")] = 100_000
    batch_size: Annotated[
        int,
        flag(
            "--batch-size",
            "Number of images per update.",
            MAIN,
            low=1,
            high=MAX_BATCH,
            metavar="B",
        ),
    ] = 64
    lr: Annotated[float, flag("--lr", "Learning rate (AdamW).", MAIN, low=0, metavar="RATE")] = 2e-4
    prediction: Annotated[
        Prediction | None,
        flag(
            "--prediction",
            "Prediction target: noise (eps), image (x_0) or velocity (v).",
            TRAINING,
            default="eps, or --init's",
        ),
    ] = None
    schedule: Annotated[
        ScheduleKind | None,
        flag(
            "--schedule",
            "Noise schedule: linear, scaled_linear, cosine or sigmoid.",
            TRAINING,
            metavar="KIND",
            default="linear, or --init's",
        ),
    ] = None
    grad_accum: Annotated[
        int,
        flag(
            "--grad-accum",
            "Gradient accumulation: split each batch into N parts.",
            TRAINING,
            low=1,
            metavar="N",
        ),
    ] = 1
    lr_decay: Annotated[
        Decay, flag("--lr-decay", "Learning-rate schedule after warm-up.", TRAINING)
    ] = "cosine"
    warmup: Annotated[
        int,
        flag(
            "--warmup",
            "Number of warm-up updates, until the learning rate reaches --lr.",
            TRAINING,
            low=0,
            metavar="N",
        ),
    ] = 500
    weight_decay: Annotated[
        float,
        flag("--weight-decay", "Weight decay (AdamW).", TRAINING, low=0, metavar="W"),
    ] = 0.0
    clip_grad: Annotated[
        float,
        flag(
            "--clip-grad",
            "Largest gradient norm (gradient clipping); 0 disables clipping.",
            TRAINING,
            low=0,
            metavar="NORM",
        ),
    ] = 1.0
    loss_weighting: Annotated[
        Weighting,
        flag(
            "--loss-weighting",
            "Weighting of the loss by timestep: simple (the paper's) or min-snr.",
            TRAINING,
        ),
    ] = "simple"
    ema: Annotated[
        float,
        flag(
            "--ema",
            "Decay of the moving average of the weights (EMA) that is saved as the checkpoint.",
            TRAINING,
            low=0,
            high=1,
            metavar="DECAY",
        ),
    ] = 0.9999
    seed: Annotated[
        int,
        flag(
            "--seed",
            "Seed of all random numbers.",
            TRAINING,
            low=0,
            high=parse.MAX_SEED,
            metavar="K",
        ),
    ] = 0
    image_size: Annotated[
        tuple[int, int] | None,
        flag(
            "--image-size",
            "Crop and resize the images to this size.",
            DATA,
            metavar="HxW",
            default="the images' own",
            parse=parse.parse_size,
        ),
    ] = None
    channels: Annotated[
        int,
        flag(
            "--channels",
            "Colour channels: 3 is RGB, 1 is grey.",
            DATA,
            metavar="1|3",
            parse=parse.parse_channels,
            words=("1", "3"),
        ),
    ] = 3
    background: Annotated[
        tuple[int, ...],
        flag(
            "--background",
            "Background colour of transparent images: black, white, #rrggbb or r,g,b.",
            DATA,
            metavar="COLOUR",
            default="black",
            parse=parse.parse_colour,
        ),
    ] = (0, 0, 0)
    flip: Annotated[bool, flag("--flip", "Mirror images left to right at random.", DATA)] = False
    class_conditional: Annotated[
        bool,
        flag(
            "--class-conditional",
            "Train a class-conditional network; each folder is a class.",
            MAIN,
        ),
    ] = False
    label_dropout: Annotated[
        float,
        flag(
            "--label-dropout",
            "Share of labels replaced by the null class, needed for --guidance; 0.1 or 10%.",
            DATA,
            metavar="SHARE",
            parse=parse.parse_fraction,
        ),
    ] = 0.1
    holdout: Annotated[
        float,
        flag(
            "--holdout",
            "Share of images held out to measure the loss; 0.02 or 2%.",
            DATA,
            metavar="SHARE",
            parse=parse.parse_fraction,
        ),
    ] = 0.0
    strict: Annotated[
        bool,
        flag(
            "--strict",
            "Stop at the first unreadable image instead of skipping it.",
            DATA,
        ),
    ] = False
    time_limit: Annotated[
        float | None,
        flag(
            "--time-limit",
            "Stop after 90s, 30m, 2h30m or 1d; --resume continues.",
            RUN,
            metavar="TIME",
            parse=parse.parse_duration,
        ),
    ] = None
    save_every: Annotated[
        int,
        flag(
            "--save-every",
            "Number of updates between saved states.",
            RUN,
            low=1,
            metavar="N",
        ),
    ] = 1000
    sample_every: Annotated[
        int,
        flag(
            "--sample-every",
            "Number of updates between sample grids.",
            RUN,
            low=1,
            metavar="N",
        ),
    ] = 1000
    log_every: Annotated[
        int,
        flag(
            "--log-every",
            "Number of updates between logged metrics.",
            RUN,
            low=1,
            metavar="N",
        ),
    ] = 50
    log: Annotated[
        LogKind | None,
        flag(
            "--log",
            "Logger for curves and samples, which writes to RUN/tensorboard.",
            RUN,
        ),
    ] = None
    weights_dtype: Annotated[
        SavedPrecision, flag("--weights-dtype", "Precision of the saved weights.", RUN)
    ] = "fp32"
    resume: Annotated[
        bool,
        flag(
            "--resume",
            "Continue from the last saved state in --out; start if there is none.",
            RUN,
        ),
    ] = False
    force: Annotated[bool, flag("--force", "Overwrite the run in --out.", RUN)] = False
    device: Annotated[str, DEVICE_NAME] = "auto"
    precision: Annotated[Precision | None, PRECISION] = None
    compile: Annotated[bool, COMPILE] = False

    def learning_rate(self, step: int) -> float:
        """The rate of the update that follows that many others."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        if self.lr_decay == "constant":
            return self.lr * rise
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))


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
    check_choices(request)
    if request.channels not in (1, 3):
        raise RequestError("--channels must be 1 or 3.")
    if request.log is not None:
        from ddimctl.files.event_log import check_event_log

        check_event_log(request.out / "tensorboard")
    if request.precision == "fp16":
        raise RequestError(
            "training in fp16 is not supported: gradients underflow.",
            "Use --precision bf16 or fp32.",
        )
    if request.init is not None and request.model is not None:
        raise RequestError("--init has its own network.", "Leave --model out.")


def memory_remedy(request: TrainRequest, processes: int) -> str:
    """What to do when a pass over a part of a batch does not fit in memory."""
    batch, parts = request.batch_size // processes, request.grad_accum
    if batch == parts:
        return "Use a smaller --model or --image-size: a batch of one image does not fit."
    more = next(n for n in range(parts + 1, batch + 1) if batch % n == 0)
    return (
        f"Continue with --resume --grad-accum {more}: {batch // more} images at once "
        f"instead of {batch // parts}."
    )


def settings_of(request: TrainRequest, precision: str) -> JsonObject:
    """The settings that decide the weights, as JSON gives them back."""
    settings = {k: v for k, v in asdict(request).items() if k not in FREE_ON_RESUME}
    plain: JsonObject = json.loads(json.dumps(settings | {"precision": precision}))
    return plain


def check_same_run(was: JsonObject, now: JsonObject) -> None:
    """Raise RequestError, with the differences, unless both are records of one run.

    A record holds plain values under "settings", "network" (its config) and "data".
    """
    changed = [
        *_changes("--", was["settings"], now["settings"]),
        *_changes("the network's ", was["network"], now["network"]),
    ]
    if was["data"] != now["data"]:
        changed.append(
            f"the data set was another: it had {_data_words(was['data'])}, "
            f"has {_data_words(now['data'])}"
        )
    if changed:
        raise RequestError(
            f"--resume: the settings differ from the first run's: {'; '.join(changed)}.",
            "Repeat the first command, or start again with --force.",
        )


def _changes(prefix: str, was: JsonObject, now: JsonObject) -> list[str]:
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    flags = [
        f"{prefix}{name.replace('_', '-')}" if prefix == "--" else f"{prefix}{name}"
        for name in names
    ]
    return [
        f"{flag} was {brief(was.get(name))}, is {brief(now.get(name))}"
        for flag, name in zip(flags, names, strict=True)
    ]


def _data_words(data: JsonObject) -> str:
    words = f"{data['pictures']} training images and {data['held_out']} held out"
    return f"{words} (fingerprint {data['fingerprint'][:12]})"
