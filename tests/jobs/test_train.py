import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import ddimctl
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.errors import NumericsError, RequestError, Stopped
from ddimctl.jobs.train import step as training_update
from ddimctl.jobs.train.job import train
from ddimctl.jobs.train.request import TrainRequest
from ddimctl.jobs.train.run import model_to_train

CLASSES = ("left", "right")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty images of 8x8 in two classes: a bright half on the class's side."""
    folder = tmp_path_factory.mktemp("pictures")
    levels = seeded_noise(range(40), (8, 8, 3)).mul(20).clamp(-40, 40)
    for index, noise in enumerate(levels):
        image = 60 + noise
        side = index % 2
        image[:, 4 * side : 4 * side + 4] += 120
        path = folder / CLASSES[side] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.round().to(torch.uint8).numpy()).save(path)
    return folder


@pytest.fixture
def request_for(images, tmp_path):
    def make(out="run", **settings):
        settings = {
            "model": "tiny",
            "steps": 6,
            "batch_size": 4,
            "warmup": 2,
            "ema": 0.9,
            "save_every": 3,
            "sample_every": 6,
            "log_every": 2,
            "lr": 1e-3,
        } | settings
        return TrainRequest(data=images, out=tmp_path / out, **settings)

    return make


def weights(folder):
    unet = ddimctl.load_checkpoint(folder / "checkpoint").unet
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


def metrics(folder, timing=False):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    hidden = () if timing else ("seconds", "images_per_second")
    return [{k: v for k, v in record.items() if k not in hidden} for record in records]


def test_a_run_leaves_a_checkpoint_states_metrics_and_images(finish, request_for, tmp_path):
    finished = finish(train, request_for(class_conditional=True, holdout=0.2))
    run = tmp_path / "run"
    assert finished.result.checkpoint == run / "checkpoint"
    assert finished.result.step == 6
    checkpoint = ddimctl.load_checkpoint(run / "checkpoint")
    assert checkpoint.class_names == CLASSES
    assert (checkpoint.num_classes, checkpoint.null_class) == (2, 2)
    assert checkpoint.background == (0, 0, 0)
    assert checkpoint.provenance.weights == "ema"
    assert checkpoint.sample_shape == (3, 8, 8)
    records = metrics(run, timing=True)
    assert [record["step"] for record in records] == [2, 3, 4, 6]
    assert all(record["loss"] > 0 for record in records if "loss" in record)
    assert {"train_loss", "holdout_loss"} <= records[-1].keys()
    for name in ("loss.png", "samples/step-00000006.png"):
        with Image.open(run / name) as image:
            image.load()
    assert sorted(p.name for p in (run / "state").iterdir()) == [
        "step-00000003.pt",
        "step-00000006.pt",
    ]


def test_diffusers_itself_runs_the_checkpoint(finish, request_for, tmp_path):
    from diffusers import DDIMPipeline

    finish(train, request_for())
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "run" / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 3)


def test_the_loss_falls_and_the_samples_look_like_the_data(finish, request_for, tmp_path):
    request = request_for(
        class_conditional=True, steps=250, batch_size=16, lr=2e-3, prediction="v",
        save_every=250, sample_every=250, log_every=25, label_dropout=0.0,
    )  # fmt: skip
    finish(train, request)
    losses = [record["loss"] for record in metrics(tmp_path / "run")]
    assert losses[-1] < 0.5 * losses[0]
    checkpoint = ddimctl.load_checkpoint(tmp_path / "run" / "checkpoint")
    labels = torch.arange(16) % 2
    x_T = ddimctl.seeded_noise(range(16), checkpoint.sample_shape)
    x_0 = ddimctl.sample(
        checkpoint, x_T, timesteps=ddimctl.timesteps("linspace", 10), labels=labels
    )
    brighter_right = x_0[..., 4:].mean((1, 2, 3)) > x_0[..., :4].mean((1, 2, 3))
    assert torch.equal(brighter_right, labels == 1)


