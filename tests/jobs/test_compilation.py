"""A compiled network: one compilation for a whole run, no breaks, and buffers that are used again."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from ddimctl.api.sampling import sample
from ddimctl.checkpoints import load_checkpoint
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.errors import DeviceError
from ddimctl.jobs.sample.job import sample as sample_job
from ddimctl.runtime import device as devices
from ddimctl.runtime.compilation import compile_errors, compile_for_inference
from ddimctl.runtime.device import free_memory
from flat_requests import sample_request

CPU = torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch):
    """The calls of Module.compile, for which the graph is only counted, and the counter."""
    from torch._dynamo.testing import CompileCounter

    counter, asked, compile = CompileCounter(), [], nn.Module.compile

    def counted(self, **named):
        asked.append(named)
        named = {key: value for key, value in named.items() if key != "mode"}
        return compile(self, backend=counter, fullgraph=True, **named)

    monkeypatch.setattr(nn.Module, "compile", counted)
    torch._dynamo.reset()
    yield asked, counter
    torch._dynamo.reset()


def load_file(path):
    return torch.load(path, weights_only=True)["samples"]


@pytest.mark.parametrize(
    ("prediction", "settings"),
    [
        ("eps", {"eta": 1.0}),
        ("x_0", {"classes": ("1",), "guidance": 2.0}),
        ("v", {"solver": "ipndm", "classes": ("5",)}),
    ],
)
def test_one_graph_for_all_steps_and_the_last_smaller_batch(
    finish, compiled, tiny_class_checkpoint, tmp_path, monkeypatch, prediction, settings
):
    asked, counter = compiled
    loaded = load_checkpoint
    monkeypatch.setattr(
        "ddimctl.jobs.checkpoint.load_checkpoint",
        lambda *given, **named: replace(loaded(*given, **named), prediction=prediction),
    )
    # a compiled network keeps torch's linear layers, so the other does, too
    monkeypatch.setattr("ddimctl.runtime.device.can_pack", lambda network: False)
    for out, compile in (("eager", False), ("compiled", True)):
        request = sample_request(
            out=tmp_path / out, ckpt=str(tiny_class_checkpoint), steps=4, seeds=tuple(range(5)),
            batch_size=2, compile=compile, device="cpu", save=("samples",), **settings,
        )  # fmt: skip
        finish(sample_job, request)
    assert asked == [{"mode": "default", "dynamic": False}]
    assert counter.frame_count == 1
    assert counter.op_count > 100
    samples = [load_file(tmp_path / out / "samples.pt") for out in ("eager", "compiled")]
    assert torch.equal(*samples)


def test_cuda_replays_graphs(compiled):
    compile_for_inference(nn.Linear(1, 1), torch.device("cuda:0"))
    assert compiled[0] == [{"mode": "reduce-overhead", "dynamic": False}]


class OneBuffer(nn.Module):
    """A network whose output always lies in the same memory, as in a CUDA graph."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.output = unet, None

    def forward(self, *given, **named):
        found = self.unet(*given, **named)[0]
        self.output = found if self.output is None else self.output.copy_(found)
        return (self.output,)


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "dpm++2m"])
def test_an_output_that_the_next_call_writes_over(tiny_checkpoint, solver):
    checkpoint = load_checkpoint(tiny_checkpoint)
    x_T = seeded_noise(range(2), checkpoint.sample_shape)
    settings = {"timesteps": [0, 200, 500, 999], "solver": solver}
    expected = sample(checkpoint, x_T, **settings)
    reused = replace(checkpoint, unet=OneBuffer(checkpoint.unet))
    assert torch.equal(sample(reused, x_T, **settings), expected)


def test_a_compiler_that_fails():
    from torch._inductor.exc import CppCompileError

    with (
        pytest.raises(DeviceError, match=r"--compile: C\+\+ compile error") as failed,
        compile_errors(),
    ):
        raise CppCompileError(["c++"], "no such file")
    assert failed.value.remedy == "Leave --compile out."
    with pytest.raises(ValueError, match="a bug"), compile_errors():
        raise ValueError("a bug")


def test_a_lack_of_memory_while_compiling_is_one():
    from torch._inductor.exc import CppCompileError

    error = CppCompileError(["c++"], "CUDA out of memory. Tried to allocate 2 GiB.")
    with pytest.raises(CppCompileError) as failed, compile_errors():
        raise error
    assert devices.is_out_of_memory(failed.value)


def test_memory_of_graphs_is_given_back(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", object())
    calls = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: calls.append(1))
    free_memory(CPU)
    assert calls == [1]
