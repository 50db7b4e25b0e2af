"""Training killed at chosen instants: the resumed run is the run that was not killed."""

import json
import shutil
import signal

import pytest

import ddimctl
from ddimctl.errors import CheckpointError
from training_runs import NETWORK, OPTIONS, assert_same_run, make_images, make_network, signal_at


@pytest.fixture(scope="module")
def run_in(tmp_path_factory, forks):
    """run_in(out, *more options, prelude=...): the training that all tests here kill."""
    folder = tmp_path_factory.mktemp("kills")
    images, network = make_images(folder / "pictures"), make_network(folder / "network.json")

    def run(out, *options, data=images, **how):
        command = ("train", data, "--out", out, "--model", network)
        return forks.run(*command, *OPTIONS, *options, **how)

    run.images = images
    return run


@pytest.fixture(scope="module")
def whole(run_in, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = run_in(out)
    assert ended.code == 0, ended.text
    return out


@pytest.mark.parametrize(
    ("suffix", "nth", "when"),
    [
        ("state/step-00000002.pt", 1, "before"),  # nothing is there: the resumed run begins
        ("state/step-00000002.pt", 2, "before"),  # its removal, once two are newer
        ("checkpoint/ddimctl.json", 2, "after"),  # configs of one save, weights of the other
        ("metrics.jsonl", 2, "before"),
        ("state/step-00000006.pt", 1, "after"),  # complete, but for the files that follow
    ],
)
def test_a_killed_run_resumes_to_every_bit(run_in, whole, tmp_path, suffix, nth, when):
    out = tmp_path / "run"
    fault = signal_at(suffix, nth, when)
    assert run_in(out, prelude=fault).code == -signal.SIGKILL
    if (out / "checkpoint/unet/diffusion_pytorch_model.safetensors").exists():
        ddimctl.load_checkpoint(out / "checkpoint")
    ended = run_in(out, "--resume")
    assert ended.code == 0, ended.text
    assert_same_run(out, whole)


def test_a_run_in_bf16_resumes_to_every_bit(run_in, tmp_path):
    out, other = tmp_path / "run", tmp_path / "whole"
    options = ("--precision", "bf16", "--prediction", "v", "--loss-weighting", "min-snr")
    assert run_in(other, *options).code == 0
    fault = signal_at("state/step-00000004.pt", 1, "before")
    assert run_in(out, *options, prelude=fault).code == -signal.SIGKILL
    assert run_in(out, *options, "--resume").code == 0
    assert_same_run(out, other)


def test_weights_of_another_run_are_never_beside_its_configs(run_in, whole, tmp_path):
    """--force over a run with another network, killed between any two files of the checkpoint."""
    network = tmp_path / "wider.json"
    network.write_text(json.dumps(NETWORK | {"block_out_channels": [16, 16]}))
    options = ("--model", network, "--force", "--steps", 1)
    for suffix in ("unet/config.json", "ddimctl.json", ".safetensors"):  # the last is removed first
        out = tmp_path / suffix.replace("/", "-")
        shutil.copytree(whole, out)
        fault = signal_at(suffix, 1, "after")
        assert run_in(out, *options, prelude=fault).code == -signal.SIGKILL
        with pytest.raises(CheckpointError, match="weights"):
            ddimctl.load_checkpoint(out / "checkpoint")
        ended = run_in(out, *options, "--resume")
        assert ended.code == 0, ended.text
        wide = ddimctl.load_checkpoint(out / "checkpoint").unet.config.block_out_channels
        assert list(wide) == [16, 16]


def test_what_killed_runs_were_writing_does_not_pile_up(run_in, tmp_path):
    out = tmp_path / "run"
    for _ in range(2):
        fault = signal_at("state/step-00000002.pt", 1, "before")
        assert run_in(out, "--resume", prelude=fault).code == -signal.SIGKILL
        assert len(list((out / "state").iterdir())) == 1
    assert run_in(out, "--resume").code == 0
    assert not list(out.rglob(".ddimctl*"))
