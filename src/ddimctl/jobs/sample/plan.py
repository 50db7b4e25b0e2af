"""From options and a checkpoint to every setting of a sampling run, decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.requests import TEXT_GUIDANCE, SamplerOptions
from ddimctl.runtime.transfer import to_device

Shape = tuple[int, int, int]

DEFAULT_STEPS: Final = 20
SEEDED: Final = "seeds"
_LABEL_STREAM: Final = -2  # where seeded_noise has timesteps: the stream that labels are drawn from


@dataclass(frozen=True)
class SamplerSettings:
    """How images are sampled, resolved against a checkpoint.

    kind: of the timesteps, which are ascending; they are None while --tau auto has yet to find them.
    """

    steps: int
    kind: str
    timesteps: tuple[int, ...] | None
    eta: float
    variance: str
    solver: str
    clip: str
    guidance: float
    guidance_rescale: float = 0.0

    def record(self) -> JsonObject:
        """Plain values, named as in manifests, latents and images of every version."""
        visited = {} if self.timesteps is None else {"timesteps": list(self.timesteps)}
        return {
            "steps": self.steps,
            "tau": self.kind,
            **visited,
            "eta": self.eta,
            "variance": self.variance,
            "solver": self.solver,
            "clip": self.clip,
            "guidance": self.guidance,
            **({"guidance_rescale": self.guidance_rescale} if self.guidance_rescale else {}),
        }


@dataclass(frozen=True)
class Plan:
    """A sampling run with nothing left to decide.

    shape: (C, H, W) of x_T.  factor: how many pixels of an image are one of it.  names: one number per image, its file's name.
    seeds: one per image, for its noise.  labels: one per image, or None.
    x_T: (N, C, H, W) when latents are decoded, else None (drawn from the seeds).
    method: how the x_T came about, SEEDED or what a latent file says.
    prompts: one per image, whose rows of the checkpoint's table are the labels.  negative: the text
    that guidance leads away from; None is the checkpoint's own.
    """

    sampler: SamplerSettings
    shape: Shape
    precision: str
    batch_size: int
    names: tuple[int, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    x_T: Tensor | None = None
    method: str = SEEDED
    factor: int = 1
    prompts: tuple[str, ...] | None = None
    negative: str | None = None

    @property
    def timesteps(self) -> tuple[int, ...]:
        """The visited timesteps, ascending; none while --tau auto has yet to find them."""
        return self.sampler.timesteps or ()

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images in pixels."""
        return self.shape[1] * self.factor, self.shape[2] * self.factor

    @property
    def count(self) -> int:
        """The number of images."""
        return len(self.seeds)

    @property
    def is_seeded(self) -> bool:
        """Whether each x_T is the noise of its seed, drawn here or read from a file that says so."""
        return self.method == SEEDED

    def record(self) -> JsonObject:
        """What decides the images, as plain values: for manifests, latents and images."""
        return self.sampler.record() | {
            "size": list(self.image_size),
            "precision": self.precision,
            "batch_size": self.batch_size,
            **({} if self.negative is None else {"negative": self.negative}),
        }

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
        return replace(self, batch_size=size)


def make_plan(
    sampler: SamplerSettings,
    shape: Shape,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    *,
    precision: str,
    batch_size: int,
    x_T: Tensor | None = None,
    method: str = SEEDED,
    factor: int = 1,
    prompts: tuple[str, ...] | None = None,
    negative: str | None = None,
) -> Plan:
    """A plan for one image per seed; images are named by their seeds where these differ."""
    names = seeds if len(set(seeds)) == len(seeds) else range(len(seeds))
    return Plan(
        sampler,
        shape,
        precision,
        min(batch_size, len(seeds)),
        tuple(names),
        tuple(seeds),
        None if labels is None else tuple(labels),
        x_T,
        method,
        factor,
        prompts,
        negative,
    )


def resolve_sampler(
    options: SamplerOptions, metadata: Mapping[str, Any], checkpoint: Checkpoint
) -> SamplerSettings:
    """Each setting: the option, else that of the latents with this metadata, else the default.

    Raises RequestError for settings that contradict each other or do not fit the checkpoint.
    """
    variance = _first(options.variance, metadata.get("variance"), "eta")
    own_eta = None if options.variance else metadata.get("eta")
    eta = _first(options.eta, own_eta, 0.0 if variance == "eta" else 1.0)
    check_variance(variance, eta, checkpoint.learned_variance)
    solver = _first(options.solver, metadata.get("solver"), "ddim")
    check_solver(solver, eta, variance)
    clip = _first(options.clip, metadata.get("clip"), "none")
    if clip not in CLIPS:
        raise RequestError(f"unknown clipping '{clip}'.", f"Choose one of {', '.join(CLIPS)}.")
    kind, steps, visited = _timesteps(options, metadata, checkpoint)
    start = visited[-1] if visited else checkpoint.schedule.num_train_timesteps - 1
    _check_zero_snr(checkpoint, start)
    _check_latents_fit(metadata, checkpoint, start)
    usual = 1.0 if checkpoint.conditioner is None else TEXT_GUIDANCE
    guidance = float(_first(options.guidance, metadata.get("guidance"), usual))
    _check_guidance(guidance, checkpoint)
    rescale = float(_first(options.guidance_rescale, metadata.get("guidance_rescale"), 0.0))
    if clip != "none" and checkpoint.codec is not None:
        raise RequestError(
            "--clip: latents of an autoencoder are not bounded by [-1, 1].", "Leave --clip out."
        )
    return SamplerSettings(steps, kind, visited, eta, variance, solver, clip, guidance, rescale)


