"""What a training run is at one instant, and its way to disk and back."""

import hashlib
import math
import struct
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddimctl.errors import DataError
from ddimctl.files.atomic import open_atomic, storage_errors
from ddimctl.files.own_output import remove_files
from ddimctl.files.untrusted.guards import Refused, check_regular, damaged, reason, refusals
from ddimctl.files.untrusted.reader import read_torch
from ddimctl.files.untrusted.settings import JsonObject, check_format_version
from ddimctl.runtime.transfer import ToHost

KEPT_STATES: Final = 2
FORMAT_VERSION: Final = 2
_MAX_PICKLE: Final = 2**30  # bytes; a record of the metrics takes about 100
# Behind the zip of torch.save, whose own checksums leave out its directory.
_SEAL: Final = struct.Struct("<8s32s")  # magic, sha256 of everything before
_MAGIC: Final = b"ddimstat"
_COUNTS: Final = ("step", "skipped", "skipped_in_a_row", "loss_count")
_PLAIN: Final = (*_COUNTS, "loss_sum", "metrics")
_MODULES: Final = ("unet", "ema", "optimizer")
_ANOTHER: Final = "Use the version of ddimctl that started the run, or start again with --force."


@dataclass
class Learner:
    """A network being trained.

    step: updates made. losses: sum of the losses since the last metrics record, and their count.
    skipped: updates left out because the gradient was not finite, in all and just now.
    under_way: (loss, whether the update was finite) of the last updates, which are not yet counted.
    """

    unet: nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    metrics: list[JsonObject] = field(default_factory=list)
    under_way: deque[ToHost] = field(default_factory=deque)


def make_learner(unet: nn.Module, weight_decay: float) -> Learner:
    """AdamW and an average of the weights, on the network's device."""
    ema = AveragedModel(unet)
    ema.n_averaged = ema.n_averaged.to(next(unet.parameters()).device)
    ema.eval()
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=weight_decay, fused=True)
    return Learner(unet, ema, optimizer)


@torch.no_grad()
def average(learner: Learner, ema_decay: float, finite: Tensor) -> None:
    """Let the exponential moving average follow the weights, where finite, a bool on their device.

    Its decay warms up as (1 + k) / (10 + k), k being the updates that it has followed. Unlike
    AveragedModel's own, no number of it is looked at by the host.
    """
    shadow, weights = _both(learner)
    count = learner.ema.n_averaged
    decay = ((1 + count) / (10 + count)).clamp(max=ema_decay)
    change = torch._foreach_sub(weights, shadow)
    torch._foreach_mul_(change, (1 - decay) * finite)
    torch._foreach_add_(shadow, change)
    count += finite


@torch.no_grad()
def begin_average(learner: Learner) -> None:
    """Let the average begin with the weights as they are, after the first update."""
    torch._foreach_copy_(*_both(learner))
    learner.ema.n_averaged += 1


def _both(learner: Learner) -> tuple[list[Tensor], list[Tensor]]:
    """The averaged weights and the weights."""
    return list[Tensor](learner.ema.module.parameters()), list[Tensor](learner.unet.parameters())


def save_state(folder: Path, learner: Learner, run: JsonObject) -> None:
    """Write folder/step-NNNNNNNN.pt, then remove what is older than the state before it.

    run: what the state belongs to, plain values. Raises StorageError, with the earlier states kept.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "run": run,
        **{name: getattr(learner, name) for name in _PLAIN},
        **{name: getattr(learner, name).state_dict() for name in _MODULES},
    }
    with open_atomic(_path(folder, learner.step)) as file:
        hashed = _HashedFile(file)
        try:
            torch.save(content, cast(BinaryIO, hashed))
        except RuntimeError as error:
            # torch.save puts an error of its own in front of a second Ctrl-C
            if isinstance(error.__context__, KeyboardInterrupt | SystemExit):
                raise error.__context__ from None
            raise
        file.write(_SEAL.pack(_MAGIC, hashed.sha256.digest()))
    # A damaged state of a later step does not count as one of those kept.
    older = [step for step in saved_steps(folder) if step <= learner.step]
    for step in older[:-KEPT_STATES]:
        _remove(_path(folder, step))


def load_newest_state(folder: Path) -> tuple[JsonObject | None, list[str]]:
    """The newest state that is whole, on the CPU, and what is wrong with those newer than it.

    None where there is no state at all. Raises DataError when all are damaged, or one is of
    another format; nothing is removed.
    """
    problems: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = _path(folder, step)
        try:
            return _read(path), problems
        except Refused as refused:
            problems.append(f"{path} {refused.cause}")
        except OSError as error:
            problems.append(f"{path} cannot be read: {reason(error)}.")
    if problems:
        raise DataError(
            f"no state in {folder} is whole. {' '.join(problems)}",
            "Put a copy of one back, or start again with --force.",
        )
    return None, []


def saved_steps(folder: Path) -> list[int]:
    """The steps of which there are states, whole or not, ascending."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.pt"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_states(folder: Path) -> None:
    """Forget the states of an earlier run."""
    remove_files(folder.parent, [_path(folder, step) for step in saved_steps(folder)])


