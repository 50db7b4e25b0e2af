"""Converting: a checkpoint of any family in, a diffusers folder out, compared with recorded cases."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, checkpoint_files
from ddimctl.checkpoints.load import local_path
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.atomic import write_bytes
from ddimctl.files.untrusted.safetensors_file import read_safetensors
from ddimctl.jobs.checkpoint_requests import ConvertRequest
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.info import describe, load_as_asked

CASES: Final = "cases.safetensors"
CASE_TOLERANCE: Final = 1e-4
"""Relative; two machines differ by about 1e-6, wrong flags by more than 1e-2."""

_MOST_CASES: Final = 100
_MOST_IMAGES: Final = 64
_DTYPES: Final = {"fp32": torch.float32, "fp16": torch.float16}
_OUTPUT: Final = re.compile(r"(eps|raw_eps|out)\.t(\d{1,7})")


@dataclass(frozen=True)
class ConvertResult:
    """errors: of each recorded output, |ours - theirs| / |theirs|; None where nothing is recorded."""

    out: Path
    checkpoint: dict[str, Any]
    errors: dict[str, float] | None


def convert(request: ConvertRequest, report: Report = ignore) -> ConvertResult:
    """Write the checkpoint as a diffusers folder.

    Raises RequestError where that would overwrite something, StorageError, and CheckpointError
    where the source cannot be run or its network computes something else than was recorded.
    """
    out = request.out
    if (out / "unet_ema").exists():
        raise RequestError(
            f"{out} holds the averaged weights of another checkpoint (unet_ema).",
            "Remove them, or name another folder.",
        )
    if out.exists() and not request.force and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} exists.", "Write over it with --force, or name another folder.")
    checkpoint = load_as_asked(request.source, request.files, request.trained)
    notify(report, checkpoint.provenance.notes)
    errors = _compare(checkpoint, request.source)
    if errors == {}:
        report(Notice(f"{CASES} holds nothing to compare this network with."))
    if errors:
        report(Notice(f"compared with {CASES}: relative error at most {max(errors.values()):.1e}."))
    notify(report, _differences(checkpoint))
    about = {"converted_from": checkpoint.provenance.record()}
    files = checkpoint_files(checkpoint, training=about, dtype=_DTYPES[request.weights_dtype])
    for name, content in files.items():
        write_bytes(out / name, content)
    return ConvertResult(out, describe(checkpoint), errors)


def _differences(checkpoint: Checkpoint) -> Iterator[str]:
    """Where diffusers by itself would run the folder differently."""
    patches = checkpoint.patches.settings()
    if patches:
        told = ", ".join(f"{key} = {value}" for key, value in patches.items())
        yield f"plain diffusers cannot run this network right: its config has no word for {told}."
    if checkpoint.num_classes is not None:
        yield "diffusers' pipelines pass no class labels: there, call the network itself."
    elif checkpoint.learned_variance:
        yield "diffusers' DDIMPipeline refuses a learned variance; its DDPMPipeline takes it."


def _compare(checkpoint: Checkpoint, source: str) -> dict[str, float] | None:
    """The relative error of every output recorded beside the source; None without a file of them.

    Recorded are `x_T` (N, C, H, W), labels `y` (N,) of class-conditional networks, and the raw
    output at timestep T as `out.tT` or `eps.tT`, that of unaveraged weights as `raw_eps.tT`.
    """
    path = local_path(source)
    cases = (path if path.is_dir() else path.parent) / CASES
    if not path.exists() or not cases.is_file():
        return None
    recorded = read_safetensors(cases, CASES)
    found = {key: match for key in recorded if (match := _OUTPUT.fullmatch(key))}
    is_raw = {key: match[1] == "raw_eps" for key, match in found.items()}
    raw = checkpoint.provenance.weights == "raw" and any(is_raw.values())
    outputs = {
        key: (int(match[2]), recorded[key]) for key, match in found.items() if is_raw[key] == raw
    }
    if not outputs or "x_T" not in recorded:
        return {}
    _check_cases(checkpoint, recorded["x_T"], [tensor for _, tensor in outputs.values()])
    errors = _errors(checkpoint, recorded, outputs)
    worst = max(errors, key=lambda key: errors[key])
    if not errors[worst] <= CASE_TOLERANCE:
        raise CheckpointError(
            f"the network does not compute what {CASES} records: {worst} is off by "
            f"{errors[worst]:.1e} of its size.",
            "Check what was said of the network, or take the cases away.",
        )
    return errors


def _check_cases(checkpoint: Checkpoint, x: Tensor, outputs: Sequence[Tensor]) -> None:
    """Refuse a stranger's cases that would take long, or are of another network."""
    channels, *size = checkpoint.sample_shape
    fits = x.ndim == 4 and len(x) <= _MOST_IMAGES and list(x.shape[1:]) == [channels, *size]
    given = channels * (2 if checkpoint.learned_variance else 1)
    alike = all(tensor.shape == (*x.shape[:1], given, *x.shape[2:]) for tensor in outputs if fits)
    if not (fits and alike and len(outputs) <= _MOST_CASES):
        raise CheckpointError(f"{CASES} does not fit the network.", "Take the cases away.")


def _errors(
    checkpoint: Checkpoint,
    recorded: Mapping[str, Tensor],
    outputs: Mapping[str, tuple[int, Tensor]],
) -> dict[str, float]:
    x, labels = recorded["x_T"].float(), recorded.get("y")
    errors = {}
    try:
        with torch.inference_mode(), ieee_float32():
            for key, (t, theirs) in outputs.items():
                ours = checkpoint.network(x, torch.full((len(x),), t), labels)
                errors[key] = float((ours - theirs).norm() / theirs.norm())
    except (RuntimeError, ValueError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{CASES} does not fit the network: {reason}.", "Take the cases away."
        ) from error
    return errors
