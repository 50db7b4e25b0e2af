"""The records of a run: the manifest of its folder, and the metadata of its latents and images."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.timesteps import KINDS
from ddimctl.errors import DataError, RequestError, brief
from ddimctl.files.latents import FORMAT_VERSION as LATENTS_VERSION
from ddimctl.files.own_output import MANIFEST, check_output
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.settings import JsonObject, check_format_version, read_json
from ddimctl.jobs.requests import MAX_BATCH, OutputOptions
from ddimctl.jobs.sample.batches import Smaller, read_smaller
from ddimctl.jobs.sample.outputs import Layout
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.request import OutputSettings

FORMAT_VERSION: Final = 1
AGAIN: Final = "Repeat the first command, or start again with --force."
_LARGEST: Final = 2**30  # bytes; no run has so many images
_ALSO_RECORDED: Final = ("metadata", "deterministic", "compile")  # what else decides the bytes


def read_manifest(out: Path | None, layout: Layout, output: OutputOptions) -> JsonObject | None:
    """The manifest of the run that the folder already holds, when it is to be resumed.

    Raises RequestError where something would be overwritten, DataError for a damaged manifest.
    """
    if out is None:
        return None
    path = out / MANIFEST
    if output.resume and path.exists():
        manifest = load_manifest(path)
        if manifest is None or manifest["command"] != layout.command:
            raise DataError(
                f"{path} is not the manifest of a run of `ddimctl {layout.command}`.",
                "Start with --force.",
            )
        return manifest
    check_output(out, resume=output.resume, force=output.force)
    return None


def load_manifest(path: Path) -> JsonObject | None:
    """A manifest with the parts that are read of it, or None: a stranger may have written it.

    Raises DataError for one of another format version.
    """
    try:
        manifest = read_json(path, _LARGEST, paths=True)
    except (Refused, OSError):
        return None
    with refusals(str(path), DataError, "Use the version of ddimctl that wrote it."):
        check_format_version(manifest, FORMAT_VERSION)
    return manifest if _is_manifest(manifest) else None


def _is_manifest(found: JsonObject) -> bool:
    settings, images = found.get("settings"), found.get("images")
    smaller = read_smaller(found.get("smaller_batches", []))
    return (
        isinstance(found.get("command"), str)
        and isinstance(settings, dict)
        and type(settings.get("batch_size")) is int
        and 1 <= settings["batch_size"] <= MAX_BATCH
        and isinstance(found.get("checkpoint"), dict)
        and isinstance(images, list)
        and all(isinstance(image, dict) for image in images)
        and smaller is not None
        and all(size <= settings["batch_size"] for _, size in smaller)
    )


def make_manifest(
    outputs: OutputSettings,
    plan: Plan,
    checkpoint: Checkpoint,
    layout: Layout,
    device: str,
    images: list[JsonObject] | None = None,
    smaller: Sequence[Smaller] = (),
) -> JsonObject:
    """Every setting, the versions, and the finished images; None while they are being made.

    smaller: where memory ran out; batches as large as the setting says came before.
    """
    return {
        "format_version": FORMAT_VERSION,
        "command": layout.command,
        "complete": images is not None,
        "ddimctl": version("ddimctl"),
        "checkpoint": checkpoint.provenance.record(),
        "settings": plan.record(),
        "schedule": checkpoint.schedule.settings,
        "prediction": checkpoint.prediction,
        "save": list(outputs.save),
        "format": outputs.format,
        **{name: getattr(outputs, name) for name in _ALSO_RECORDED},
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "smaller_batches": [list(change) for change in smaller],
        **layout.details,
        "images": images or [image_record(plan, checkpoint, layout, i) for i in range(plan.count)],
    }


def versions() -> dict[str, str]:
    """Of what the numbers and the files depend on."""
    packages = ("torch", "diffusers", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def image_record(plan: Plan, checkpoint: Checkpoint, layout: Layout, i: int) -> JsonObject:
    """What decides image i, besides the settings."""
    record: JsonObject = {"seed": plan.seeds[i]} if plan.is_seeded else {}
    record |= layout.records[i] if layout.records else {}
    if plan.x_T is not None:
        record["latent_sha256"] = latent_sha256(plan.x_T[i])
    if plan.prompts is not None:
        record["prompt"] = plan.prompts[i]
    elif plan.labels is not None:
        record |= {"label": plan.labels[i], "class": checkpoint.class_name(plan.labels[i])}
    return record


def check_same_run(recorded: JsonObject, now: JsonObject, layout: Layout) -> None:
    """Raise RequestError, with the differences, unless both manifests are of one run."""
    changed = [
        line
        for part in ("checkpoint", "settings")
        for line in differences(recorded.get(part, {}), now[part])
    ]
    alike = ("schedule", "prediction", "save", "format", *_ALSO_RECORDED, *layout.details)
    changed += [f"{key} differs" for key in alike if recorded.get(key) != now[key]]
    if _subjects(recorded) != _subjects(now):
        changed.append("the seeds, latents or classes differ")
    if changed:
        raise RequestError(
            f"--resume: the settings differ from the first run's: {'; '.join(changed)}.",
            AGAIN,
        )


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the record says otherwise than what is now, one clause each."""
    return [
        f"{key} was {brief(recorded.get(key))}, is {brief(value)}"
        for key, value in now.items()
        if recorded.get(key) != value
    ]


def _subjects(manifest: Mapping[str, Any]) -> list[JsonObject]:
    """The images' records without what is known only when they are made."""
    return [
        {key: value for key, value in image.items() if key not in ("file", "sha256")}
        for image in manifest.get("images", [])
    ]


def latents_metadata(plan: Plan, checkpoint: Checkpoint) -> JsonObject:
    """The metadata of latents: all settings that are needed to decode them."""
    metadata: JsonObject = {
        "format_version": LATENTS_VERSION,
        "checkpoint": checkpoint.provenance.record(),
        "schedule": checkpoint.schedule.settings,
        "prediction": checkpoint.prediction,
        "method": plan.method,
        "top": plan.timesteps[-1],
        **({"seeds": list(plan.seeds)} if plan.is_seeded else {}),
        **{key: value for key, value in plan.record().items() if key not in ("size", "batch_size")},
    }
    if plan.prompts is not None:
        metadata["prompts"] = list(plan.prompts)
    elif plan.labels is not None:
        metadata["labels"] = list(plan.labels)
    if checkpoint.codec is not None:
        metadata["codec"] = dict(checkpoint.codec.settings)
    if checkpoint.background is not None:
        metadata["background"] = list(checkpoint.background)
    return metadata


def image_text(plan: Plan, checkpoint: Checkpoint, i: int | None) -> JsonObject:
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
    if plan.prompts is not None:
        text["prompt"] = plan.prompts[i]
    elif plan.labels is not None:
        text["label"] = plan.labels[i]
    return text


def latent_sha256(latent: Tensor) -> str:
    """The hash of a latent's float32 numbers."""
    return sha256_hex(latent.contiguous().numpy().tobytes())


def sha256_hex(content: bytes) -> str:
    """Hexadecimal sha256."""
    return hashlib.sha256(content).hexdigest()
