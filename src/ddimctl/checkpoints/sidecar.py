"""ddimctl.json: what diffusers' configs cannot hold (classes, background, which weights)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.source import Source, read_json
from ddimctl.errors import CheckpointError, brief
from ddimctl.files.untrusted.guards import refusals
from ddimctl.files.untrusted.settings import check_format_version

NAME: Final = "ddimctl.json"
FORMAT_VERSION: Final = 1
MAX_CLASS_NAME: Final = 255  # characters: names are those of folders


@dataclass(frozen=True)
class Sidecar:
    """The fields as in Checkpoint and Provenance; training: free, plain values about the run."""

    class_names: tuple[str, ...] = ()
    num_classes: int | None = None
    null_class: int | None = None
    background: tuple[int, ...] | None = None
    weights: str = "unknown"
    patches: UNetPatches = field(default_factory=UNetPatches)
    training: Mapping[str, Any] = field(default_factory=dict)


def read_sidecar(source: Source) -> Sidecar | None:
    """What ddimctl.json says, or None where there is none. Raises CheckpointError for bad values."""
    found = read_json(source, NAME)
    if found is None:
        return None
    with refusals(f"{source.name}/{NAME}", CheckpointError, "Update ddimctl."):
        check_format_version(found, FORMAT_VERSION)

    def check(key: str, valid: bool) -> None:
        if not valid:
            raise CheckpointError(f"{source.name}/{NAME}: {key} is {brief(found.get(key))}.")

    names = found.get("class_names") or []
    check("class_names", isinstance(names, list) and all(map(_is_class_name, names)))
    classes = found.get("num_classes", len(names) or None)
    check("num_classes", classes is None or (_is_level(classes, 2**31) and classes >= 1))
    check("class_names", not names or len(names) == classes)
    null = found.get("null_class")
    check("null_class", null is None or (_is_level(null, 2**31) and classes is not None))
    background = found.get("background")
    check(
        "background",
        background is None
        or (
            isinstance(background, list)
            and len(background) in (1, 3)
            and all(_is_level(level, 255) for level in background)
        ),
    )
    weights = found.get("weights", "unknown")
    check("weights", weights in ("ema", "raw", "unknown"))
    training = found.get("training") or {}
    check("training", isinstance(training, dict))
    return Sidecar(
        class_names=tuple(names),
        num_classes=classes,
        null_class=null,
        background=None if background is None else tuple(background),
        weights=weights,
        patches=_read_patches(found.get("network"), source.name),
        training=training,
    )


def _read_patches(values: Any, name: str) -> UNetPatches:
    known = {field.name for field in fields(UNetPatches)}
    if values is None:
        return UNetPatches()
    for key, value in values.items() if isinstance(values, dict) else [("network", values)]:
        valid = {
            "timestep_scale": _is_positive(value),
            "resample_conv": type(value) is bool,
        }.get(key, _is_level(value, 2**20) and value > 0)
        if key not in known or not valid:
            raise CheckpointError(
                f"{name}/{NAME}: network: {brief(key)} is {brief(value)}.", "Update ddimctl."
            )
    return UNetPatches(**values)


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """The file's content."""
    values = {
        "format_version": FORMAT_VERSION,
        "class_names": list(sidecar.class_names),
        "num_classes": sidecar.num_classes,
        "null_class": sidecar.null_class,
        "background": None if sidecar.background is None else list(sidecar.background),
        "weights": sidecar.weights,
        "network": sidecar.patches.settings(),
        "training": dict(sidecar.training),
    }
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "replace")  # a folder's name may not be UTF-8


def _is_class_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= MAX_CLASS_NAME


def _is_level(value: Any, top: int) -> bool:
    return type(value) is int and 0 <= value <= top


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")
