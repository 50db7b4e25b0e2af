"""A three-day training in small: killed at every instant between two files, and at random ones."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import ddimctl
from training_runs import OPTIONS, assert_same_run, make_images, make_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Kills the process before the nth time that a file is synced, renamed or removed, or after the last
# bytes of a file are written and before they are synced, which is the same instant.
KILL_AT = """
import atexit, os, pathlib, signal
seen = 0

def counted(original):
    def call(*arguments, **named):
        global seen
        seen += 1
        if seen == {nth}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    return call

os.fsync = counted(os.fsync)
pathlib.Path.replace = counted(pathlib.Path.replace)
pathlib.Path.unlink = counted(pathlib.Path.unlink)
"""
SETTINGS = {
    "dropout, grad-accum, classes, fp32": (),
    "bf16, v, min-snr": ("--precision", "bf16", "--prediction", "v", "--loss-weighting", "min-snr"),
    "x_0, cosine, no accumulation": (
        *("--prediction", "x_0", "--schedule", "cosine", "--grad-accum", "1"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    make_images(folder / "pictures")
    make_network(folder / "network.json")
    return folder


@pytest.fixture
def command(folder):
    def arguments(out, *options):
        train = ("train", folder / "pictures", "--out", out, "--model", folder / "network.json")
        return (*train, *OPTIONS, *options)

    return arguments


def test_killed_between_any_two_files(forks, command, tmp_path):
    options = ("--steps", "2", "--save-every", "1")
    assert forks.run(*command(tmp_path / "whole", *options)).code == 0
    kills = 0
    for nth in range(1, 200):
        out = tmp_path / "run"
        ended = forks.run(*command(out, *options), prelude=KILL_AT.format(nth=nth))
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL
        kills += 1
        if (out / "checkpoint/unet/diffusion_pytorch_model.safetensors").exists():
            ddimctl.load_checkpoint(out / "checkpoint")
        ended = forks.run(*command(out, *options, "--resume"))
        assert ended.code == 0, ended.text
        assert_same_run(out, tmp_path / "whole")
        shutil.rmtree(out)
    assert kills > 50


@pytest.mark.parametrize("settings", SETTINGS)
def test_killed_at_random_instants(forks, command, tmp_path, settings):
    options = ("--steps", "8", "--sample-every", "4", *SETTINGS[settings])
    whole = forks.run(*command(tmp_path / "whole", *options))
    assert whole.code == 0, whole.text
    instant, kills, out = random.Random(settings), 0, tmp_path / "run"
    while kills < 7:
        delay = instant.uniform(0, 0.8 * whole.seconds)
        ended = forks.run(*command(out, *options, "--resume"), kill_after=delay)
        if ended.code == 0:  # it came to its end; a new one takes the other kills
            assert_same_run(out, tmp_path / "whole")
            shutil.rmtree(out)
        else:
            assert ended.code == -signal.SIGKILL, ended.text
            kills += 1
    ended = forks.run(*command(out, *options, "--resume"))
    assert ended.code == 0, ended.text
    assert_same_run(out, tmp_path / "whole")


def test_asked_to_stop_at_random_instants_in_processes_of_their_own(
    command, clean_env, tmp_path, run_cli
):
    """SIGTERM and SIGUSR1 as a cluster sends them: 75 within seconds, and nothing is lost."""
    options = ("--steps", "500", "--save-every", "100", "--sample-every", "250")
    environment = clean_env | {"OMP_NUM_THREADS": "1"}
    instant, out, stops = random.Random(0), tmp_path / "run", 0
    for turn in range(12):
        arguments = map(str, command(out, *options, "--resume"))
        process = subprocess.Popen(
            [sys.executable, "-m", "ddimctl", *arguments],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while "training images" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(instant.uniform(0, 4))
        process.send_signal((signal.SIGTERM, signal.SIGUSR1)[turn % 2])
        begun = time.monotonic()
        text = process.communicate(timeout=60)[1]
        assert time.monotonic() - begun < 30  # 4 on an idle machine, where diffusers is imported
        if "next: ddimctl sample" in text:  # it was complete before the signal came
            break
        assert process.returncode == 75, text
        stops += 1
    assert stops >= 3
    one = {"OMP_NUM_THREADS": "1"}
    assert run_cli(*command(out, *options, "--resume"), env=one).code == 0
    assert run_cli(*command(tmp_path / "whole", *options), env=one).code == 0
    assert_same_run(out, tmp_path / "whole")
