"""Runs that are killed, signalled and cut off: nothing is lost, and a resume ends as if nothing was."""

import random
import signal
import time
from shutil import rmtree

import pytest
from PIL import Image

from forks import check_whole, contents, killed_often

EVERYTHING = "grid,images,latents,samples,trajectory"
SAMPLE = ["sample", "-n", 9, "--steps", 3, "--batch-size", 2, "--eta", 0.5, "--out", "out"]
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 143}

# Python for the new process: `function` signals the process itself in its n-th call.
SIGNAL = """
import importlib, os, signal
owner = importlib.import_module("{module}")
*path, name = "{function}".split(".")
for part in path:
    owner = getattr(owner, part)
original, calls = getattr(owner, name), []
def signalled(*given, **named):
    calls.append(1)
    if len(calls) == {call}:
        for _ in range({times}):
            os.kill(os.getpid(), signal.{signal})
    return original(*given, **named)
setattr(owner, name, signalled)
"""


def signal_in(function, name="SIGTERM", call=1, times=1):
    module, _, inside = function.partition(":")
    return SIGNAL.format(
        module=f"ddimctl.{module}", function=inside, signal=name, call=call, times=times
    )


@pytest.fixture
def run(forks, tmp_path):
    def command(*arguments, prelude=""):
        return forks.run(*arguments, cwd=tmp_path, prelude=prelude)

    return command


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate("abc"):
        Image.new("RGB", (16, 16), (60 * i, 90, 200 - 60 * i)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in "abc"]


def whole_run(forks, folder, *more):
    """What the command writes when nothing happens to it, in how many seconds."""
    started = time.monotonic()
    ended = forks.run(*SAMPLE, *more, cwd=folder)
    assert ended.code == 0, ended.stderr
    return contents(folder / "out"), time.monotonic() - started


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    """Everything that an undisturbed run writes."""
    return whole_run(forks, tmp_path_factory.mktemp("whole"), "--save", EVERYTHING)[0]


@pytest.mark.parametrize(
    ("format", "save"), [("png", EVERYTHING), ("webp", EVERYTHING), ("png", "samples,grid")]
)
def test_killed_at_random_instants_it_ends_with_the_same_bytes(forks, tmp_path, format, save):
    more = ("--format", format, "--save", save)
    (tmp_path / "whole").mkdir()
    whole, seconds = whole_run(forks, tmp_path / "whole", *more)
    dice = random.Random(f"{format} {save}")
    delays = [dice.uniform(0, 0.7 * seconds) for _ in range(3)]
    ended = killed_often(forks, [*SAMPLE, *more, "--resume"], tmp_path, delays)
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("name", "instant", "call"),
    [
        *((name, "SampleStore.keep_step", 8) for name in SIGNALS),
        ("SIGINT", "SampleStore._write_image", 4),
        ("SIGTERM", "draw_grid", 1),
        ("SIGUSR1", "write_latents", 1),
        ("SIGTERM", "save_samples", 1),
        ("SIGINT", "sync_files", 1),
    ],
)
def test_a_signal_leaves_what_resume_completes(run, tmp_path, whole, name, instant, call):
    command = [*SAMPLE, "--save", EVERYTHING, "--resume"]
    ended = run(*command, prelude=signal_in(f"jobs.sample.store:{instant}", name, call))
    assert ended.code == 75, ended.stderr
    assert f"stopped: {name}: stopped with " in ended.stderr
    assert "--out out --resume." in ended.stderr
    check_whole(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".ddimctl*"))
    ended = run(*command)
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(("name", "code"), [*SIGNALS.items(), ("SIGHUP", 143)])
def test_a_signal_while_the_model_is_loaded_leaves_nothing(run, tmp_path, name, code):
    for out in (["--out", "out"], []):
        ended = run("sample", *out, prelude=signal_in("jobs.checkpoint:open_checkpoint", name))
        assert ended.code == code
        assert ended.stderr == "interrupted: the run is incomplete.\n"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "code"), SIGNALS.items())
