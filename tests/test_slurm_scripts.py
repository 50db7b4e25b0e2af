"""The batch scripts of examples/, run by a `srun` and a `scontrol` that do here what SLURM's document."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from ddimctl.cli.main import app
from forks import check_whole, contents
from training_runs import make_images

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = [EXAMPLES / "sample.sbatch", EXAMPLES / "train.sbatch"]
# As many processes as tasks, each with its numbers; the highest exit code of all.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & started+=($!)
done
echo "${started[@]}" > tasks
for one in "${started[@]}"; do
    wait "$one"; ended=$?; (( ended > highest )) && highest=$ended
done
exit "${highest:-0}"
"""
SCONTROL = """#!/bin/bash
if [ "$1 $2" = "show hostnames" ]; then echo localhost; echo another; else echo "$@" >> scontrol; fi
"""


@pytest.fixture
def job(tmp_path, clean_env):
    """job(script, *arguments, ddimctl=...): start a script as a job of two tasks; what `ddimctl` is."""

    def start(script, *arguments, ddimctl=f'exec {sys.executable} -m ddimctl "$@"'):
        commands = {"srun": SRUN, "scontrol": SCONTROL, "ddimctl": f"#!/bin/bash\n{ddimctl}\n"}
        for name, text in commands.items():
            command = tmp_path / "bin" / name
            command.parent.mkdir(exist_ok=True)
            command.write_text(text)
            command.chmod(0o755)
        slurm = {"JOB_ID": 20000 + os.getpid() % 20000, "JOB_NODELIST": "here", "NTASKS": 2}
        slurm |= {"NTASKS_PER_NODE": 2, "CPUS_PER_TASK": 1}
        env = clean_env | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
        order = ["bash", str(script), *map(str, arguments)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(order, cwd=tmp_path, env=env, **streams)

    return start


def each_script():
    return pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)


@each_script()
def test_it_is_a_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@each_script()
def test_its_options_exist(script):
    text = script.read_text("utf-8").replace("\\\n", " ")
    name, *arguments = shlex.split(re.search(r'ddimctl"?\$?@?.* ddimctl +(.*) "\$@"', text)[1])
    typer.main.get_command(app).commands[name].make_context(name, arguments)
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    assert len(asked) == text.count("#SBATCH")
    assert asked["signal"].startswith("USR1@")  # to the processes; B: would be to the shell alone
    assert "requeue" in asked


@each_script()
@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (75, True)])
def test_only_a_stopped_run_is_queued_again(job, tmp_path, script, code, again):
    told = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $OMP_NUM_THREADS"'
    with job(script, "in", "out", ddimctl=f"{told}\nexit {code}") as started:
        stdout, stderr = started.communicate(timeout=20)
    assert started.returncode == code, stderr
    assert sorted(stdout.splitlines()) == ["0 0 2 2 localhost 1", "1 1 2 2 localhost 1"]
    asked = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert bool(re.fullmatch(r"requeue incomplete \d+\n", asked)) == again


@each_script()
def test_without_arguments_it_says_what_it_lacks(job, script):
    with job(script) as started:
        _, stderr = started.communicate(timeout=20)
    assert started.returncode != 0
    assert re.search(r"no (CKPT|PICTURES)", stderr)


def signal_all(tmp_path, seen):
    """What SLURM does shortly before the end of the time: SIGUSR1 to every process of the step."""
    deadline = time.monotonic() + 100
    while not any(tmp_path.glob(seen)) and time.monotonic() < deadline:
        time.sleep(0.05)
    subprocess.run(["kill", "-USR1", *(tmp_path / "tasks").read_text().split()], check=True)


def run_twice(job, tmp_path, seen, *order):
    with job(*order) as started:
        signal_all(tmp_path, seen)
        _, stderr = started.communicate(timeout=60)
    assert started.returncode == 75, stderr
    assert stderr.count("stopped: SIGUSR1: ") == 1
    assert (tmp_path / "scontrol").read_text().startswith("requeue incomplete ")
    with job(*order) as started:
        _, stderr = started.communicate(timeout=100)
    assert started.returncode == 0, stderr


def test_sampling_goes_on_in_the_next_job(job, forks, tiny_checkpoint, tmp_path):
    more = ["--seeds", "0-23", "--batch-size", 2, "--steps", 30, "--device", "cpu"]
    run_twice(job, tmp_path, "out/images/*", SCRIPTS[0], tiny_checkpoint, "out", *more)
    check_whole(tmp_path / "out")
    (tmp_path / "whole").mkdir()
    alone = ["sample", "--ckpt", tiny_checkpoint, *more, "--save", "images", "--out", "out"]
    assert forks.run(*alone, cwd=tmp_path / "whole").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole/out")


@pytest.mark.slow
def test_training_goes_on_in_the_next_job(job, tmp_path):
    more = ["--model", "tiny", "--steps", 40, "--batch-size", 8, "--warmup", 2, "--device", "cpu"]
    more += ["--save-every", 10, "--sample-every", 40, "--log-every", 1]
    images = make_images(tmp_path / "pictures")
    run_twice(job, tmp_path, "out/metrics.jsonl", SCRIPTS[1], images, "out", *more)
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 41))
    assert (tmp_path / "out/checkpoint/unet/config.json").exists()
