"""Mixed precision in training: products in bf16, of weights and sums in float32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddimctl.runtime.device import PRECISIONS


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Within, a float32 network computes its products in the precision, unless that is fp32."""
    if precision == "fp32":
        yield
        return
    with torch.autocast(device.type, PRECISIONS[precision]):
        if device.type != "cpu":
            yield
            return
        with _WideAttention():
            yield


class _WideAttention(TorchFunctionMode):
    """Within, attention is computed in float32.

    On CPUs the backward pass of the same in bf16 takes twenty times as long, a sixth of all training.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(_wide, args), **named)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
