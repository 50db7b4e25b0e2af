"""What a training run is asked to do, and what of that makes it the same run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ddimctl.diffusion.objective import WEIGHTINGS
from ddimctl.diffusion.predictions import PREDICTIONS
from ddimctl.errors import RequestError, brief
from ddimctl.files.event_log import check_event_log

LOGS: Final = ("tensorboard",)
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

    Several processes share each update's pictures.

    data: a folder or zip of pictures.  out: the run's folder.
    batch_size: pictures in one update, which grad_accum splits into that many passes (each
    process's share, where there are several).
    log: None or a word of LOGS, what shows the run besides its own files.
    clip_grad: largest norm of the gradient; 0 does not clip.
    model: a name in ARCHITECTURES or a config.json; init: a checkpoint to go on from instead.
    image_size: (H, W), or None for the pictures' own.  time_limit: seconds, or None.
    """

    data: Path
    out: Path
    steps: int = 100_000
    batch_size: int = 64
    grad_accum: int = 1
    lr: float = 2e-4
    warmup: int = 500
    lr_decay: str = "cosine"
    weight_decay: float = 0.0
    clip_grad: float = 1.0
    ema: float = 0.9999
    seed: int = 0
    model: str | None = None
    init: str | None = None
    schedule: str | None = None
    prediction: str | None = None
    loss_weighting: str = "simple"
    image_size: tuple[int, int] | None = None
    channels: int = 3
    background: tuple[int, ...] = (0, 0, 0)
    flip: bool = False
    class_conditional: bool = False
    label_dropout: float = 0.1
    holdout: float = 0.0
    strict: bool = False
    precision: str = "auto"
    device: str = "auto"
    compile: bool = False
    weights_dtype: str = "fp32"
    time_limit: float | None = None
    save_every: int = 1000
    sample_every: int = 1000
    log_every: int = 50
    log: str | None = None
    resume: bool = False
    force: bool = False


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
        ("loss_weighting", WEIGHTINGS),
        ("prediction", (None, *PREDICTIONS)),
        ("lr_decay", ("cosine", "constant")),
        ("channels", (1, 3)),
        ("weights_dtype", ("fp32", "fp16")),
        ("log", (None, *LOGS)),
    )
    for name, allowed in choices:
        if getattr(request, name) not in allowed:
            words = ", ".join(str(choice) for choice in allowed if choice is not None)
            flag = name.replace("_", "-")
            raise RequestError(f"--{flag} must be one of {words}.")
    if request.log is not None:
        check_event_log(request.out / "tensorboard")
    if request.precision == "fp16":
        raise RequestError("training in fp16 underflows.", "Use --precision bf16 or fp32.")
    if request.init is not None and request.model is not None:
        raise RequestError("--init brings its own network.", "Leave --model out.")


def memory_remedy(request: TrainRequest, processes: int) -> str:
    """What to do when a pass over a part of a batch does not fit in memory."""
    batch, parts = request.batch_size // processes, request.grad_accum
    if batch == parts:
        return "One picture at once is too much for it: use a smaller --model or --image-size."
    more = next(n for n in range(parts + 1, batch + 1) if batch % n == 0)
    return (
        f"It had {batch // parts} pictures at once: --resume with --grad-accum {more} "
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
    words = f"{data['pictures']} pictures to learn from and {data['held_out']} held out"
    return f"{words} (fingerprint {data['fingerprint'][:12]})"