@pytest.mark.parametrize(
    "instant",
    ["jobs.sample.store:SampleStore.keep_step", "jobs.sample.store:draw_grid"],
)
def test_the_second_signal_ends_it_at_once(run, tmp_path, whole, name, code, instant):
    call = 1 if "grid" in instant else 8
    ended = run(*SAMPLE, "--save", EVERYTHING, prelude=signal_in(instant, name, call, times=2))
    assert ended.code == (75 if "grid" in instant else code)  # there, the first one did already
    check_whole(tmp_path / "out")
    ended = run(*SAMPLE, "--save", EVERYTHING, "--resume")
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(("name", "code"), SIGNALS.items())
def test_what_cannot_be_resumed_says_so_by_its_code(run, tmp_path, name, code):
    prelude = signal_in("jobs.sample.store:SampleStore.keep_step", name, 8)
    ended = run(*SAMPLE, "--save", "grid", prelude=prelude)
    assert ended.code == code
    assert run(*SAMPLE, "--save", "grid", "--resume").code == 0


INVERT = ["invert", "photos", "--steps", 4, "--batch-size", 1, "--out", "out"]


@pytest.mark.parametrize(("name", "code"), SIGNALS.items())
def test_inversion_keeps_the_inputs_that_it_has_done(run, tmp_path, inputs, name, code):
    assert run(*INVERT).code == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    instants = (("jobs.invert.job:save_latents", 2), ("jobs.invert.round_trip:invert_steps", 3))
    for instant, call in instants:  # what is being written is written to its end
        ended = run(*INVERT, prelude=signal_in(instant, name, call))
        assert ended.code == 75, ended.stderr
        assert f"stopped: {name}: stopped with 2 of 3 input images in out." in ended.stderr
        assert "  try: Continue with the same command and --out out --resume." in ended.stderr
        assert contents(tmp_path / "out") == dict(list(whole.items())[:4])
        ended = run(*INVERT, "--resume")
        assert ended.code == 0, ended.stderr
        assert contents(tmp_path / "out") == whole
        rmtree(tmp_path / "out")
    for instant in ("jobs.invert.round_trip:invert_steps", "jobs.invert.round_trip:decode_latents"):
        ended = run(*INVERT, prelude=signal_in(instant, name))
        assert (ended.code, (tmp_path / "out").exists()) == (code, False)
        assert ended.stderr.endswith("interrupted: the run is incomplete.\n")


@pytest.mark.parametrize(("name", "code"), SIGNALS.items())
def test_a_second_signal_ends_an_inversion_at_once(run, tmp_path, inputs, name, code):
    ended = run(*INVERT, prelude=signal_in("jobs.invert.job:save_latents", name, 2, times=2))
    assert ended.code == code
    check_whole(tmp_path / "out")
    assert run(*INVERT, "--resume").code == 0
    assert len(contents(tmp_path / "out")) == 6


@pytest.mark.parametrize("method", ["exact", "naive"])
def test_a_killed_inversion_resumed_ends_with_the_same_bytes(forks, tmp_path, inputs, method):
    command = [*INVERT, "--method", method, "--batch-size", 2, "--steps", 12]
    started = time.monotonic()
    assert forks.run(*command, cwd=tmp_path).code == 0
    seconds = time.monotonic() - started
    whole = contents(tmp_path / "out")
    rmtree(tmp_path / "out")
    dice = random.Random(method)
    delays = [dice.uniform(0.2, 0.8) * seconds for _ in range(3)]
    ended = killed_often(forks, [*command, "--resume"], tmp_path, delays)
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("call", [1, 2, 3, 4, 5, 6])
def test_an_inversion_killed_between_any_two_files_is_resumed(run, tmp_path, inputs, call):
    assert run(*INVERT).code == 0
    whole = contents(tmp_path / "out")
    rmtree(tmp_path / "out")
    prelude = signal_in("files.atomic:_sync_folder", "SIGKILL", call)
    assert run(*INVERT, prelude=prelude).code == -signal.SIGKILL
    check_whole(tmp_path / "out")
    assert run(*INVERT, "--resume").code == 0
    assert contents(tmp_path / "out") == whole