def test_the_same_request_trains_the_same_weights(finish, request_for, tmp_path):
    for name in ("a", "b"):
        finish(train, request_for(name))
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    finish(train, request_for("c", seed=1))
    assert not torch.equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_stopped_run_resumes_to_the_weights_of_an_uninterrupted_one(
    finish, request_for, tmp_path
):
    settings = {"class_conditional": True, "holdout": 0.2, "flip": True}
    finish(train, request_for("whole", **settings))
    with pytest.raises(Stopped, match="SIGTERM: stopped after step 4 of 6"):

        def on_event(event):
            if getattr(event, "done", 0) == 4 and getattr(event, "phase", "") == "training":
                os.kill(os.getpid(), signal.SIGTERM)

        train(request_for(**settings), on_event)
    resumed = finish(train, request_for(resume=True, **settings))
    assert "continuing from step 4" in resumed.notices()
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    states = [
        torch.load(tmp_path / name / "state" / "step-00000006.pt", weights_only=True)
        for name in ("run", "whole")
    ]
    for a, b in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_gradient_accumulation_is_the_same_update_in_parts(finish, request_for, tmp_path):
    finish(train, request_for("whole", steps=3))
    finish(train, request_for("parts", steps=3, grad_accum=2))
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    start = weights_before(request_for)
    assert float((a - b).norm()) < 0.02 * float((a - start).norm())


def weights_before(request_for):
    from ddimctl.files.dataset.datasets import load_dataset

    request = request_for()
    unet = model_to_train(request, load_dataset(request.data)).unet
    return torch.cat([weight.detach().flatten() for weight in unet.parameters()])