def restore(learner: Learner, state: JsonObject) -> None:
    """Put a saved state back, bit for bit. Raises DataError where it is of another network."""
    saved, weights = state["optimizer"], list[Tensor](learner.unet.parameters())
    # its settings are the request's, but for the learning rate of the last update
    groups = learner.optimizer.state_dict()["param_groups"]
    try:
        if not _fit(saved.get("state"), weights):
            raise ValueError("the moments are of other weights")
        groups[0]["lr"] = float(saved["param_groups"][0]["lr"])
        parts = state | {"optimizer": {"state": saved["state"], "param_groups": groups}}
        for name in _MODULES:
            getattr(learner, name).load_state_dict(parts[name])
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"the state of step {state['step']} is of another network.", _ANOTHER
        ) from error
    for name in _PLAIN:
        setattr(learner, name, state[name])


def _fit(moments: Any, weights: list[Tensor]) -> bool:
    """Whether they are AdamW's of these weights, by number; unused weights have none."""
    return isinstance(moments, dict) and all(
        _is_count(number)
        and number < len(weights)
        and isinstance(kept, dict)
        and kept.keys() == {"step", "exp_avg", "exp_avg_sq"}
        and all(isinstance(tensor, Tensor) for tensor in kept.values())
        and kept["step"].shape == ()
        and kept["exp_avg"].shape == kept["exp_avg_sq"].shape == weights[number].shape
        for number, kept in moments.items()
    )


class _HashedFile:
    """A file that hashes what it is given to write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _read(path: Path) -> JsonObject:
    """Raises Refused where the file is damaged, DataError where its content is another's."""
    check_regular(path)
    with path.open("rb") as file:
        _check_seal(file, path.stat().st_size - _SEAL.size)
    with refusals(f"{path} is not a state of ddimctl train: it", DataError, _ANOTHER):
        state = read_torch(path, behind=_SEAL.size, max_pickle=_MAX_PICKLE)
    if isinstance(state, dict):
        with refusals(str(path), DataError, _ANOTHER):
            check_format_version(state, FORMAT_VERSION)
    if not isinstance(state, dict) or not _is_state(state):
        raise DataError(f"{path} is not a state of ddimctl train.", _ANOTHER)
    return dict(state)


def _is_state(found: JsonObject) -> bool:
    """Whether all that is read of a state is there and of the right type."""
    run, metrics = found.get("run"), found.get("metrics")
    return (
        all(_is_count(found.get(name)) for name in _COUNTS)
        and type(found.get("loss_sum")) is float
        and all(isinstance(found.get(name), dict) for name in _MODULES)
        and isinstance(metrics, list)
        and all(isinstance(record, dict) and _is_record(record) for record in metrics)
        and isinstance(run, dict)
        and _is_count(run.get("steps"))
        and all(_has_names(run.get(name)) for name in ("settings", "network", "data"))
        and all(_is_count(run["data"].get(name)) for name in ("pictures", "held_out"))
        and isinstance(run["data"].get("fingerprint"), str)
        and _is_count(run.get("processes", 1))
    )


def _is_record(record: dict[Any, Any]) -> bool:
    return (
        _has_names(record)
        and _is_count(record.get("step"))
        and all(
            value is None or (type(value) in (int, float) and math.isfinite(value))
            for value in record.values()
        )
    )


def _has_names(values: Any) -> bool:
    return isinstance(values, dict) and all(type(name) is str for name in values)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_seal(file: BinaryIO, length: int) -> None:
    """Raise Refused unless the file's first bytes have the hash that follows them."""
    if length < 0:
        raise damaged("it is cut short")
    sha256 = hashlib.sha256()
    left = length
    while left and (block := file.read(min(left, 2**20))):
        sha256.update(block)
        left -= len(block)
    magic, digest = _SEAL.unpack(file.read(_SEAL.size))
    if magic != _MAGIC:
        raise damaged("it has no checksum at its end, so it is cut short or not of this version")
    if digest != sha256.digest():
        raise damaged("its content does not have its checksum")


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _remove(path: Path) -> None:
    with storage_errors(path):
        path.unlink()
