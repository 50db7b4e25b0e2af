"""What latents and images say of themselves."""

import hashlib
from importlib.metadata import version
from typing import Any

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.timesteps import KINDS
from ddimctl.files.latents import FORMAT_VERSION
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.jobs.sample.plan import Plan


def latents_metadata(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a latent file says of itself, so that it can be decoded without being told anything."""
    metadata: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "checkpoint": checkpoint.provenance.record(),
        "schedule": checkpoint.schedule.settings,
        "prediction": checkpoint.prediction,
        "method": plan.method,
        "top": plan.timesteps[-1],
        **({"seeds": list(plan.seeds)} if plan.is_seeded else {}),
        **{key: value for key, value in plan.record().items() if key not in ("size", "batch_size")},
    }
    if plan.labels is not None:
        metadata["labels"] = list(plan.labels)
    if checkpoint.background is not None:
        metadata["background"] = list(checkpoint.background)
    return metadata


def image_text(plan: Plan, checkpoint: Checkpoint, i: int | None) -> dict[str, Any]:
    """The settings that an image carries: image i's, or the whole grid's when i is None."""
    settings = {key: value for key, value in plan.record().items() if key != "batch_size"}
    if settings["tau"] in KINDS:  # kind and steps say it in two words
        del settings["timesteps"]
    text = {"ddimctl": version("ddimctl"), "checkpoint": checkpoint.provenance.record(), **settings}
    if i is None:
        return text | ({"seeds": list(plan.seeds[:GRID_LIMIT])} if plan.is_seeded else {})
    if plan.x_T is None:
        text["seed"] = plan.seeds[i]
    else:
        text["latent_sha256"] = latent_sha256(plan.x_T[i])
    if plan.labels is not None:
        text["label"] = plan.labels[i]
    return text


def latent_sha256(latent: Tensor) -> str:
    """The hash of a latent's float32 numbers."""
    return sha256_hex(latent.contiguous().numpy().tobytes())


def sha256_hex(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()
