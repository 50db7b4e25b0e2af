"""Convolutions whose weights stay in the order in which the CPU's library multiplies them."""

import platform
from typing import Any, Final

import torch
from torch import Tensor, nn

_MACHINES: Final = ("x86_64", "AMD64")  # those on which it was measured


def can_pack(network: nn.Module) -> bool:
    """Whether pack_convolutions is for this network: float32, on a CPU whose torch has oneDNN."""
    weight = next(network.parameters())
    return (
        (weight.device.type, weight.dtype) == ("cpu", torch.float32)
        and platform.machine() in _MACHINES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def pack_convolutions(network: nn.Module) -> None:
    """Let each convolution bring its weights into the library's order once, not in each evaluation.

    That took a fifth of an evaluation of one picture. The order depends on the input's size, so a
    convolution's first input decides it; the output's bits do not depend on it. The network then
    only evaluates: it cannot be trained, copied or compiled.
    """
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.padding_mode == "zeros"
            and isinstance(module.padding, tuple)
        ):
            module.__class__ = _PackedConv2d


class _PackedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W), in channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        how: Any = (self.padding, self.stride, self.dilation, self.groups)
        if not self.weight.is_mkldnn:
            packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape)
            self.weight = nn.Parameter(packed, requires_grad=False)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *how, "none", [], ""
        )
        return output
