"""What tensors, seeds and labels may be beside a checkpoint."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddimctl.api.arguments import instance, whole
from ddimctl.diffusion.predictions import Model
from ddimctl.diffusion.timesteps import explicit_timesteps
from ddimctl.errors import DataError, RequestError, brief

Integers = Sequence[int] | Tensor


def floats(name: str, value: Any, *, dims: int | None = None) -> Tensor:
    """A finite tensor, float32 or float64, not empty; dims 4: (N, C, H, W), 3: (C, H, W)."""
    if not isinstance(value, Tensor):
        raise RequestError(f"{name} must be a tensor, not {brief(value)}.")
    if value.dtype not in (torch.float32, torch.float64):
        raise RequestError(f"{name} must be float32, not {value.dtype}.", f"Pass {name}.float().")
    if dims is not None and value.ndim != dims:
        wanted = "(N, C, H, W)" if dims == 4 else "(C, H, W)"
        remedy = f"Pass {name}[None]." if value.ndim == dims - 1 else ""
        raise RequestError(f"{name} must be {wanted}, not {tuple(value.shape)}.", remedy)
    if not value.numel():
        raise RequestError(f"{name} is empty: {tuple(value.shape)}.")
    if not value.is_meta and not bool(value.isfinite().all()):
        raise DataError(f"{name} has values that are not finite.")
    return value


def batch(name: str, value: Any, model: Model) -> Tensor:
    """(N, C, H, W) as the model's network takes it, on its device."""
    for attribute in ("network", "schedule", "prediction"):
        if not hasattr(model, attribute):
            raise RequestError(
                f"ckpt must be a checkpoint, not {brief(model)}.", "Use ddimctl.load_checkpoint."
            )
    x = floats(name, value, dims=4)
    device = getattr(model, "device", x.device)
    if x.device != device:
        raise RequestError(
            f"{name} is on {x.device}, the checkpoint on {device}.",
            f"Pass {name}.to(ckpt.device), or move the checkpoint with ckpt.to.",
        )
    shape = getattr(model, "sample_shape", x.shape[1:])
    divisor = getattr(model, "size_divisor", 1)
    if x.shape[1] != shape[0] or any(side % divisor for side in x.shape[2:]):
        sides = f" and sides that are multiples of {divisor}" * (divisor > 1)
        raise RequestError(
            f"{name} is {tuple(x.shape)}; this checkpoint takes (N, {shape[0]}, H, W){sides}.",
            f"It was trained with {tuple(shape)}.",
        )
    return x


def visited(timesteps: Any, model: Model) -> tuple[int, ...]:
    """The timesteps in ascending order."""
    T = model.schedule.num_train_timesteps
    return explicit_timesteps(integers("timesteps", timesteps, 0, T - 1), T)


def integers(name: str, values: Any, low: int, high: int = 2**63 - 1) -> list[int]:
    """Whole numbers in [low, high], from a sequence or a tensor (N,)."""
    if isinstance(values, Tensor):
        if values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool:
            raise RequestError(
                f"{name} must be whole numbers (N,), not {tuple(values.shape)} {values.dtype}."
            )
        values = values.tolist()
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise RequestError(f"{name} must be a list of whole numbers, not {brief(values)}.")
    return [whole(f"each of {name}", value, low, high) for value in values]


def classes(labels: Any, x: Tensor, model: Model) -> Tensor | None:
    """Labels (N,), int64, on the device of x (N, C, H, W). Raises RequestError for a label that the
    checkpoint does not have, and where it needs one and there is none.
    """
    count, null = getattr(model, "num_classes", None), model.null_class
    if labels is None:
        if count is not None and null is None:
            raise RequestError("this checkpoint needs labels.", "Pass labels=, one for each image.")
        return None
    if count is None and hasattr(model, "num_classes"):
        raise RequestError("this checkpoint knows no classes.", "Leave labels out.")
    found = integers("labels", labels, 0)
    if len(found) != len(x):
        raise RequestError(f"labels are {len(found)}, the images {len(x)}.", "Pass one for each.")
    for label in found:
        if count is not None and label >= count and label != null:
            raise RequestError(
                f"this checkpoint has no class {label}.", f"It has 0 to {count - 1}."
            )
    return torch.tensor(found, dtype=torch.int64, device=x.device)


def device_of(device: Any) -> torch.device:
    """The device that a name stands for. Raises DeviceError, RequestError."""
    from ddimctl.runtime.device import resolve_device

    instance("device", device, (str, torch.device), "a name such as 'cuda'")
    return resolve_device(str(device))
