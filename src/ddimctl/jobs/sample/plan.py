"""From a request and a checkpoint to every setting of a sampling run, decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion import noise
from ddimctl.diffusion.multistep import check_solver
from ddimctl.diffusion.predictions import CLIPS
from ddimctl.diffusion.steps import check_variance
from ddimctl.diffusion.tau_search import check_search
from ddimctl.diffusion.timesteps import AUTO, explicit_timesteps, timesteps
from ddimctl.errors import RequestError
from ddimctl.files.latents import LatentFile
from ddimctl.jobs.sample.batch_size import default_batch_size
from ddimctl.runtime.transfer import to_device

DEFAULT_STEPS: Final = 20
SEEDED: Final = "seeds"
_LABEL_STREAM: Final = -2  # where seeded_noise has timesteps: the stream that labels are drawn from


@dataclass(frozen=True)
class SampleRequest:
    """What to sample and how; None means the latents' own setting, else the default.

    out: the folder, or None for the next numbered one under runs/.
    ckpt: hub id, path, or None for the latents' checkpoint or the bundled one.
    flags: name and value of what its files do not say.
    tau: a kind, "auto", or the timesteps themselves.  seeds: one image each, unless latents is given.
    classes: names or indices; image i gets classes[seed mod length].
    latents: a file of x_T to decode.  size: (H, W).  save: which outputs, of SAVES.
    yes: whether a checkpoint that the latents name may be fetched from the hub.
    batch_size, scale, columns: None chooses.  metadata: whether images carry their settings.
    """

    out: Path | None = None
    ckpt: str | None = None
    revision: str | None = None
    variant: str | None = None
    weights: str = "auto"
    flags: tuple[tuple[str, str], ...] = ()
    allow_nonfinite: bool = False
    steps: int | None = None
    tau: str | tuple[int, ...] | None = None
    eta: float | None = None
    variance: str | None = None
    solver: str | None = None
    clip: str | None = None
    seeds: tuple[int, ...] = tuple(range(16))
    batch_size: int | None = None
    classes: tuple[str, ...] | None = None
    guidance: float | None = None
    latents: Path | None = None
    size: tuple[int, int] | None = None
    device: str = "auto"
    precision: str | None = None
    save: tuple[str, ...] = ("grid", "images", "latents")
    scale: int | None = None
    columns: int | None = None
    format: str = "png"
    metadata: bool = True
    yes: bool = False
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    deterministic: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Plan:
    """A sampling run with nothing left to decide.

    settings: what decides the pictures, as plain values: they go into manifests, latents and PNGs.
    tau: visited timesteps, ascending.  names: one number per image, its file's name.
    seeds: one per image, for its noise.  labels: one per image, or None.
    x_T: (N, C, H, W) when latents are decoded, else None (drawn from the seeds).
    method: how the x_T came about, SEEDED or what a latent file says.
    searched: tau only stands in for one of its length, which --tau auto has yet to find.
    """

    settings: dict[str, Any]
    tau: tuple[int, ...]
    shape: tuple[int, int, int]
    batch_size: int
    names: tuple[int, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    x_T: Tensor | None
    method: str
    searched: bool = False

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.seeds)

    @property
    def is_seeded(self) -> bool:
        """Whether each x_T is the noise of its seed, drawn here or read from a file that says so."""
        return self.method == SEEDED

    def subject(self, i: int) -> str:
        """What to call image i in a sentence."""
        return f"seed {self.seeds[i]}" if self.is_seeded else f"image {i}"

    def start(self, images: Sequence[int], device: torch.device) -> Tensor:
        """x_T (n, C, H, W), float32, of the images at these places of the plan."""
        if self.x_T is not None:
            return to_device(self.x_T[list(images)], device)
        return noise.seeded_noise([self.seeds[i] for i in images], self.shape, device=device)

    def in_batches(self, size: int) -> "Plan":
        """The same run, in batches of this size."""
        return replace(self, batch_size=size, settings={**self.settings, "batch_size": size})


def make_plan(
    request: SampleRequest,
    checkpoint: Checkpoint,
    latents: LatentFile | None,
    device: torch.device,
    precision: str,
) -> Plan:
    """Settle every setting: the request's, else the latents' own, else the default.

    Raises RequestError for settings that contradict each other or do not fit the checkpoint.
    """
    known: Mapping[str, Any] = latents.metadata if latents else {}
    variance = _first(request.variance, known.get("variance"), "eta")
    own_eta = None if request.variance else known.get("eta")
    eta = _first(request.eta, own_eta, 0.0 if variance == "eta" else 1.0)
    check_variance(variance, eta, checkpoint.learned_variance)
    solver = _first(request.solver, known.get("solver"), "ddim")
    check_solver(solver, eta, variance)
    clip = _first(request.clip, known.get("clip"), "none")
    if clip not in CLIPS:
        raise RequestError(f"unknown clipping '{clip}'.", f"Choose one of {', '.join(CLIPS)}.")

    kind, tau, searched = _timesteps(request, known, checkpoint.schedule.num_train_timesteps)
    _check_zero_snr(checkpoint, tau)
    if known.get("schedule", checkpoint.schedule.settings) != checkpoint.schedule.settings:
        raise RequestError(
            "the latents are of another noise schedule than the checkpoint's.",
            "Name the checkpoint that they belong to with --ckpt.",
        )
    top = known.get("top")
    if top is not None and top != tau[-1]:
        last = top == checkpoint.schedule.num_train_timesteps - 1
        instead = "Use --tau linspace or trailing" if last else "Leave out --tau and --steps"
        raise RequestError(
            f"the latents are at timestep {top}, the list of timesteps ends at {tau[-1]}.",
            f"{instead}, or use a list that ends at {top}.",
        )
    shape = _shape(request, checkpoint, latents)
    seeds = _seeds(request, latents)
    labels = _labels(request, known, checkpoint, seeds)
    guidance = float(_first(request.guidance, known.get("guidance"), 1.0))
    _check_guidance(guidance, checkpoint)
    names = seeds if len(set(seeds)) == len(seeds) else tuple(range(len(seeds)))
    batch_size = request.batch_size or default_batch_size(checkpoint, shape, device, guidance)
    batch_size = min(batch_size, len(seeds))
    settings = {
        "steps": len(tau),
        "tau": kind,
        "timesteps": list(tau),
        "eta": eta,
        "variance": variance,
        "solver": solver,
        "clip": clip,
        "guidance": guidance,
        "size": list(shape[1:]),
        "precision": precision,
        "batch_size": batch_size,
    }
    x_T = latents.latents if latents else None
    method = str(known.get("method", "unknown")) if latents else SEEDED
    return Plan(settings, tau, shape, batch_size, names, seeds, labels, x_T, method, searched)


def _timesteps(
    request: SampleRequest, known: Mapping[str, Any], T: int
) -> tuple[str, tuple[int, ...], bool]:
    """(kind, tau, whether tau is yet to be found): an explicit list sets S; a kind or S of the request
    replaces the latents' list.
    """
    asked = request.tau
    if asked is None and request.steps is None and "timesteps" in known:
        return known.get("tau", "explicit"), explicit_timesteps(known["timesteps"], T), False
    if isinstance(asked, tuple):
        tau = explicit_timesteps(asked, T)
        if request.steps not in (None, len(tau)):
            raise RequestError(
                f"--steps {request.steps} contradicts --tau, which lists {len(tau)} timesteps.",
                "Leave --steps out.",
            )
        return "explicit", tau, False
    kind = asked or known.get("tau", "linspace")
    if kind == "explicit":  # the latents' own list, but the request wants another length
        kind = "linspace"
    steps = request.steps or known.get("steps", DEFAULT_STEPS)
    if kind == AUTO:
        check_search(steps, T)
        return kind, timesteps("linspace", steps, T), True
    return kind, timesteps(kind, steps, T), False


def _check_zero_snr(checkpoint: Checkpoint, tau: Sequence[int]) -> None:
    if checkpoint.prediction == "eps" and checkpoint.schedule(tau[-1]) == 0:
        raise RequestError(
            f"the schedule has no signal at t = {tau[-1]} (zero terminal SNR), where an "
            "eps-prediction does not determine the image.",
            f"Name timesteps below {tau[-1]} with --tau.",
        )


def _shape(
    request: SampleRequest, checkpoint: Checkpoint, latents: LatentFile | None
) -> tuple[int, int, int]:
    channels, *native = checkpoint.sample_shape
    if latents is not None:
        found = tuple(latents.latents.shape[1:])
        if found[0] != channels:
            raise RequestError(
                f"the latents have {found[0]} channels, the checkpoint {channels}.",
                "Name the checkpoint that they belong to with --ckpt.",
            )
        if request.size is not None and request.size != found[1:]:
            raise RequestError(
                f"--size {request.size[0]}x{request.size[1]} contradicts the latents, "
                f"which are {found[1]}x{found[2]}.",
                "Leave --size out.",
            )
        height, width = found[1:]
    else:
        height, width = request.size or native
    divisor = checkpoint.size_divisor
    if height % divisor or width % divisor:
        raise RequestError(
            f"size {height}x{width} does not fit this checkpoint.",
            f"Both sides must be multiples of {divisor}.",
        )
    return channels, height, width


def _seeds(request: SampleRequest, latents: LatentFile | None) -> tuple[int, ...]:
    if latents is None:
        return request.seeds
    count = len(latents.latents)
    recorded = latents.metadata.get("seeds")
    return tuple(recorded) if recorded and len(recorded) == count else tuple(range(count))


def _labels(
    request: SampleRequest,
    known: Mapping[str, Any],
    checkpoint: Checkpoint,
    seeds: Sequence[int],
) -> tuple[int, ...] | None:
    """--class by seed (by place for latents), else the latents' labels, else drawn by seed."""
    if checkpoint.num_classes is None:
        if request.classes:
            raise RequestError("--class: this checkpoint knows no classes.", "Leave --class out.")
        return None
    recorded = known.get("labels")
    if request.classes:
        given = [class_index(word, checkpoint) for word in request.classes]
        order = range(len(seeds)) if request.latents else seeds
        return tuple(given[i % len(given)] for i in order)
    if recorded is not None and len(recorded) == len(seeds):
        return tuple(checked_label(label, checkpoint) for label in recorded)
    return drawn_labels(seeds, checkpoint)


