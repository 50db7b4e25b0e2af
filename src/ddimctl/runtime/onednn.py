"""Convolutions whose weights stay in the order in which oneDNN multiplies them, and linear layers
that it multiplies, too."""

import platform
from typing import Any, Final

import torch
from torch import Tensor, nn

_MACHINES: Final = ("x86_64", "AMD64")  # those on which it was measured


def can_pack(network: nn.Module) -> bool:
    """Whether use_onednn is for this network: float32, on a CPU whose torch has oneDNN."""
    weight = next(network.parameters())
    return (
        (weight.device.type, weight.dtype) == ("cpu", torch.float32)
        and platform.machine() in _MACHINES
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def use_onednn(network: nn.Module) -> None:
    """Pack the convolutions, and let linear layers multiply by the same library, which on AMD's
    processors does so twice as fast as torch's usual one.

    From then on the network only evaluates: it cannot be trained, copied or compiled.
    """
    pack_convolutions(network)
    for module in network.modules():
        if type(module) is nn.Linear:
            module.__class__ = _OneDnnLinear


def pack_convolutions(network: nn.Module) -> None:
    """Bring the convolutions' weights into the library's order once, not in each evaluation.

    That took a fifth of an evaluation of one image. The order depends on the inputs' sizes, so
    the network's first input decides it; the outputs' bits do not depend on it.
    """

    def pack(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        hook.remove()
        sizes = _input_sizes(network, given, named)
        for convolution, size in sizes.items():
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                convolution.weight, *_settings(convolution), size
            )
            convolution.weight = nn.Parameter(packed, requires_grad=False)
            convolution.__class__ = _PackedConv2d

    hook = network.register_forward_pre_hook(pack, with_kwargs=True)


def _input_sizes(
    network: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> dict[nn.Conv2d, tuple[int, ...]]:
    """(N, C, H, W) by convolution that these arguments reach, from a pass of one image without products.

    A pass ahead of the first evaluation, since weights that are packed during it come to lie
    between its outputs, and what is freed around them is too narrow to be used again.
    """
    convolutions = [
        module
        for module in network.modules()
        if type(module) is nn.Conv2d
        and module is not network  # whose forward is already on its way
        and module.padding_mode == "zeros"
        and isinstance(module.padding, tuple)
    ]
    for module in convolutions:
        module.__class__ = _SizingConv2d
    try:
        network.forward(
            *map(_first, given), **{name: _first(value) for name, value in named.items()}
        )
        count = len(given[0])
        return {
            module: (count, *module.__dict__.pop("size"))
            for module in convolutions
            if "size" in module.__dict__
        }
    finally:
        for module in convolutions:
            module.__class__ = nn.Conv2d


def _first(argument: Any) -> Any:
    if isinstance(argument, dict):
        return {name: _first(value) for name, value in argument.items()}
    return argument[:1] if isinstance(argument, Tensor) and argument.ndim else argument


def _settings(module: nn.Conv2d) -> tuple[Any, ...]:
    return module.padding, module.stride, module.dilation, module.groups


class _SizingConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """Zeros (N, C, H, W) in the shape of the convolution's output; x's shape is kept as size."""
        self.size = x.shape[1:]
        padding: Any = self.padding
        settings = zip(padding, self.dilation, self.kernel_size, self.stride, strict=True)
        shape = [
            (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for side, (pad, dilation, kernel, stride) in zip(x.shape[2:], settings, strict=True)
        ]
        return x.new_zeros(len(x), self.out_channels, *shape)


class _OneDnnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear's, of x (..., in_features)."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return output


class _PackedConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x (N, C, H, W), in channels_last."""
        x = x.contiguous(memory_format=torch.channels_last)
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *_settings(self), "none", [], ""
        )
        return output
