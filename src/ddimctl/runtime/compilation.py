"""torch.compile: for batches of one shape, and what to say where it cannot work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ddimctl.errors import DeviceError
from ddimctl.runtime.device import is_out_of_memory


def compile_for_inference(network: nn.Module, device: torch.device) -> None:
    """Have the network compiled at its first call, once for each shape that it is called with.

    On CUDA a call then replays a graph of kernels, and the next call writes over its output.
    """
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    network.compile(mode=mode, dynamic=False)


def compile_for_training(network: nn.Module) -> None:
    """The same without CUDA graphs: the gradients of several passes would lie in their memory."""
    network.compile(dynamic=False)


@contextmanager
def compile_errors() -> Iterator[None]:
    """Within, a compiler that is missing or fails is a DeviceError; a lack of memory stays as it is."""
    try:
        yield
    except RuntimeError as error:
        compiling = type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))
        if not compiling or is_out_of_memory(error):
            raise
        lines = str(error).strip().splitlines()
        raise DeviceError(
            f"--compile: {lines[0] if lines else type(error).__name__}", "Leave --compile out."
        ) from error