def drawn_labels(seeds: Sequence[int], checkpoint: Checkpoint) -> tuple[int, ...]:
    """The class that each seed draws where none is asked for."""
    keys = noise.hash_keys(torch.tensor(seeds), _LABEL_STREAM)
    return tuple(noise.uniform_integers(keys, checkpoint.num_classes or 1).tolist())


def class_index(word: str, checkpoint: Checkpoint) -> int:
    """The label of a class's name or index. Raises RequestError and lists what there is."""
    if word in checkpoint.class_names:
        return checkpoint.class_names.index(word)
    return checked_label(int(word) if word.isdecimal() else word, checkpoint)


def checked_label(label: int | str, checkpoint: Checkpoint) -> int:
    """The label, if the checkpoint has such a class. Raises RequestError and lists what there is."""
    count = checkpoint.num_classes or 0
    if isinstance(label, int) and (0 <= label < count or label == checkpoint.null_class):
        return label
    names = ", ".join(checkpoint.class_names) or f"0 ... {count - 1}"
    raise RequestError(f"--class: this checkpoint has no class '{label}'.", f"It has {names}.")


def _check_guidance(guidance: float, checkpoint: Checkpoint) -> None:
    if guidance == 1.0:
        return
    if checkpoint.num_classes is None:
        raise RequestError("--guidance: this checkpoint knows no classes.", "Leave --guidance out.")
    if checkpoint.null_class is None:
        raise RequestError(
            "--guidance: this checkpoint was trained without a null class.",
            "Leave --guidance out.",
        )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