def test_interpolation_stops_and_goes_on(run, tmp_path, inputs):
    command = ["interpolate", inputs[0], inputs[1], "--frames", 6, "--steps", 4, "--video", "gif"]
    command += ["--batch-size", 2, "--out", "out"]
    assert run(*command).code == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    ended = run(*command, "--steps", 5, prelude=signal_in("jobs.invert.round_trip:invert_steps"))
    assert (ended.code, (tmp_path / "out").exists()) == (143, False)
    for instant, call in (("SampleStore.keep_step", 6), ("write_video", 1)):
        prelude = signal_in(f"jobs.sample.store:{instant}", "SIGTERM", call)
        assert run(*command, "--resume", prelude=prelude).code == 75
        check_whole(tmp_path / "out")
    assert run(*command, "--resume").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("name", "code"), SIGNALS.items())
def test_a_reconstruction_keeps_its_finished_rows(run, tmp_path, inputs, name, code):
    command = ["reconstruct", inputs[0].parent, "--steps", "4,6", "--method", "naive"]
    ended = run(
        *command, "--out", "out", prelude=signal_in("jobs.invert.reconstruct:_write", name, 2)
    )
    assert ended.code == code, ended.stderr
    assert len((tmp_path / "out/table.csv").read_text().splitlines()) == 2
    assert sorted(contents(tmp_path / "out")) == [
        *("plot.png", "table.csv", "table.json", "table.md", "table.tex"),
    ]


@pytest.mark.parametrize(("stream", "code"), [(1, 141), (2, 0)])
def test_a_reader_that_goes_away_ends_no_run(run, tmp_path, stream, code):
    name = {1: "stdout", 2: "stderr"}[stream]
    prelude = (
        "import os, sys\nreader, writer = os.pipe()\nos.close(reader)\n"
        f"os.dup2(writer, {stream})\nsys.{name} = open({stream}, 'w', closefd=False)"
    )
    ended = run(*SAMPLE, prelude=prelude)
    assert ended.code == code
    assert "Traceback" not in ended.stderr
    assert len(list((tmp_path / "out/images").iterdir())) == 9
    assert (tmp_path / "out/grid.png").exists()


@pytest.mark.parametrize("command", ["sample", "interpolate", "invert", "reconstruct"])
def test_the_second_run_in_a_folder_is_refused(forks, run, tmp_path, inputs, command):
    from ddimctl.files.lock import folder_lock

    arguments = {
        "sample": ["-n", 1],
        "interpolate": ["--seeds", "1,2"],
        "invert": [inputs[0]],
        "reconstruct": [inputs[0].parent],
    }[command]
    with folder_lock(tmp_path / "out", "train"):
        for more in ([], ["--force"]):
            ended = run(command, *arguments, "--steps", 1, "--out", "out", *more)
            assert ended.code == 2
            assert "error: out is in use by `ddimctl train`, process " in ended.stderr
    ended = run(command, *arguments, "--steps", 1, "--out", "out")
    assert ended.code == 0, ended.stderr
    assert not list((tmp_path / "out").glob(".*"))


def test_a_running_sample_holds_its_lock_and_a_killed_one_leaves_it(run, tmp_path):
    prelude = signal_in("jobs.sample.store:SampleStore.keep_step", "SIGKILL", 8)
    assert run(*SAMPLE, prelude=prelude).code == -signal.SIGKILL
    assert "`ddimctl sample`" in (tmp_path / "out/.ddimctl.lock").read_text()
    assert run(*SAMPLE, "--resume").code == 0
