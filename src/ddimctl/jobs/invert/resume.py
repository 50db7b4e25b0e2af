"""The metadata of inverted latents, and which input images of a stopped run are done by it.

There is no manifest: input images of several runs may lie in one folder, and each speaks for itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
from ddimctl.files.latents import load_latents
from ddimctl.files.own_output import SHEET
from ddimctl.files.pictures.images import is_undamaged
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.invert.input_images import Fitted, InputImage
from ddimctl.jobs.sample.manifest import AGAIN, differences, latents_metadata, sha256_hex
from ddimctl.jobs.sample.plan import Plan


@dataclass(frozen=True)
class Recorder:
    """How the input images of a run are recorded. out: the folder of their files."""

    out: Path
    plan: Plan
    checkpoint: Checkpoint
    tolerance: float

    def settings(self) -> JsonObject:
        """What is the same for all input images of the run, apart from what `inversion` says."""
        labels = None if self.plan.labels is None else self.plan.labels[:1]
        prompts = None if self.plan.prompts is None else self.plan.prompts[:1]
        own = replace(self.plan, labels=labels, prompts=prompts)
        return latents_metadata(own, self.checkpoint)

    def metadata(self, image: InputImage, fitted: Fitted, figures: Mapping[str, Any]) -> JsonObject:
        """Of an input image's latents."""
        report = {
            "tolerance": self.tolerance,
            "batch_size": self.plan.batch_size,
            "pixels_sha256": _hash(fitted),
            "figures": dict(figures),
        }
        own = fitted.record() | {"picture": image.path.name, "inversion": report}
        return self.settings() | own


def input_image_paths(out: Path, image: InputImage) -> dict[str, str]:
    """Where an input image is, and where what is made of it goes."""
    return {
        "picture": str(image.path),
        "latents": str(out / f"{image.name}.pt"),
        "comparison": str(out / f"{image.name}{SHEET}"),
    }


def read_records(out: Path, inputs: Sequence[InputImage]) -> dict[str, JsonObject | None]:
    """The metadata of the latents that are there, by the input images' names; None for a damaged
    file beside a comparison that is whole, which invert wrote and makes again.

    Raises RequestError for what no inversion of an input image has written.
    """
    records: dict[str, JsonObject | None] = {}
    for image in inputs:
        path = Path(input_image_paths(out, image)["latents"])
        if not path.exists():
            continue
        try:
            latents, metadata = load_latents(path)
        except DataError as error:
            if is_undamaged(Path(input_image_paths(out, image)["comparison"])):
                records[image.name] = None
                continue
            raise RequestError(f"--resume: {error.cause}", AGAIN) from error
        report = metadata.get("inversion")
        if len(latents) != 1 or not isinstance(report, dict) or "figures" not in report:
            raise RequestError(f"--resume: {path} is not a latent of ddimctl invert.", AGAIN)
        records[image.name] = metadata | {"shape": list(latents.shape[1:])}
    return records


def recorded_batch_size(records: Mapping[str, Mapping[str, Any]]) -> int | None:
    """That of the run which wrote the first of them."""
    for record in records.values():
        size = record["inversion"].get("batch_size")
        return size if type(size) is int and size >= 1 else None
    return None


def matching(
    records: Mapping[str, JsonObject], recorder: Recorder, *, force: bool
) -> dict[str, JsonObject]:
    """The records of this very run; RequestError where there are others, unless force."""
    expected = recorder.settings() | {"shape": list(recorder.plan.shape)}
    expected = json.loads(json.dumps(expected))  # as they were read
    kept = {}
    for name, record in records.items():
        changed = differences(record, expected)
        changed += differences(record["inversion"], {"tolerance": recorder.tolerance})
        if changed and not force:
            raise RequestError(
                f"--resume: {name}.pt has other settings than this run: {'; '.join(changed)}.",
                AGAIN,
            )
        if not changed:
            kept[name] = record
    return kept


def finished_figures(
    record: JsonObject | None,
    out: Path,
    image: InputImage,
    fitted: Fitted,
    *,
    force: bool,
) -> JsonObject | None:
    """The figures of an input image that is done, or None. Raises RequestError where its record is of
    another image, unless force."""
    if record is None:
        return None
    own = fitted.record() | {"picture": image.path.name}
    changed = differences(record, own)
    if record["inversion"].get("pixels_sha256") != _hash(fitted):
        changed.append("its pixels differ")
    if changed and not force:
        raise RequestError(
            f"--resume: {image.path} is not the image that was inverted: {'; '.join(changed)}.",
            AGAIN,
        )
    done = not changed and is_undamaged(Path(input_image_paths(out, image)["comparison"]))
    return dict(record["inversion"]["figures"]) if done else None


def _hash(fitted: Fitted) -> str:
    return sha256_hex(fitted.pixels.contiguous().numpy().tobytes())
