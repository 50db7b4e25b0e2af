"""Images to latents and back: inversion, verified by the sampler's own decode."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.inversion import Inversion, check_inversion, invert_steps
from ddimctl.diffusion.predictions import Prediction, make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.errors import RequestError
from ddimctl.files.pictures.images import to_uint8
from ddimctl.jobs.checkpoint import Model
from ddimctl.jobs.events import Notice, Progress, Report
from ddimctl.jobs.invert.request import DEFAULT_STEPS, DatasetImageOptions, InversionOptions
from ddimctl.jobs.requests import PromptOptions, SamplerOptions
from ddimctl.jobs.sample.batches import (
    Group,
    Smaller,
    batch_groups,
    default_batch_size,
    halved,
    suppress_out_of_memory,
)
from ddimctl.jobs.sample.plan import (
    Plan,
    image_labels,
    image_shape,
    make_plan,
    pixels_per_latent,
    resolve_sampler,
)
from ddimctl.jobs.sample.prompts import Prompted, prompted
from ddimctl.runtime.device import free_memory

HALF_A_LEVEL: Final = 1 / 255  # of x_0, whose 255 levels span [-1, 1]
_TIGHTER: Final = 0.01  # of the tolerance, for a second attempt


class RoundTrip(NamedTuple):
    """latents: of x_T; decoded: x_0 again; both (N, C, H, W), float32. residuals (N, S), float64: as Inversion's.
    evaluations: (N,), int64, of the inversion, both attempts where there were two."""

    latents: Tensor
    decoded: Tensor
    residuals: Tensor
    evaluations: Tensor

    @property
    def finite(self) -> Tensor:
        """(N,), bool: whether an image's latent, its decode, and the residuals are finite."""
        both = (self.latents.isfinite() & self.decoded.isfinite()).flatten(1).all(1)
        return both & ~self.residuals.isinf().any(1)  # a step of which no residual was a number


@dataclass(frozen=True)
class Fidelity:
    """How near a decoded image is to the original.

    mse: per dimension, images in [0, 1].  psnr: in dB; None where mse is 0.
    largest_error: in levels of 255, before rounding.  worst_level: after it.
    exact_pixels: the share of pixels of which all channels are equal after rounding.
    """

    mse: float
    psnr: float | None
    largest_error: float
    worst_level: int
    exact_pixels: float


def inversion_plan(
    images: DatasetImageOptions,
    inversion: InversionOptions,
    model: Model,
    text: Prompted,
    count: int,
    batch_size: int | None,
) -> Plan:
    """How `count` images are inverted, and their latents decoded: without noise or clipping, as
    --class or the null class, or by their one prompt.

    Raises RequestError for settings that contradict each other or cannot be inverted.
    """
    checkpoint = text.checkpoint
    steps = inversion.steps or (None if isinstance(inversion.timesteps, tuple) else DEFAULT_STEPS)
    options = SamplerOptions(
        steps=steps,
        timesteps=inversion.timesteps,
        guidance=1.0 if inversion.guidance is None else inversion.guidance,
        guidance_rescale=inversion.guidance_rescale,
    )
    sampler = resolve_sampler(options, {}, checkpoint)
    if sampler.timesteps is None:
        raise RequestError(
            "--tau auto is optimised for sampling; its last step is too long for inversion.",
            "Use --tau linspace.",
        )
    check_inversion(checkpoint, sampler.timesteps, inversion.method, inversion.tolerance)
    shape = image_shape(images.size, checkpoint)
    return make_plan(
        sampler,
        shape,
        range(count),
        text.labels if text.labels else _one_label(images.classes, checkpoint, count),
        precision=model.precision,
        batch_size=batch_size
        or default_batch_size(checkpoint, shape, model.device, sampler.guidance),
        method=inversion.method,
        factor=pixels_per_latent(checkpoint),
        prompts=text.prompts,
        negative=text.negative,
    )


def input_text(
    options: PromptOptions,
    images: DatasetImageOptions,
    checkpoint: Checkpoint,
    count: int,
    report: Report,
) -> Prompted:
    """The one prompt of all input images, "" where none is named; none for other checkpoints."""
    if len(options.prompts) > 1 or options.prompt_file is not None:
        raise RequestError("--prompt: all images are inverted by one prompt.", "Name one.")
    if checkpoint.conditioner is not None and not options.prompts:
        report(Notice("no --prompt: the images are inverted by an empty one."))
    size = images.size or checkpoint.picture_shape[1:]
    return prompted(checkpoint, options, {}, range(count), size, report, otherwise="")


def _one_label(
    classes: Sequence[str] | None, checkpoint: Checkpoint, count: int
) -> Sequence[int] | None:
    """The label of all images: the class asked for, else the null class."""
    if classes is not None and len(classes) > 1:
        raise RequestError("--class: all images are inverted as one class.", "Name one.")
    if classes is not None or checkpoint.num_classes is None:
        return image_labels(classes, {}, checkpoint, range(count))
    if checkpoint.null_class is None:
        raise RequestError(
            "this checkpoint needs the class of the images.", "Name it with --class."
        )
    return (checkpoint.null_class,) * count


@dataclass(frozen=True)
class Steps:
    """Where a round trip's steps lie in a job's progress: after `before` of total."""

    before: int
    total: int
    facts: Mapping[str, str]