def test_gradients_are_clipped_to_a_norm_and_with_0_not_at_all(
    finish, request_for, tmp_path, monkeypatch
):
    """What AdamW is given: the norm is that of the option, or the gradient's own."""
    norms = []

    def seen(optimizer, original=torch.optim.AdamW.step):
        gradients = [w.grad for group in optimizer.param_groups for w in group["params"]]
        norms.append(float(torch.stack([each.norm() for each in gradients]).norm()))
        return original(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    for clip in (0.0, 1e9, 0.01):
        finish(train, request_for(f"clip-{clip}", clip_grad=clip, steps=1))
    own, unreached, clipped = norms
    assert own == unreached > 0.02
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert torch.equal(weights(tmp_path / "clip-0.0"), weights(tmp_path / "clip-1000000000.0"))


def test_a_time_limit_ends_the_run_with_its_state_saved(finish, request_for, tmp_path):
    finished = finish(train, request_for(steps=10_000, time_limit=0.0))
    assert finished.result.step == 1
    assert "--time-limit" in finished.notices()
    assert (tmp_path / "run" / "state" / "step-00000001.pt").exists()
    assert ddimctl.load_checkpoint(tmp_path / "run" / "checkpoint")


def test_a_finished_run_resumes_to_nothing_and_can_be_extended(finish, request_for, tmp_path):
    finish(train, request_for())
    again = finish(train, request_for(resume=True))
    assert "already complete" in again.notices()
    longer = finish(train, request_for(resume=True, steps=8))
    assert longer.result.step == 8


def test_a_run_is_not_begun_over_another_without_being_told(finish, request_for, tmp_path):
    finish(train, request_for())
    with pytest.raises(RequestError, match="holds a run at step 6"):
        finish(train, request_for())
    forced = finish(train, request_for(force=True, steps=2))
    assert forced.result.step == 2
    assert len(list((tmp_path / "run" / "state").iterdir())) == 1


def test_another_configuration_or_data_set_is_not_resumed(finish, request_for, tmp_path):
    finish(train, request_for())
    with pytest.raises(RequestError, match=r"--lr was 0.001, is 0.01"):
        finish(train, request_for(resume=True, lr=0.01))
    other = tmp_path / "other"
    other.mkdir()
    for index in range(5):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(other / f"{index}.png")
    with pytest.raises(RequestError, match="the data set was another"):
        finish(train, replace(request_for(resume=True), data=other))


def test_fine_tuning_starts_from_the_checkpoint(finish, request_for, tmp_path):
    finish(train, request_for("first", prediction="v", schedule="cosine"))
    start = tmp_path / "first" / "checkpoint"
    finish(train, request_for("second", model=None, init=str(start), lr=1e-9, steps=1))
    tuned = ddimctl.load_checkpoint(tmp_path / "second" / "checkpoint")
    assert (tuned.prediction, tuned.schedule.settings["kind"]) == ("v", "cosine")
    torch.testing.assert_close(weights(tmp_path / "second"), weights(tmp_path / "first"))


def test_fine_tuning_starts_from_the_bundled_checkpoint_by_its_name(finish, request_for):
    with pytest.raises(RequestError, match="--init has 3 channels and 3 classes, the data 3 and 0"):
        finish(train, request_for(model=None, init="bundled", image_size=(8, 8), steps=1))


def test_fine_tuning_at_another_size_says_so_and_keeps_its_start(finish, request_for, tmp_path):
    finish(train, request_for("first", prediction="v", schedule="cosine"))
    start = str(tmp_path / "first" / "checkpoint")
    tuned = request_for("second", model=None, init=start, image_size=(16, 16), steps=1)
    finish(train, tuned)
    checkpoint = ddimctl.load_checkpoint(tmp_path / "second" / "checkpoint")
    assert checkpoint.sample_shape == (3, 16, 16)
    assert checkpoint.provenance.weights == "ema"
    with pytest.raises(RequestError, match="--prediction was 'v', is 'eps'"):
        finish(train, replace(tuned, init=None, model="tiny", resume=True))
    with pytest.raises(RequestError, match="divisible by 8"):
        finish(train, request_for("third", model=None, init=start, image_size=(12, 12)))


def test_force_with_a_wrong_request_keeps_the_states(finish, request_for, tmp_path):
    finish(train, request_for())
    with pytest.raises(RequestError):
        finish(train, request_for(force=True, model="huge"))
    assert len(list((tmp_path / "run" / "state").iterdir())) == 2


def test_a_checkpoint_without_states_is_not_overwritten(finish, request_for, tmp_path):
    finish(train, request_for())
    shutil.rmtree(tmp_path / "run" / "state")
    for resume in (False, True):
        with pytest.raises(RequestError, match="no state to continue from"):
            finish(train, request_for(resume=resume))


def test_half_precision_weights_take_half_the_room(finish, request_for, tmp_path):
    for name in ("fp32", "fp16"):
        finish(train, request_for(name, steps=1, weights_dtype=name))
    sizes = [
        (tmp_path / name / "checkpoint/unet/diffusion_pytorch_model.safetensors").stat().st_size
        for name in ("fp32", "fp16")
    ]
    assert 1.9 < sizes[0] / sizes[1] < 2.05


def test_gray_images_train_a_one_channel_network(finish, request_for, tmp_path):
    finish(train, request_for(channels=1, background=(0,)))
    assert ddimctl.load_checkpoint(tmp_path / "run" / "checkpoint").sample_shape == (1, 8, 8)


def test_the_paper_s_architectures_have_its_numbers_of_parameters():
    from ddimctl.checkpoints.build.architectures import architecture, make_unet

    for name, size, millions in (("cifar10", 32, 35.7), ("celebahq256", 256, 113.7)):
        with torch.device("meta"):
            unet = make_unet(architecture(name, (3, size, size)))
        count = sum(weight.numel() for weight in unet.parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_updates_whose_gradient_is_not_finite_are_skipped_and_counted(
    finish, request_for, tmp_path, monkeypatch
):
    original, calls = training_update.add_noise, []

    def sometimes_infinite(x_0, eps, t, schedule):
        calls.append(1)
        return original(x_0, eps, t, schedule) * (torch.inf if len(calls) == 2 else 1)

    monkeypatch.setattr(training_update, "add_noise", sometimes_infinite)
    finish(train, request_for())
    assert metrics(tmp_path / "run")[-1]["skipped"] == 1
    assert weights(tmp_path / "run").isfinite().all()

    monkeypatch.setattr(training_update, "SKIP_LIMIT", 2)
    monkeypatch.setattr(training_update, "add_noise", lambda *a: original(*a) * torch.nan)
    with pytest.raises(NumericsError, match="not finite in 3 consecutive updates"):
        finish(train, request_for("bad"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "--steps must be above 0"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"ema": 1.0}, r"--ema must be in \[0, 1\)"),
        ({"batch_size": 5, "grad_accum": 2}, "does not divide"),
        ({"prediction": "score"}, "--prediction must be one of"),
        ({"schedule": "cubic"}, "--schedule must be one of"),
        ({"loss_weighting": "p2"}, "--loss-weighting must be one of"),
        ({"model": "huge"}, "neither a file nor one of"),
        ({"model": "cifar10", "image_size": (12, 12)}, "divisible by 8"),
        ({"init": "somewhere"}, "--init has its own network"),
        ({"precision": "fp16"}, "fp16 is not supported"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_wrong_requests_are_refused(finish, request_for, settings, message):
    with pytest.raises(RequestError, match=message):
        finish(train, request_for(**settings))


def test_unreadable_images_are_named_and_counted(finish, request_for, images, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(images, data)
    Path(data / "left" / "zz.png").write_text("not an image")
    finished = finish(train, replace(request_for(steps=1), data=data))
    assert "1 unreadable images left out (left/zz.png" in finished.notices()
