"""--log tensorboard: what a run's event files say, read back with TensorBoard's own reader."""

import io
import os
import signal

import pytest
from PIL import Image

from ddimctl.errors import RequestError, Stopped
from ddimctl.jobs.train import report as training_report
from ddimctl.jobs.train.job import train
from ddimctl.jobs.train.request import TrainRequest


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    monkeypatch.setattr(training_report, "SAMPLE_STEPS", 1)
    (tmp_path / "pictures").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i, 90, 200)).save(tmp_path / f"pictures/{i}.png")

    def make(out="run", **settings):
        settings = {
            "steps": 6,
            "batch_size": 2,
            "save_every": 2,
            "sample_every": 2,
            "log_every": 1,
            "model": "tiny",
            "holdout": 0.25,
            "log": "tensorboard",
        } | settings
        return TrainRequest(data=tmp_path / "pictures", out=tmp_path / out, **settings)

    return make


def is_step(event, step):
    return getattr(event, "phase", "") == "training" and event.done == step


def read(run):
    """The curves as {tag: {step: value}}, each step once, and the steps of the samples."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = reader.EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0})
    log.Reload()
    curves = {}
    for tag in log.Tags()["scalars"]:
        events = log.Scalars(tag)
        curves[tag] = {event.step: event.value for event in events}
        assert len(curves[tag]) == len(events), f"{tag} has a step twice"
    images = log.Images("samples") if "samples" in log.Tags()["images"] else []
    assert all(Image.open(io.BytesIO(each.encoded_image_string)).width > 8 for each in images)
    return curves, [each.step for each in images]


def test_curves_and_samples_are_those_of_the_run(finish, request_for, tmp_path):
    pytest.importorskip("tensorboard")
    finish(train, request_for())
    curves, images = read(tmp_path / "run")
    assert images == [2, 4, 6]
    assert set(curves) == {"loss", "train_loss", "holdout_loss", "lr", "images_per_second"}
    assert list(curves["loss"]) == [1, 2, 3, 4, 5, 6]
    assert list(curves["holdout_loss"]) == [2, 4, 6]


def test_a_stopped_run_that_goes_on_has_each_step_once(finish, request_for, tmp_path):
    pytest.importorskip("tensorboard")
    finish(train, request_for("whole", steps=5))
    with pytest.raises(Stopped):

        def on_event(event):
            if is_step(event, 3):
                os.kill(os.getpid(), signal.SIGTERM)

        train(request_for(steps=5), on_event)
    finish(train, request_for(steps=5, resume=True))
    whole, found = read(tmp_path / "whole"), read(tmp_path / "run")
    assert found[1] == whole[1]
    for tag in ("loss", "train_loss", "holdout_loss", "lr"):
        assert found[0][tag] == pytest.approx(whole[0][tag]), tag


def test_what_a_killed_run_logged_after_its_state_is_hidden(finish, request_for, tmp_path):
    pytest.importorskip("tensorboard")

    def on_event(event):
        if is_step(event, 5):
            raise InterruptedError  # the last state is of step 4

    with pytest.raises(InterruptedError):
        train(request_for(), on_event)
    assert list(read(tmp_path / "run")[0]["loss"]) == [1, 2, 3, 4, 5]
    finish(train, request_for(resume=True))
    curves, images = read(tmp_path / "run")
    assert list(curves["loss"]) == [1, 2, 3, 4, 5, 6]
    assert (list(curves["holdout_loss"]), images) == ([2, 4, 6], [2, 4, 6])


def test_without_tensorboard_the_remedy_is_told(request_for, monkeypatch, tmp_path):
    monkeypatch.setattr("ddimctl.files.event_log.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"ddimctl\[tensorboard\]"):
        train(request_for())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_tensorboard_cannot_name_is_refused(request_for, tmp_path):
    pytest.importorskip("tensorboard")
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with pytest.raises(RequestError, match="UTF-8"):
        train(request_for(out=folder))
    assert not folder.exists()


def test_without_log_there_is_none(finish, request_for, tmp_path):
    finish(train, request_for(steps=1, log=None))
    assert not (tmp_path / "run/tensorboard").exists()
