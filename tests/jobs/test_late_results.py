"""Results that reach the host two steps late, as on CUDA, change nothing that is written."""

import json
from dataclasses import replace

import pytest
import torch

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import NumericsError
from ddimctl.jobs.sample import sampler as decoding
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.store import SampleStore
from ddimctl.jobs.train import step as training_update
from ddimctl.jobs.train.job import train
from ddimctl.jobs.train.request import TrainRequest
from ddimctl.runtime.transfer import ToHost
from flat_requests import sample_request
from forks import contents
from training_runs import assert_same_run, last_state, make_images, make_network


class Late(ToHost):
    """There when it is waited for, and not before."""

    def are_there(self):
        return False

    def tensors(self, check=lambda: None):
        return self._copies


@pytest.fixture
def request_for(tmp_path, tiny_checkpoint):
    def make(out, **settings):
        settings = {"steps": 4, "seeds": tuple(range(7)), "batch_size": 3} | settings
        save = ("grid", "images", "latents", "samples", "trajectory")
        return sample_request(out=tmp_path / out, ckpt=str(tiny_checkpoint), save=save, **settings)

    return make


def test_sampling(finish, request_for, tmp_path, monkeypatch):
    in_time = finish(sample, request_for("in-time", eta=1.0))
    monkeypatch.setattr(decoding, "ToHost", Late)
    order = []
    keep, network = (
        SampleStore.keep,
        type(load_checkpoint(request_for("x").checkpoint.ckpt)).network,
    )
    monkeypatch.setattr(SampleStore, "keep", lambda *given: order.append("keep") or keep(*given))
    monkeypatch.setattr(
        "ddimctl.checkpoints.model.Checkpoint.network",
        lambda *given: order.append("step") or network(*given),
    )
    late = finish(sample, request_for("late", eta=1.0))
    assert order == [*["step"] * 6, "keep", *["step"] * 4, "keep", *["step"] * 2, "keep"]
    assert contents(tmp_path / "late") == contents(tmp_path / "in-time")
    assert [event.done for event in late.events if hasattr(event, "done")] == [
        event.done for event in in_time.events if hasattr(event, "done")
    ]


class Full(torch.nn.Module):
    """A network that has no room for three images from its sixth call on."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.calls = unet, 0

    def forward(self, x, *given, **named):
        self.calls += 1
        if len(x) > 1 and self.calls > 5:
            raise torch.OutOfMemoryError("no room")
        return self.unet(x, *given, **named)


def test_a_batch_for_which_there_is_no_memory(finish, request_for, tmp_path, monkeypatch):
    """Its own steps under way are dropped, those of the batch before it are taken in."""

    def opened(*given, **named):
        checkpoint = load_checkpoint(request_for("x").checkpoint.ckpt)
        return replace(checkpoint, unet=Full(checkpoint.unet))

    monkeypatch.setattr("ddimctl.jobs.checkpoint.open_checkpoint", opened)
    in_time = finish(sample, request_for("in-time"))
    monkeypatch.setattr(decoding, "ToHost", Late)
    late = finish(sample, request_for("late"))
    assert contents(tmp_path / "late") == contents(tmp_path / "in-time")
    record = json.loads((tmp_path / "late/manifest.json").read_text())
    assert record["smaller_batches"] == [[3, 1]]
    last = [next(e for e in reversed(run.events) if hasattr(e, "done")) for run in (in_time, late)]
    assert (last[0].done, last[0].total, last[0].facts) == (20, 20, {"images": "7/7"})
    assert (last[1].done, last[1].total, last[1].facts) == (20, 20, {"images": "7/7"})


@pytest.fixture
def training(tmp_path):
    def make(out, **settings):
        settings = {
            "steps": 9, "batch_size": 4, "warmup": 2, "ema": 0.9, "save_every": 4,
            "sample_every": 9, "log_every": 3, "device": "cpu",
        } | settings  # fmt: skip
        images = tmp_path / "pictures"
        if not images.exists():
            make_images(images)
        model = str(make_network(tmp_path / "network.json"))
        return TrainRequest(data=images, out=tmp_path / out, model=model, **settings)

    return make


@pytest.fixture
def broken(monkeypatch):
    """broken(steps): the gradients of those updates are not finite."""
    original = training_update.make_batch

    def install(steps):
        def make_batch(request, data, model, first, *given):
            batch = original(request, data, model, first, *given)
            bad = first // request.batch_size in steps
            return batch._replace(eps=batch.eps * float("nan")) if bad else batch

        monkeypatch.setattr(training_update, "make_batch", make_batch)

    return install


@pytest.mark.parametrize("skipped", [(), (0,), (0, 1, 2, 3), (3, 4, 8)])
def test_training(finish, training, broken, monkeypatch, tmp_path, skipped):
    broken(skipped)
    finish(train, training("in-time"))
    monkeypatch.setattr(training_update, "ToHost", Late)
    finish(train, training("late"))
    assert_same_run(tmp_path / "late", tmp_path / "in-time")
    state = last_state(tmp_path / "late")
    assert state["skipped"] == len(skipped)
    assert state["ema"]["n_averaged"] == 9 - len(skipped)


def test_too_many_updates_that_are_not_finite(finish, training, broken, monkeypatch):
    monkeypatch.setattr(training_update, "SKIP_LIMIT", 2)
    monkeypatch.setattr(training_update, "ToHost", Late)
    broken(range(3, 9))
    with pytest.raises(NumericsError, match="in 3 consecutive updates"):
        finish(train, training("run"))
