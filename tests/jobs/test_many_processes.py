"""Several processes make one run, whoever dies or is told to stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from forks import check_whole, contents
from training_runs import (
    OPTIONS,
    assert_equal,
    last_state,
    make_images,
    make_network,
    without_timing,
)

EVERYTHING = "grid,images,latents,samples,trajectory"
SAMPLE = [
    *("sample", "-n", 18, "--steps", 3, "--batch-size", 2, "--eta", 0.5, "--device", "cpu"),
    *("--out", "out"),
]
# For a process: it does not wait long for a silent one, but has then to end by itself.
IMPATIENT = """
import os, threading
os.environ["DDIMCTL_PROCESS_TIMEOUT"] = "10"
late = threading.Timer(40, os._exit, [99])
late.daemon = True
late.start()
"""
# For a process: a fault in the n-th call of a function.
FAULT = """
import importlib, os, signal, time, torch
owner = importlib.import_module("{module}")
*path, name = "{function}".split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def faulty(*given, **named):
    calls.append(1)
    if len(calls) == {call}:
        {fault}
    return original(*given, **named)
setattr(owner, name, faulty)
"""
DIES, HANGS = "os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSTOP)"
STOPS = "os.kill(os.getpid(), signal.SIGTERM)"
STEP = "jobs.sample.store:SampleStore.keep_step"
UPDATE = "jobs.train.step:make_batch"
DEATHS = pytest.mark.parametrize(
    ("fault", "dead"),
    [
        (DIES, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((DIES, 0), (HANGS, 0), (HANGS, 1))
        ),
    ],
)


def fault_in(function, fault, call=1):
    module, _, inside = function.partition(":")
    code = FAULT.format(module=f"ddimctl.{module}", function=inside, fault=fault, call=call)
    return f"exec({code!r}, {{}})\n"


def codes(ended):
    return [each.code for each in ended]


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    """Everything that one process writes."""
    folder = tmp_path_factory.mktemp("whole")
    ended = forks.run(*SAMPLE, "--save", EVERYTHING, cwd=folder)
    assert ended.code == 0, ended.stderr
    return contents(folder / "out")


@pytest.fixture
def sample(forks, tmp_path):
    """sample(count, *options, ...): the run in so many processes."""

    def run(count, *more, save=EVERYTHING, **named):
        return forks.run_many(count, *SAMPLE, "--save", save, *more, cwd=tmp_path, **named)

    return run


@pytest.mark.parametrize("count", [2, 3])
def test_the_bytes_of_one_process(sample, tmp_path, whole, count):
    first, *others = sample(count, "--json")
    assert first.code == 0, first.stderr
    assert codes(others) == [0] * len(others)
    assert [each.text for each in others] == [""] * len(others)
    assert json.loads(first.stdout)["seeds"] == list(range(18))
    assert "27/27 steps, images 18/18" in first.stderr
    assert contents(tmp_path / "out") == whole


def test_images_that_have_no_file_are_handed_over(forks, sample, tmp_path):
    (tmp_path / "one").mkdir()
    forks.run(*SAMPLE, "--save", "grid,trajectory", cwd=tmp_path / "one")
    assert codes(sample(3, save="grid,trajectory")) == [0, 0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "one/out")


def test_the_first_chooses_the_numbered_folder(forks, tmp_path):
    (tmp_path / "runs/00006-sample").mkdir(parents=True)
    ended = forks.run_many(2, *SAMPLE[:-2], cwd=tmp_path)
    assert codes(ended) == [0, 0]
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"00006-sample", "00007-sample"}
    assert len(list((tmp_path / "runs/00007-sample/images").iterdir())) == 18


@DEATHS
def test_a_dead_process_ends_the_others_and_loses_nothing(sample, tmp_path, whole, dead, fault):
    """Without torchrun, which would end them, too: as on another machine."""
    preludes, kill = {dead: fault_in(STEP, fault, call=8)}, {}
    if fault == HANGS:
        preludes[1 - dead], kill = IMPATIENT, {dead: 45}
    save = "grid,images,latents,samples"
    ended = sample(2, save=save, preludes=preludes, kill_after=kill)
    assert ended[dead].code == -signal.SIGKILL
    assert ended[1 - dead].code == 1
    if dead == 1:
        assert ended[0].stderr.count("error: ") == 1
        assert "error: another process has ended, or has not answered" in ended[0].stderr
        assert "--resume to continue" in ended[0].stderr
    check_whole(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    assert codes(sample(3, "--resume", save=save)) == [0, 0, 0]
    found = contents(tmp_path / "out")
    assert all(found[n] == c for n, c in whole.items() if not n.startswith(("manifest", "traj")))
    assert any(path.stat().st_mtime_ns == at for path, at in before.items())


def test_a_signal_to_one_stops_all_and_any_number_goes_on(forks, sample, tmp_path, whole):
    for counts in ((2, 1), (3, 2)):
        ended = sample(counts[0], preludes={1: fault_in(STEP, STOPS, call=5)})
        assert codes(ended) == [75] * counts[0]
        assert ended[0].stderr.count("stopped: SIGTERM: stopped with ") == 1
        assert [each.text for each in ended[1:]] == [""] * (counts[0] - 1)
        check_whole(tmp_path / "out")
        again = sample(counts[1], "--resume")
        assert codes(again) == [0] * counts[1], again[0].stderr
        assert contents(tmp_path / "out") == whole
        shutil.rmtree(tmp_path / "out")


def test_complete_already(sample, tmp_path, whole):
    assert codes(sample(2)) == [0, 0]
    ended = sample(2, "--resume")
    assert codes(ended) == [0, 0]
    assert "already complete: 18 images." in ended[0].stderr
    assert contents(tmp_path / "out") == whole


def test_an_error_of_any_process_is_shown_once(sample, tmp_path):
    fault = "raise RuntimeError('CUDA error: out of memory')"
    ended = sample(2, preludes={1: fault_in("jobs.checkpoint:open_checkpoint", fault)})
    assert codes(ended) == [1, 1]
    assert ended[1].text == ""
    assert "error: process 1 on " in ended[0].stderr
    assert "the device is out of memory" in ended[0].stderr
    assert not (tmp_path / "out/manifest.json").exists() or contents(tmp_path / "out")
    for options in (["--bogus"], ["--size", "17x17"], ["--seeds", "x"], ["--save", "samples"]):
        named = {"env": {"LOCAL_WORLD_SIZE": "1"}} if options[0] == "--save" else {}
        ended = sample(2, *options, "--force", **named)
        assert codes(ended) == [2, 2]
        assert ended[0].stderr.count("error: ") == 1
        assert ended[1].text == ""


def test_smaller_batches_of_one_process_are_recorded_and_repeated(sample, forks, tmp_path):
    """Process 1 runs out of memory in its second group, then all are stopped, and one goes on."""
    full = "raise torch.OutOfMemoryError('no room')"
    more = ["--batch-size", 4, "--resume"]
    save = "grid,images,latents"
    prelude = fault_in(STEP, full, call=5)  # images 8-11, 12-15 and 16-17 are its groups
    ended = sample(2, *more, save=save, preludes={1: prelude})
    assert codes(ended) == [0, 0], ended[0].stderr
    uninterrupted = contents(tmp_path / "out")
    found = json.loads(uninterrupted["manifest.json"])
    assert found["smaller_batches"] == [[12, 2]]
    shutil.rmtree(tmp_path / "out")
    prelude += fault_in(STEP, DIES, call=9)
    ended = sample(2, *more, save=save, preludes={1: prelude})
    assert codes(ended) == [1, -9], ended[0].stderr
    assert (tmp_path / "out/.smaller-1.json").exists()
    assert forks.run(*SAMPLE, *more, "--save", save, cwd=tmp_path).code == 0
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("command", ["invert", "interpolate", "reconstruct"])
def test_commands_of_one_process_say_so(forks, tmp_path, command):
    make_images(tmp_path / "pictures")
    inputs = sorted(tmp_path.glob("pictures/*/*.png"))[:2]
    inputs = [tmp_path / "pictures"] if command == "reconstruct" else inputs
    ended = forks.run_many(2, command, *inputs, "--out", "out", cwd=tmp_path)
    assert codes(ended) == [2, 2]
    assert f"`ddimctl {command}` runs in one process" in ended[0].stderr
    assert ended[1].text == ""
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    make_network(folder / "network.json")
    return make_images(folder / "pictures")


@pytest.fixture
def train(forks, tmp_path, images):
    """train(count, run, *options, ...): a small run in so many processes."""

    def run(count, out, *more, **named):
        model = ("--model", images.parent / "network.json")
        command = ("train", images, "--out", out, *model, *OPTIONS, *more)
        return forks.run_many(count, *command, cwd=tmp_path, **named)

    return run


def assert_exact(run, other):
    """Both ended with the same state, to the bit, but for the time that it took."""
    assert_equal(last_state(run), last_state(other))
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, other)]
    assert without_timing(map(json.loads, lines[0])) == without_timing(map(json.loads, lines[1]))
    weights = "checkpoint/unet/diffusion_pytorch_model.safetensors"
    assert (run / weights).read_bytes() == (other / weights).read_bytes()


def assert_near(run, other):
    """Both ended with the same losses and averaged weights, within rounding."""
    state, its = last_state(run), last_state(other)
    losses = [[record["loss"] for record in each["metrics"]] for each in (state, its)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != losses[0][-1]
    assert state["skipped"] == its["skipped"]
    torch.testing.assert_close(state["ema"], its["ema"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("count", "passes"), [(2, 1), (2, 2), (4, 1)])
def test_processes_learn_as_one_does_in_as_many_passes(train, tmp_path, count, passes):
    """Within rounding, dropout included, whose masks depend on the pass."""
    assert codes(train(1, "one", "--grad-accum", count * passes)) == [0]
    ended = train(count, "many", "--grad-accum", passes)
    assert codes(ended) == [0] * count, ended[0].stderr
    assert [each.text for each in ended[1:]] == [""] * (count - 1)
    assert_near(tmp_path / "one", tmp_path / "many")


def test_a_resume_in_the_same_number_of_processes_is_exact(train, tmp_path):
    """With more than two, the sum of their gradients depends on its order."""
    assert codes(train(4, "whole", "--grad-accum", 1)) == [0] * 4
    prelude = fault_in(UPDATE, STOPS, call=3)
    assert codes(train(4, "four", "--grad-accum", 1, preludes={2: prelude})) == [75] * 4
    assert last_state(tmp_path / "four")["step"] == 3
    assert codes(train(4, "four", "--grad-accum", 1, "--resume")) == [0] * 4
    assert_exact(tmp_path / "whole", tmp_path / "four")


def test_a_gradient_that_is_not_finite_is_skipped_by_all(train, tmp_path):
    nan = "return original(*given, **named)._replace(eps=torch.full((8, 3, 8, 8), float('nan')))"
    ended = train(2, "two", "--grad-accum", 1, preludes={1: fault_in(UPDATE, nan, call=3)})
    assert codes(ended) == [0, 0], ended[0].stderr
    ended = train(1, "one", "--grad-accum", 2, preludes={0: fault_in(UPDATE, nan, call=6)})
    assert codes(ended) == [0], ended[0].stderr
    assert last_state(tmp_path / "two")["skipped"] == 1
    assert_near(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_stopped_training_goes_on_in_another_number_of_processes(train, tmp_path, stopped):
    prelude = fault_in(UPDATE, STOPS, call=3)
    ended = train(2, "two", "--grad-accum", 1, preludes={stopped: prelude})
    assert codes(ended) == [75, 75]
    assert "SIGTERM: stopped after step 3 of 6, state saved." in ended[0].stderr
    assert ended[1].text == ""
    ended = train(1, "two", "--grad-accum", 2, "--resume")
    assert ended[0].code == 0, ended[0].stderr
    assert "the run had 2 processes and now has 1" in ended[0].stderr
    assert codes(train(1, "one", "--grad-accum", 2)) == [0]
    assert_near(tmp_path / "one", tmp_path / "two")


@DEATHS
def test_a_dead_process_ends_a_training_which_goes_on(train, tmp_path, dead, fault):
    preludes, kill = {dead: fault_in(UPDATE, fault, call=4)}, {}
    if fault == HANGS:
        preludes[1 - dead], kill = IMPATIENT, {dead: 45}
    ended = train(2, "two", "--grad-accum", 1, preludes=preludes, kill_after=kill)
    assert codes(ended)[dead] == -signal.SIGKILL
    assert codes(ended)[1 - dead] == 1
    assert last_state(tmp_path / "two")["step"] == (3 if dead else 2)
    assert codes(train(2, "two", "--grad-accum", 1, "--resume")) == [0, 0]
    assert codes(train(2, "whole", "--grad-accum", 1)) == [0, 0]
    assert_exact(tmp_path / "whole", tmp_path / "two")


def test_a_full_disk_in_the_first_process_ends_all(train, tmp_path):
    """Also those that wait for its gradients."""
    fault = "raise OSError(28, 'No space left on device')"
    prelude = fault_in("jobs.train.state:torch.save", fault)
    ended = train(2, "two", "--grad-accum", 1, preludes={0: prelude})
    assert codes(ended) == [1, 1]
    assert ended[0].stderr.count("error: ") == 1
    assert "no space is left on the disk" in ended[0].stderr
    assert ended[1].text == ""


def test_processes_that_see_other_images_are_found_out(train, images, tmp_path):
    shutil.copytree(images, tmp_path / "pictures")
    next((tmp_path / "pictures").rglob("*.png")).unlink()
    other = f"""
