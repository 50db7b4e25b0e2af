"""What can be known without a CUDA device: the host waits for it nowhere, and nothing is mixed up."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from ddimctl.checkpoints import load_checkpoint
from ddimctl.jobs.events import ignore
from ddimctl.jobs.requests import SamplerOptions
from ddimctl.jobs.sample import sampler as decoding
from ddimctl.jobs.sample.batches import Group
from ddimctl.jobs.sample.plan import image_labels, make_plan, resolve_sampler
from ddimctl.jobs.train.request import TrainRequest
from ddimctl.jobs.train.run import open_run
from ddimctl.jobs.train.state import make_learner
from ddimctl.jobs.train.step import count_updates, update
from ddimctl.runtime.distributed import Ranks
from ddimctl.runtime.signals import stop_on_signals
from flat_requests import changed
from pretended_cuda import CUDA, pretended_cuda
from training_runs import make_images, make_network


class Shows:
    """Of a store, what a walk asks: an animation shows two images of every step."""

    def shown(self, images, index):
        return 2


@pytest.fixture
def network(tiny_class_checkpoint):
    """A checkpoint with classes, whatever it is said to predict."""

    def make(prediction="eps"):
        return replace(load_checkpoint(tiny_class_checkpoint), prediction=prediction)

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eta": 1.0, "guidance": 2.0, "clip": "dynamic"},
        {"variance": "large", "clip": "static"},
        {"solver": "ipndm"},
        {"solver": "dpm++2m", "guidance": 3.0},
    ],
)
@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_no_step_of_sampling_waits_for_the_device(monkeypatch, network, settings, prediction):
    checkpoint = network(prediction)
    options, seeds = SamplerOptions(steps=4, **settings), range(5)
    with pretended_cuda(monkeypatch) as copies:
        checkpoint.unet.to(CUDA, torch.bfloat16)
        copies.all.clear()
        copies.waited_for.clear()
        plan = make_plan(
            resolve_sampler(options, {}, checkpoint),
            checkpoint.sample_shape,
            seeds,
            image_labels(None, {}, checkpoint, seeds),
            precision="bf16",
            batch_size=4,
        )
        group = Group(range(4, 5), 4)  # the last one, padded
        walked = list(decoding._walk(plan, checkpoint, Shows(), group, CUDA))
    assert len(walked) == 4
    assert copies.waited_for == []
    assert copies.all.count("cuda to cpu, (1,)") == 4
    assert copies.all[-2:] == ["cuda to cpu, (1, 16, 16, 3)", "cuda to cpu, (1, 3, 16, 16)"]


class TwoRanks(Ranks):
    """The first of two processes; the other's loss and gradients are the same."""

    count = 2

    def __init__(self):
        super().__init__()
        self.averaged = []

    def average(self, tensor):
        self.averaged.append(tensor)

    def check(self, meanwhile=None):
        pass


@pytest.fixture
def opened(tmp_path):
    """A training run with classes, just begun, on the CPU."""
    images = make_images(tmp_path / "pictures")
    (tmp_path / "run").mkdir()
    request = TrainRequest(
        images, tmp_path / "run", model=str(make_network(tmp_path / "network.json")),
        steps=100, batch_size=8, grad_accum=2, class_conditional=True, flip=True, warmup=2,
        device="cpu",
    )  # fmt: skip
    with stop_on_signals() as stop:
        return open_run(request, stop, Ranks(), ignore)


def backward(run):
    """For Tensor.backward, which a torch without CUDA cannot do there: zeros as gradients."""

    def passes(loss):
        assert loss.device == run.device
        for weights in run.learner.unet.parameters():
            weights.grad = torch.zeros_like(weights)

    return passes


@pytest.mark.parametrize("weighting", ["simple", "min-snr"])
def test_no_update_waits_for_the_device(monkeypatch, opened, weighting):
    request = changed(opened.request, loss_weighting=weighting, batch_size=16)
    with pretended_cuda(monkeypatch) as copies, torch.no_grad():
        unet = opened.model.unet.to(CUDA)
        ranks = TwoRanks()
        learner = make_learner(unet, 0.0)
        learner.step = 3  # the first ones are waited for, to begin the average
        unet.no_sync = nullcontext  # as of DistributedDataParallel
        run = replace(opened, request=request, device=CUDA, learner=learner, ranks=ranks)
        assert run.micro_batch == 4
        monkeypatch.setattr(torch.Tensor, "backward", backward(run))
        update(run)  # after which the schedule lies on the device
        copies.all.clear()
        copies.waited_for.clear()
        update(run)
    assert copies.waited_for == []
    assert copies.all[-2:] == ["cuda to cpu, ()"] * 2
    assert [tensor.device for tensor in ranks.averaged] == [CUDA, CUDA]
    assert len(learner.under_way) == 2
    monkeypatch.setattr("pretended_cuda.Event.query", lambda self: True)
    with pytest.raises(DataDependentOutputException), pretended_cuda(monkeypatch):
        count_updates(run)  # which does read
