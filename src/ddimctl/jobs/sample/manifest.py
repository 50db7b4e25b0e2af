"""The manifest.json of an output folder: what was asked, how it was settled, what was made."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError, brief
from ddimctl.files.own_output import MANIFEST, check_output
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.settings import check_format_version, read_json
from ddimctl.jobs.requests import MAX_BATCH
from ddimctl.jobs.sample.batches import Smaller, read_smaller
from ddimctl.jobs.sample.plan import Plan
from ddimctl.jobs.sample.records import latent_sha256
from ddimctl.jobs.sample.request import OutputSettings

NAME: Final = MANIFEST
FORMAT_VERSION: Final = 1
AGAIN: Final = "Repeat the first command, or begin again with --force."
_LARGEST: Final = 2**30  # bytes; no run has so many images
_ALSO_RECORDED: Final = ("metadata", "deterministic", "compile")  # what else decides the bytes


@dataclass(frozen=True)
class Layout:
    """What a command calls the things in its output folder, and what it adds to them.

    command: in the manifest, and in the names of numbered folders.
    images: the images' folder; their numbers have at least that many digits.
    captions: one per image, for the grid; None for the classes' names.
    video, fps: gif, webp or mp4 of all images in their order; loop: it ends where it begins.
    details: more entries of the manifest; records: more entries of each image in it.
    """

    command: str
    images: str
    digits: int
    captions: tuple[str, ...] | None = None
    video: str | None = None
    fps: float = 12.0
    loop: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()


def read_manifest(
    out: Path | None, layout: Layout, *, resume: bool, force: bool
) -> dict[str, Any] | None:
    """The manifest of the run that the folder already holds, when it is to be resumed.

    Raises RequestError where something would be overwritten, DataError for a damaged manifest.
    """
    if out is None:
        return None
    path = out / NAME
    if resume and path.exists():
        manifest = load_manifest(path)
        if manifest is None or manifest["command"] != layout.command:
            raise DataError(
                f"{path} is not the manifest of a run of `ddimctl {layout.command}`.",
                "Begin with --force.",
            )
        return manifest
    check_output(out, resume=resume, force=force)
    return None


def load_manifest(path: Path) -> dict[str, Any] | None:
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


def _is_manifest(found: dict[str, Any]) -> bool:
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
    images: list[dict[str, Any]] | None = None,
    smaller: Sequence[Smaller] = (),
) -> dict[str, Any]:
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


def image_record(plan: Plan, checkpoint: Checkpoint, layout: Layout, i: int) -> dict[str, Any]:
    """What decides image i, besides the settings."""
    record: dict[str, Any] = {"seed": plan.seeds[i]} if plan.is_seeded else {}
    record |= layout.records[i] if layout.records else {}
    if plan.x_T is not None:
        record["latent_sha256"] = latent_sha256(plan.x_T[i])
    if plan.labels is not None:
        record |= {"label": plan.labels[i], "class": checkpoint.class_name(plan.labels[i])}
    return record


def check_same_run(recorded: dict[str, Any], now: dict[str, Any], layout: Layout) -> None:
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
            f"--resume: not the run that was begun: {'; '.join(changed)}.",
            AGAIN,
        )


def differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the record says otherwise than what is now, one clause each."""
    return [
        f"{key} was {brief(recorded.get(key))}, is {brief(value)}"
        for key, value in now.items()
        if recorded.get(key) != value
    ]


def _subjects(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The images' records without what is known only when they are made."""
    return [
        {key: value for key, value in image.items() if key not in ("file", "sha256")}
        for image in manifest.get("images", [])
    ]
