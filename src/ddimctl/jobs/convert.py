"""Converting: a checkpoint of any family in, a diffusers folder out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from ddimctl.checkpoints import Checkpoint, checkpoint_files
from ddimctl.errors import RequestError
from ddimctl.files.atomic import write_bytes
from ddimctl.files.own_output import check_output
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint_requests import ConvertRequest
from ddimctl.jobs.events import Report, ignore, notify
from ddimctl.jobs.info import describe, load_as_asked

_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class ConvertResult:
    """out: the folder. checkpoint: what `ddimctl info` says of it."""

    out: Path
    checkpoint: JsonObject


def convert(request: ConvertRequest, report: Report = ignore) -> ConvertResult:
    """Write the checkpoint as a diffusers folder.

    Raises RequestError where that would overwrite something, StorageError, and CheckpointError
    where the source cannot be run.
    """
    out = request.out
    if (out / "unet_ema").exists():
        raise RequestError(
            f"{out} holds the averaged weights of another checkpoint (unet_ema).",
            "Remove them, or name another folder.",
        )
    check_output(out, force=request.force, resumable=False)
    checkpoint = load_as_asked(request.source, request.files, request.trained)
    notify(report, checkpoint.provenance.notes)
    notify(report, _differences(checkpoint))
    about = {"converted_from": checkpoint.provenance.record()}
    files = checkpoint_files(checkpoint, training=about, dtype=_DTYPES[request.weights_dtype])
    for name, content in files.items():
        write_bytes(out / name, content)
    return ConvertResult(out, describe(checkpoint))


def _differences(checkpoint: Checkpoint) -> Iterator[str]:
    """Where diffusers by itself would run the folder differently."""
    patches = checkpoint.patches.settings()
    if patches:
        settings = ", ".join(f"{key} = {value}" for key, value in patches.items())
        yield f"plain diffusers cannot run this network correctly: its config cannot hold {settings}."
    if checkpoint.provenance.family == "lucidrains":
        yield "diffusers cannot read this network; ddimctl can."
        return
    if checkpoint.num_classes is not None:
        yield "diffusers' pipelines pass no class labels; call the network directly."
    elif checkpoint.learned_variance:
        yield "diffusers' DDIMPipeline does not support a learned variance; its DDPMPipeline does."
