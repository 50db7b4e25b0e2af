"""The latents of images, inverted as a plan decodes them, once: they are kept in the user's cache."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.inversion import TOLERANCE, check_inversion
from ddimctl.errors import DataError, NumericsError, RequestError, StorageError
from ddimctl.files.atomic import clean_temporaries, make_folder
from ddimctl.files.cache import make_room, mark_used
from ddimctl.files.dataset.datasets import user_cache
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.files.pictures.images import from_uint8
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import Model
from ddimctl.jobs.events import Notice, Report
from ddimctl.jobs.invert.input_images import fit_input_image
from ddimctl.jobs.invert.round_trip import Steps, fidelity, round_trip
from ddimctl.jobs.sample.manifest import sha256_hex
from ddimctl.jobs.sample.plan import Plan

METHOD: Final = "exact"
_CACHE_VERSION: Final = 1


class Inverted(NamedTuple):
    """latent: (C, H, W), float32. worst_level: the most by which its decode is off, of 255."""

    latent: Tensor
    worst_level: int


def check_invertible(plan: Plan, checkpoint: Checkpoint) -> None:
    """Raise RequestError unless the plan's decoding can be inverted exactly."""
    settings = plan.record()
    for option, plain in (("solver", "ddim"), ("clip", "none")):
        if settings[option] != plain:
            raise RequestError(
                f"images cannot be inverted with {option} {settings[option]}.",
                f"Pass --{option} {plain}.",
            )
    check_inversion(checkpoint, plan.timesteps, METHOD, TOLERANCE)


def image_latents(
    images: Sequence[Path],
    plan: Plan,
    model: Model,
    report: Report,
) -> Tensor:
    """The latents (N, C, H, W), float32, that the plan decodes to the images, cut to its size.

    Raises DataError naming an image that cannot be read, NumericsError.
    """
    checkpoint = model.checkpoint
    fitted = [fit_input_image(path, checkpoint, plan.image_size, "crop") for path in images]
    files = [_cache_path(image.pixels, plan, checkpoint) for image in fitted]
    inverted = [_cached(file, plan) for file in files]
    missing = [i for i, found in enumerate(inverted) if found is None]
    steps, size = len(plan.timesteps), plan.batch_size
    total = -(-len(missing) // size) * steps
    for number, start in enumerate(range(0, len(missing), size)):
        group = missing[start : start + size]
        pixels = from_uint8(torch.stack([fitted[i].pixels for i in group])).to(model.device)
        x_0 = checkpoint.encode(pixels)
        progress = Steps(number * steps, total, {"pictures": f"{start}/{len(missing)}"})
        exact = replace(plan, method=METHOD)
        trip = round_trip(checkpoint, exact, x_0, TOLERANCE, report, progress)
        for i, finite in zip(group, trip.finite.tolist(), strict=True):
            if not finite:
                raise NumericsError(
                    f"{images[i]}: its latent, or what that decodes to, is not finite.",
                    "Leave the image out, or take more --steps.",
                )
        target, back = checkpoint.decode(x_0), checkpoint.decode(trip.decoded)
        errors = [found.worst_level for found in fidelity(target, back)]
        for i, latent, error in zip(group, trip.latents.cpu(), errors, strict=True):
            inverted[i] = Inverted(latent, error)
            _keep(files[i], latent, error)
    found = [each for each in inverted if each is not None]
    for path, image, each in zip(images, fitted, found, strict=True):
        report(Notice(f"{path}: {image.sentence()}."))
        if each.worst_level > 1:
            report(
                Notice(
                    f"{path}: decoding its latent is off by up to {each.worst_level} levels of "
                    "255; more --steps are more accurate."
                )
            )
    return torch.stack([each.latent for each in found])


def _cache_path(pixels: Tensor, plan: Plan, checkpoint: Checkpoint) -> Path | None:
    """Where the latent of a fitted image is kept, by all that it depends on."""
    if not checkpoint.provenance.sha256:
        return None
    depends = {
        "version": _CACHE_VERSION,
        "pixels": sha256_hex(pixels.numpy().tobytes()),
        "shape": list(plan.shape),
        "checkpoint": checkpoint.provenance.sha256,
        "schedule": checkpoint.schedule.settings,
        "prediction": checkpoint.prediction,
        "timesteps": list(plan.timesteps),
        **({"label": plan.labels and plan.labels[0]} if plan.prompts is None else _text_of(plan)),
        **({} if plan.sampler.guidance == 1 else {"guidance": plan.sampler.guidance}),
        "method": METHOD,
        "tolerance": TOLERANCE,
    }
    name = sha256_hex(json.dumps(depends, sort_keys=True).encode())
    return user_cache() / "inversions" / f"{name}.pt"


def _text_of(plan: Plan) -> JsonObject:
    return {"prompt": plan.prompts and plan.prompts[0], "negative": plan.negative}


def _cached(file: Path | None, plan: Plan) -> Inverted | None:
    if file is None or not file.exists():
        return None
    try:
        latents, metadata = load_latents(file)
    except DataError:  # damaged: it is made again
        return None
    error = metadata.get("worst_level")
    if latents.shape != (1, *plan.shape) or not isinstance(error, int):
        return None
    mark_used(file)
    return Inverted(latents[0], error)


def _keep(file: Path | None, latent: Tensor, error: int) -> None:
    try:
        if file is not None:
            make_folder(file.parent)
            clean_temporaries(file.parent)
            save_latents(file, latent[None], {"worst_level": error})
            make_room(file)
    except StorageError:  # a read-only home: the next run inverts again
        return