def _timesteps(
    options: SamplerOptions, metadata: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[str, int, tuple[int, ...] | None]:
    """(kind, S, timesteps): an explicit list sets S; a kind or S of the options replaces the
    latents' list. The timesteps of --tau auto, which end at T - 1, are yet to be found.
    """
    wanted, num_train_timesteps = options.timesteps, checkpoint.schedule.num_train_timesteps
    if wanted is None and options.steps is None and "timesteps" in metadata:
        own = explicit_timesteps(metadata["timesteps"], num_train_timesteps)
        return metadata.get("tau", "explicit"), len(own), own
    if isinstance(wanted, tuple):
        return "explicit", len(wanted), explicit_timesteps(wanted, num_train_timesteps)
    kind = wanted or metadata.get("tau", "linspace")
    if kind == "explicit":  # the latents' own list, but the options want another length
        kind = "linspace"
    steps = options.steps or metadata.get("steps", DEFAULT_STEPS)
    if kind == AUTO:
        if checkpoint.codec is not None:
            raise RequestError(
                "--tau auto is for networks of pixels; this one works on an autoencoder's latents.",
                "Use --tau linspace.",
            )
        check_search(steps, num_train_timesteps, checkpoint.self_conditioned)
        return kind, steps, None
    return kind, steps, timesteps(kind, steps, num_train_timesteps)


def _check_zero_snr(checkpoint: Checkpoint, start: int) -> None:
    if checkpoint.prediction == "eps" and checkpoint.schedule(start) == 0:
        raise RequestError(
            f"the schedule has no signal at t = {start} (zero terminal SNR), where an "
            "eps-prediction does not determine the image.",
            f"Name timesteps below {start} with --tau.",
        )


def _check_latents_fit(metadata: Mapping[str, Any], checkpoint: Checkpoint, start: int) -> None:
    """Raise RequestError where latents are of another schedule, or start at another timestep."""
    if metadata.get("schedule", checkpoint.schedule.settings) != checkpoint.schedule.settings:
        raise RequestError(
            "the latents have another noise schedule than the checkpoint.",
            "Name the checkpoint that they belong to with --ckpt.",
        )
    start_timestep = metadata.get("top")
    if start_timestep not in (None, start):
        last = start_timestep == checkpoint.schedule.num_train_timesteps - 1
        instead = "Use --tau linspace or trailing" if last else "Leave out --tau and --steps"
        raise RequestError(
            f"the latents are at timestep {start_timestep}, but the list of timesteps ends at {start}.",
            f"{instead}, or use a list that ends at {start_timestep}.",
        )
    codec = None if checkpoint.codec is None else dict(checkpoint.codec.settings)
    if "top" in metadata and metadata.get("codec") != codec:
        raise RequestError(
            "the latents are of another autoencoder than the checkpoint's.",
            "Name the checkpoint that they belong to with --ckpt, and its --vae.",
        )


def image_shape(
    size: tuple[int, int] | None, checkpoint: Checkpoint, latents: Tensor | None = None
) -> Shape:
    """(C, H, W) of x_T: the latents' (N, C, H, W), else the size asked for, else the checkpoint's own.

    size: (H, W) of the images, in pixels. Raises RequestError where these contradict each other.
    """
    channels, *_ = checkpoint.sample_shape
    factor = pixels_per_latent(checkpoint)
    height, width = size or checkpoint.picture_shape[1:]
    if latents is not None:
        found = tuple(latents.shape[1:])
        if found[0] != channels:
            raise RequestError(
                f"the latents have {found[0]} channels, but the checkpoint has {channels}.",
                "Name the checkpoint that they belong to with --ckpt.",
            )
        own = (found[1] * factor, found[2] * factor)
        if size is not None and size != own:
            raise RequestError(
                f"--size {size[0]}x{size[1]} contradicts the latents, "
                f"which are of images of {own[0]}x{own[1]}.",
                "Leave --size out.",
            )
        height, width = own
    divisor = checkpoint.picture_divisor
    if height % divisor or width % divisor:
        raise RequestError(
            f"size {height}x{width} does not fit this checkpoint.",
            f"Both sides must be multiples of {divisor}.",
        )
    return channels, height // factor, width // factor


def pixels_per_latent(checkpoint: Checkpoint) -> int:
    """How many pixels of an image, along a side, are one number of what the network sees."""
    return 1 if checkpoint.codec is None else checkpoint.codec.factor


def latent_seeds(latents: LatentFile) -> tuple[int, ...]:
    """The seeds that a latent file records, else its latents' places."""
    count, recorded = len(latents.latents), latents.metadata.get("seeds")
    return tuple(recorded) if recorded and len(recorded) == count else tuple(range(count))


def image_labels(
    classes: Sequence[str] | None,
    metadata: Mapping[str, Any],
    checkpoint: Checkpoint,
    seeds: Sequence[int],
    *,
    by_place: bool = False,
) -> tuple[int, ...] | None:
    """One label per seed: the classes asked for, assigned by seed (or by place), else the latents'
    own, else drawn by seed. Raises RequestError for classes that there are not.
    """
    if checkpoint.num_classes is None:
        if classes:
            raise RequestError("--class: this checkpoint has no classes.", "Leave --class out.")
        return None
    recorded = metadata.get("labels")
    if classes:
        given = [class_index(word, checkpoint) for word in classes]
        order = range(len(seeds)) if by_place else seeds
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
        raise RequestError("--guidance: this checkpoint has no classes.", "Leave --guidance out.")
    if checkpoint.null_class is None:
        raise RequestError(
            "--guidance: this checkpoint was trained without a null class.",
            "Leave --guidance out.",
        )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
