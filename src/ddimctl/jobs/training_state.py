"""What a training run is at one instant, and its way to disk and back."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ddimctl.errors import DataError
from ddimctl.files.atomic import open_atomic

KEPT_STATES: Final = 2

_Weights = tuple[Tensor, ...] | list[Tensor]


@dataclass
class Learner:
    """A network being trained.

    step: updates made. losses: sum of the losses since the last metrics record, and their count.
    skipped: updates left out because the gradient was not finite, in all and just now.
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


def make_learner(unet: nn.Module, ema_decay: float, weight_decay: float) -> Learner:
    """AdamW and an exponential moving average, whose decay warms up as (1 + k) / (10 + k)."""

    def average(shadow: _Weights, weights: _Weights, count: Tensor | int) -> None:
        count = torch.as_tensor(count)
        decay = ((1 + count) / (10 + count)).clamp(max=ema_decay).to(weights[0].device)
        change = torch._foreach_sub(weights, shadow)
        torch._foreach_mul_(change, 1 - decay)
        torch._foreach_add_(shadow, change)

    ema = AveragedModel(unet, multi_avg_fn=average)
    ema.eval()
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=weight_decay, fused=True)
    return Learner(unet, ema, optimizer)


def save_state(folder: Path, learner: Learner, identity: dict[str, Any], fingerprint: str) -> None:
    """Write folder/step-NNNNNNNN.pt and remove all but the newest states."""
    content = {
        "format_version": 1,
        "step": learner.step,
        "skipped": learner.skipped,
        "loss_sum": learner.loss_sum,
        "loss_count": learner.loss_count,
        "metrics": learner.metrics,
        "unet": learner.unet.state_dict(),
        "ema": learner.ema.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "identity": identity,
        "data": fingerprint,
    }
    with open_atomic(folder / f"step-{learner.step:08d}.pt") as file:
        torch.save(content, file)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT_STATES]:
        old.unlink()


def newest_state(folder: Path) -> dict[str, Any] | None:
    """The content of the newest state in the folder, on the CPU; None where there is none."""
    found = sorted(folder.glob("step-*.pt"))
    if not found:
        return None
    try:
        state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{found[-1]} is damaged: {error}.", "Remove it to go on from the state before it."
        ) from error
    return state


def remove_states(folder: Path) -> None:
    """Forget the states of an earlier run."""
    for old in folder.glob("step-*.pt"):
        old.unlink()


def restore(learner: Learner, state: dict[str, Any]) -> None:
    """Put a saved state back, bit for bit."""
    learner.unet.load_state_dict(state["unet"])
    learner.ema.load_state_dict(state["ema"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.step = state["step"]
    learner.skipped = state["skipped"]
    learner.loss_sum = state["loss_sum"]
    learner.loss_count = state["loss_count"]
    learner.metrics = state["metrics"]
