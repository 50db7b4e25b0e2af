"""What a training run is at one instant, and its way to disk and back."""

import hashlib
import pickle
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
from ddimctl.runtime.transfer import ToHost

KEPT_STATES: Final = 2
FORMAT_VERSION: Final = 2
# After the zip of torch.save: torch.load checks none of the zip's own CRCs.
_SEAL: Final = struct.Struct("<8s32s")  # magic, sha256 of everything before
_MAGIC: Final = b"ddimstat"
_PLAIN: Final = ("step", "skipped", "skipped_in_a_row", "loss_sum", "loss_count", "metrics")
_MODULES: Final = ("unet", "ema", "optimizer")


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
    metrics: list[dict[str, Any]] = field(default_factory=list)
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


def save_state(folder: Path, learner: Learner, run: dict[str, Any]) -> None:
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


def load_newest_state(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest state that is whole, on the CPU, and what is wrong with those newer than it.

    None where there is no state at all. Raises DataError when all are damaged, or one is of
    another format; nothing is removed.
    """
    damaged: list[str] = []
    for step in reversed(saved_steps(folder)):
        path = _path(folder, step)
        try:
            return _read(path), damaged
        except (_Damaged, OSError) as error:
            damaged.append(f"{path} is damaged: {error}.")
    if damaged:
        raise DataError(
            f"no state in {folder} is whole. {' '.join(damaged)}",
            "Put a copy of one back, or begin again with --force.",
        )
    return None, []


def saved_steps(folder: Path) -> list[int]:
    """The steps of which there are states, whole or not, ascending."""
    names = (path.stem.removeprefix("step-") for path in folder.glob("step-*.pt"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_states(folder: Path) -> None:
    """Forget the states of an earlier run."""
    for step in saved_steps(folder):
        _remove(_path(folder, step))


def restore(learner: Learner, state: dict[str, Any]) -> None:
    """Put a saved state back, bit for bit."""
    for name in _MODULES:
        getattr(learner, name).load_state_dict(state[name])
    for name in _PLAIN:
        setattr(learner, name, state[name])


class _Damaged(Exception):  # noqa: N818, never seen outside
    """Why a state cannot be trusted."""


class _HashedFile:
    """A file that hashes what it is given to write."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        _check_seal(file, path.stat().st_size - _SEAL.size)
        file.seek(0)
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise DataError(f"{path} is not a state of ddimctl train.") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has the format version {version}, not {FORMAT_VERSION}.",
            "Go on with the version of ddimctl that began the run, or begin again with --force.",
        )
    return state


def _check_seal(file: BinaryIO, length: int) -> None:
    """Raise _Damaged unless the file's first bytes have the hash that follows them."""
    if length < 0:
        raise _Damaged("it is cut short")
    sha256 = hashlib.sha256()
    left = length
    while left and (block := file.read(min(left, 2**20))):
        sha256.update(block)
        left -= len(block)
    magic, digest = _SEAL.unpack(file.read(_SEAL.size))
    if magic != _MAGIC:
        raise _Damaged("it has no checksum at its end, so it is cut short or not of this version")
    if digest != sha256.digest():
        raise _Damaged("its content does not have its checksum")


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _remove(path: Path) -> None:
    with storage_errors(path):
        path.unlink()
