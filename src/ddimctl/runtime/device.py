"""Which device to run on, and in what precision and memory format."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from ddimctl.errors import DeviceError, RequestError
from ddimctl.runtime.onednn import can_pack, use_onednn

PRECISIONS: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# How a RuntimeError says it: the CPU's allocator, cuBLAS and cuDNN, CUDA outside torch's own, and
# the compiler's errors, which quote that of torch.
_OUT_OF_MEMORY: Final = (
    "DefaultCPUAllocator",
    "_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
    "CUDA out of memory",
)


def resolve_device(name: str) -> torch.device:
    """auto is CUDA where there is one, else the CPU. A CUDA device that is named by its number
    becomes the current one. Raises DeviceError, RequestError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"unknown device '{name}'.", "Choose auto, cpu, cuda or cuda:INDEX.")
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "has no CUDA device" if torch.version.cuda else "has a torch built without CUDA"
        raise DeviceError(f"--device {name}: this machine {built}.", "Use --device cpu.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name}: this machine has {torch.cuda.device_count()} CUDA device(s).",
            "Count from cuda:0.",
        )
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # pinned memory, events and compiled kernels are of that one
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """auto is bf16 on CUDA devices that have it, else fp32. Raises RequestError."""
    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    if name not in PRECISIONS:
        raise RequestError(f"unknown precision '{name}'.", f"Choose auto, {', '.join(PRECISIONS)}.")
    if name == "fp16" and device.type == "cpu":
        raise RequestError("fp16 runs on CUDA only.", "Use --precision fp32 or bf16.")
    return name


def device_name(device: torch.device) -> str:
    """The device in words for a manifest, such as "cpu" or "NVIDIA H200"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def one_shape(device: torch.device) -> Iterator[None]:
    """Within, most calls of a network have one shape, so on CUDA it pays to try out which of cuDNN's
    kernels are fastest; not after make_deterministic, since the choice differs from run to run.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def make_deterministic() -> None:
    """Choose kernels that give the same bytes each time, at some cost in speed on CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def prepare_for_inference(network: nn.Module, *, compiled: bool = False) -> None:
    """Evaluation mode, no gradients, and the memory format in which convolutions are fastest.

    compiled: the network will be, which then lays its weights out itself.
    """
    network.eval().requires_grad_(False)
    if can_pack(network) and not compiled:
        use_onednn(network)
    else:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def prepare_for_training(network: nn.Module, device: torch.device) -> nn.Module:
    """Training mode, on the device, in the memory format that its gradients are fastest in.

    That is channels_last on CUDA; on CPUs the backward pass in it took a fifth longer.
    """
    network.train().requires_grad_(True).to(device)
    if device.type == "cuda":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def to_training_format(batch: Tensor) -> Tensor:
    """A batch (N, C, H, W) in the memory format of prepare_for_training."""
    channels_last = batch.device.type == "cuda"
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    return batch.contiguous(memory_format=wanted)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def free_memory(device: torch.device) -> None:
    """Give back what an exception on its way and the device's allocator still held."""
    if "torch._dynamo" in sys.modules:  # CUDA graphs keep the memory that they were captured in
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Within, a device that runs out of memory is a DeviceError with this remedy."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError("the device is out of memory.", remedy) from error