import dataclasses, pathlib
import ddimctl.jobs.train.run as owner
original = owner.read_data
def elsewhere(request, check, report):
    data = pathlib.Path({str(tmp_path / "pictures")!r})
    return original(dataclasses.replace(request, data=data), check, report)
owner.read_data = elsewhere
"""
    ended = train(2, "two", "--grad-accum", 1, preludes={1: other})
    assert codes(ended) == [1, 1]
    assert "error: process 1 on " in ended[0].stderr
    assert "this process starts with another run than process 0" in ended[0].stderr


EVALUATE = [
    *("evaluate", "-n", 6, "--steps", "2,3", "--eta", "0,1", "--batch-size", 2, "--device", "cpu"),
    *("--out", "out"),
]
SCORES = "jobs.evaluate.score_cells:scores"


@pytest.fixture(scope="module")
def scored(forks, images, tmp_path_factory):
    """What one process leaves of an evaluation of four cells."""
    folder = tmp_path_factory.mktemp("scored")
    ended = forks.run(*EVALUATE, "--data", images, cwd=folder)
    assert ended.code == 0, ended.stderr
    return ended.stdout, contents(folder / "out")


@pytest.fixture
def evaluate(forks, tmp_path, images):
    """evaluate(count, *options, ...): the evaluation in so many processes."""

    def run(count, *more, **named):
        return forks.run_many(count, *EVALUATE, "--data", images, *more, cwd=tmp_path, **named)

    return run


@pytest.mark.parametrize("count", [2, 3])
def test_an_evaluation_has_the_bytes_of_one_process(evaluate, tmp_path, scored, count):
    first, *others = evaluate(count)
    assert first.code == 0, first.stderr
    assert codes(others) == [0] * len(others)
    assert [each.text for each in others] == [""] * len(others)
    assert "cells: 4/4 cells" in first.stderr
    assert (first.stdout, contents(tmp_path / "out")) == scored


def test_each_process_scores_cells(evaluate, scored, tmp_path):
    """The second one fails in its second cell; what all had scored is not scored again."""
    fault = "raise torch.OutOfMemoryError('no room')"
    ended = evaluate(2, preludes={1: fault_in(SCORES, fault, call=2)})
    assert codes(ended) == [1, 1]
    assert "error: process 1 on " in ended[0].stderr
    assert ended[1].text == ""
    found = {path.parent.name for path in tmp_path.glob("out/cells/*/score.json")}
    assert found in ({"eta0-S2", "eta1-S2"}, {"eta0-S2", "eta1-S2", "eta0-S3"})
    rows = json.loads((tmp_path / "out/table.json").read_text())["rows"]
    assert [(row["eta"], row["steps"]) for row in rows] == [(0, 2), (1, 2)]
    again = evaluate(2, "--resume", preludes={0: fault_in(SCORES, fault, call=2)})
    assert codes(again) == [0, 0], again[0].stderr
    assert contents(tmp_path / "out") == scored[1]


@pytest.mark.parametrize(
    ("place", "call", "says"),
    [
        (STEP, 8, "stopped with "),
        ("jobs.evaluate.score_cells:measure_samples", 1, "stopped while scoring."),
        ("jobs.evaluate.score_cells:open_reference", 1, "stopped while scoring."),
    ],
)
def test_a_signal_to_one_stops_an_evaluation_and_any_number_goes_on(
    evaluate, tmp_path, scored, place, call, says
):
    ended = evaluate(2, preludes={1: fault_in(place, STOPS, call=call)})
    assert codes(ended) == [75, 75]
    assert ended[0].stderr.count(f"stopped: SIGTERM: {says}") == 1
    assert "Continue with the same command and --out out --resume." in ended[0].stderr
    assert ended[1].text == ""
    again = evaluate(3, "--resume")
    assert codes(again) == [0] * 3, again[0].stderr
    assert contents(tmp_path / "out") == scored[1]


@DEATHS
def test_a_dead_process_ends_an_evaluation_which_goes_on(evaluate, tmp_path, scored, dead, fault):
    preludes, kill = {dead: fault_in(SCORES, fault)}, {}
    if fault == HANGS:
        preludes[1 - dead], kill = IMPATIENT, {dead: 45}
    ended = evaluate(2, preludes=preludes, kill_after=kill)
    assert codes(ended)[dead] == -signal.SIGKILL
    assert codes(ended)[1 - dead] == 1
    check_whole(tmp_path / "out/cells")
    assert codes(evaluate(1, "--resume")) == [0]
    assert contents(tmp_path / "out") == scored[1]


def test_the_first_finds_the_timesteps_for_all(evaluate, tmp_path):
    few = "import ddimctl.jobs.sample.auto_timesteps as a; a.IMAGES = 1\n"
    preludes = {0: few, 1: f"{few}import os; os.environ['DDIMCTL_CACHE'] = 'cache-of-1'\n"}
    ended = evaluate(2, "--tau", "auto", preludes=preludes, env={"DDIMCTL_CACHE": "cache"})
    assert codes(ended) == [0, 0], ended[0].stderr
    assert len(list((tmp_path / "cache/timesteps").iterdir())) == 1
    assert not (tmp_path / "cache-of-1/timesteps").exists()
    found = json.loads((tmp_path / "out/table.json").read_text())["settings"]["timesteps"]
    assert [len(tau) for tau in found.values()] == [2, 3]
    assert all(tau[-1] == 999 for tau in found.values())


def torchrun(tmp_path, env, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "ddimctl", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=tmp_path, env=env, **streams)


@pytest.fixture
def torchrun_env(clean_env, tiny_checkpoint):
    return clean_env | {"DDIMCTL_CKPT": str(tiny_checkpoint), "OMP_NUM_THREADS": "1"}


def test_torchrun(tmp_path, torchrun_env, whole):
    with torchrun(tmp_path, torchrun_env, *SAMPLE, "--save", EVERYTHING) as started:
        stdout, stderr = started.communicate(timeout=120)
    assert started.returncode == 0, stderr
    assert stdout.splitlines()[-1] == "out/manifest.json"
    assert len(stdout.splitlines()) == 6
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_torchrun_of_an_evaluation(tmp_path, torchrun_env, images, scored):
    with torchrun(tmp_path, torchrun_env, *EVALUATE, "--data", images) as started:
        stdout, stderr = started.communicate(timeout=120)
    assert started.returncode == 0, stderr
    assert (stdout, contents(tmp_path / "out")) == scored


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["torchrun", "worker"])
def test_torchrun_ends_all_and_a_resume_goes_on(tmp_path, torchrun_env, forks, victim):
    command = [*SAMPLE, "--save", EVERYTHING, "--resume"]
    command[4] = 100  # steps, so that there is time
    (tmp_path / "whole").mkdir()
    assert forks.run(*command, cwd=tmp_path / "whole").code == 0
    with torchrun(tmp_path, torchrun_env, *command) as started:
        deadline = time.monotonic() + 100
        while not any(tmp_path.glob("out/images/*.png")) and time.monotonic() < deadline:
            time.sleep(0.1)
        if victim == "torchrun":
            started.send_signal(signal.SIGTERM)
        else:
            children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text()
            os.kill(int(children.split()[-1]), signal.SIGKILL)
        _, stderr = started.communicate(timeout=60)
    assert started.returncode != 0
    assert stderr.count("stopped: SIGTERM: stopped with ") == 1
    check_whole(tmp_path / "out")
    assert not (tmp_path / "out/grid.png").exists()
    assert forks.run(*command, cwd=tmp_path).code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole/out")