def round_trip(
    checkpoint: Checkpoint,
    plan: Plan,
    x_0: Tensor,
    tolerance: float,
    report: Report,
    steps: Steps,
) -> RoundTrip:
    """Invert x_0 (N, C, H, W) as the plan says and decode the latents.

    x_0 and the result are on the checkpoint's device; all N have the plan's first label. What is
    not finite in the result is for the caller to refuse (RoundTrip.finite). Where memory does not
    suffice for all images at once, they are inverted in smaller batches. Raises DeviceError when it
    does not suffice for one.
    """
    trips: list[RoundTrip] = []
    smaller: list[Smaller] = []
    left = [Group(range(len(x_0)), len(x_0))]
    while left:
        group = left[0]
        images = group.images
        before = images.start * len(plan.timesteps)

        def on_step(done: int, before: int = before) -> None:
            walked = steps.before + (before + done) // len(x_0)
            report(Progress("inverting", walked, steps.total, "steps", steps.facts))

        with suppress_out_of_memory(group.size, "Use a smaller --size or another --device."):
            part = x_0[images.start : images.stop]
            trips.append(_round_trip(checkpoint, plan, part, tolerance, on_step))
            del left[0]
            continue
        free_memory(x_0.device)
        smaller = halved(smaller, group)
        batches = batch_groups(len(x_0), len(x_0), smaller)
        left = [batch for batch in batches if batch.images.start >= images.start]
        report(
            Notice(
                f"out of memory with {len(images)} images at a time; continuing with {left[0].size}."
            )
        )
    return RoundTrip(*map(torch.cat, zip(*trips, strict=True)))


def _round_trip(
    checkpoint: Checkpoint,
    plan: Plan,
    x_0: Tensor,
    tolerance: float,
    on_step: Callable[[int], None],
) -> RoundTrip:
    """Of all at once. Exact inversion that met its tolerance and is yet off by more than half a
    level is tried again with a smaller one; where a step could not meet it there is nothing to gain.
    """
    with ieee_float32():
        inversion = _invert(checkpoint, plan, x_0, tolerance, on_step)
        decoded = decode_latents(checkpoint, plan, inversion.latents)
        first = (inversion.latents, decoded, inversion.residuals)
        evaluations = inversion.evaluations.sum(1)
        if plan.method != "exact":
            return RoundTrip(*first, evaluations)
        target = checkpoint.decode(x_0)
        off = _largest_error(checkpoint, decoded, target) > HALF_A_LEVEL
        off &= (inversion.residuals <= tolerance).all(1)
        if not bool(off.any()):
            return RoundTrip(*first, evaluations)
        rows = off.nonzero().flatten()
        again = _invert(checkpoint, plan, x_0[rows], _TIGHTER * tolerance)
        decoded_again = decode_latents(checkpoint, plan, again.latents)
    second = (again.latents, decoded_again, again.residuals)
    error, error_again = (
        _largest_error(checkpoint, y, target[rows]) for y in (decoded[rows], decoded_again)
    )
    nearer = error_again < error
    latents, decoded, residuals = (
        whole.index_copy(0, rows[nearer], part[nearer])
        for whole, part in zip(first, second, strict=True)
    )
    evaluations = evaluations.index_add(0, rows, again.evaluations.sum(1))
    return RoundTrip(latents, decoded, residuals, evaluations)


def _largest_error(checkpoint: Checkpoint, x_0: Tensor, images: Tensor) -> Tensor:
    """(N,): by how much an image, of [-1, 1], that x_0 decodes to is off at most."""
    return (checkpoint.decode(x_0) - images).abs().flatten(1).amax(1)


def decode_latents(
    checkpoint: Checkpoint, plan: Plan, latents: Tensor, timesteps: Sequence[int] | None = None
) -> Tensor:
    """x_0 (N, C, H, W) from latents by the plain sampler, in these timesteps or the plan's own timesteps.

    What is not finite stays so.
    """
    x, denoise = latents, _denoiser(checkpoint, plan)
    labels = _labels(plan, latents)
    with torch.inference_mode(), ieee_float32():
        for step in trajectory(
            denoise, latents, checkpoint.schedule, timesteps or plan.timesteps, labels=labels
        ):
            x = step.x
    return x


def fidelity(x_0: Tensor, decoded: Tensor) -> list[Fidelity]:
    """Of each decoded image, to its x_0; both (N, C, H, W)."""
    error = (decoded - x_0).double()
    levels = (to_uint8(decoded).int() - to_uint8(x_0).int()).abs()  # (N, H, W, C)
    found = []
    for difference, off in zip(error, levels, strict=True):
        mse = float(difference.square().mean()) / 4
        found.append(
            Fidelity(
                mse=mse,
                psnr=-10 * math.log10(mse) if mse > 0 else None,
                largest_error=float(difference.abs().max()) * 255 / 2,
                worst_level=int(off.max()),
                exact_pixels=float((off.amax(2) == 0).double().mean()),
            )
        )
    return found


def _invert(
    checkpoint: Checkpoint,
    plan: Plan,
    x_0: Tensor,
    tolerance: float,
    on_step: Callable[[int], None] | None = None,
) -> Inversion:
    """As invert_steps does, to latents in float32."""
    with torch.inference_mode():
        found = invert_steps(
            _denoiser(checkpoint, plan),
            x_0,
            checkpoint.schedule,
            plan.timesteps,
            method=plan.method,
            tolerance=tolerance,
            labels=_labels(plan, x_0),
            on_step=on_step,
        )
    return found._replace(latents=found.latents.float())


def _denoiser(
    checkpoint: Checkpoint, plan: Plan
) -> Callable[[Tensor, int | Tensor, Tensor | None], Prediction]:
    sampler = plan.sampler
    return make_denoiser(checkpoint, sampler.guidance, guidance_rescale=sampler.guidance_rescale)


def _labels(plan: Plan, like: Tensor) -> Tensor | None:
    if plan.labels is None:
        return None
    return torch.full((len(like),), plan.labels[0], device=like.device)
