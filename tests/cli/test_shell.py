"""The entry point: help, usage errors, the error boundary, signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer

import ddimctl
from ddimctl.cli.examples import EXAMPLES
from ddimctl.cli.main import COMMANDS, app, main
from ddimctl.cli.options import common as options
from ddimctl.cli.options import interpolate as interpolate_options
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as sample_options
from ddimctl.cli.options import train as train_options
from ddimctl.errors import (
    CheckpointError,
    DataError,
    DdimctlError,
    DeviceError,
    NumericsError,
    RequestError,
    Stopped,
    StorageError,
)
from ddimctl.files.pictures.images import read_picture
from light_start import HEAVY, start

PARSED_WITHOUT_TORCH = [
    (["--help"], 0),
    (["-h"], 0),
    (["--version"], 0),
    (["sample", "--help"], 0),
    (["train", "-h"], 0),
    (["info", "--help"], 0),
    ([], 2),
    (["nonsense"], 2),
    (["sample", "--nonsense"], 2),
    (["sample", "positional"], 2),
    (["sample", "--steps", "many"], 2),
    (["sample", "--steps", "0"], 2),
    (["sample", "--eta", "1.5"], 2),
    (["sample", "--eta", "nan"], 2),
    (["sample", "--guidance", "inf"], 2),
    (["sample", "--clip", "hard"], 2),
    (["sample", "--variance", "small"], 2),
    (["sample", "--precision", "fp8"], 2),
    (["sample", "--format", "jpeg"], 2),
    (["sample", "-n", "0"], 2),
    (["sample", "-n", "99999999"], 2),
    (["sample", "--seed", "-1"], 2),
    (["sample", "--seed", "9223372036854775807", "-n", "2"], 2),
    (["sample", "--seeds", "3-1"], 2),
    (["sample", "--seeds", "1", "-n", "4"], 2),
    (["sample", "--seeds", "1", "--seed", "0"], 2),
    (["sample", "--latents", "x.pt", "--seeds", "1"], 2),
    (["sample", "--latents", "x.pt", "-n", "1"], 2),
    (["sample", "--latents", "x.pt", "--seed", "0"], 2),
    (["sample", "--tau", "nonsense"], 2),
    (["sample", "--tau", "0,500,999", "--steps", "4"], 2),
    (["sample", "--size", "axb"], 2),
    (["sample", "--class", "a,,b"], 2),
    (["sample", "--save", "grid,movie"], 2),
    (["train"], 2),
    (["train", "data"], 2),
    (["train", "data", "--out", "run", "--time-limit", "soon"], 2),
    (["train", "data", "--out", "run", "--background", "dark"], 2),
    (["train", "data", "--out", "run", "--holdout", "2"], 2),
    (["train", "data", "--out", "run", "--channels", "2"], 2),
    (["info", "a", "b"], 2),
    (["interpolate", "--help"], 0),
    (["interpolate"], 2),
    (["interpolate", "a.pt", "b.pt", "--frames", "1"], 2),
    (["interpolate", "a.pt", "b.pt", "--path", "curve"], 2),
    (["interpolate", "a.pt", "b.pt", "--video", "avi"], 2),
    (["interpolate", "a.pt", "b.pt", "--fps", "nan"], 2),
    (["interpolate", "--seeds", "1,1"], 2),
    (["interpolate", "--seeds", "0-3", "--grid", "8by8"], 2),
    (["interpolate", "--seeds", "0-3", "--grid", "8x8", "--frames", "9"], 2),
    (["interpolate", "--seeds", "0-3", "--grid", "8x8", "--loop"], 2),
    (["interpolate", "--seeds", "1,2", "--tau", "0,999", "--steps", "3"], 2),
]


@pytest.mark.parametrize(("arguments", "code"), PARSED_WITHOUT_TORCH, ids=lambda x: str(x))
def test_help_and_usage_errors_import_nothing_heavy(arguments, code, clean_env, tmp_path):
    started = start(arguments, clean_env, tmp_path)
    said = started.said
    assert started.code == code
    assert started.imports
    assert started.heavy == []
    if code == 0:
        assert said == []
    elif arguments:
        assert started.stdout == ""
        assert said[0].startswith("error: ")
        assert said[1].startswith("  try: ")
        assert len(said) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ddimctl ", {"sample", "invert", "replay", "train", "info"}),
        ("ddimctl re", {"reconstruct", "replay"}),
        ("ddimctl sample --st", {"--steps"}),
        ("ddimctl replay --", {"--ckpt", "--out", "--config"}),
        ("ddimctl sample --clip ", {"none", "static", "dynamic"}),
        ("ddimctl sample --tau ", {"linspace", "trailing", "uniform", "quadratic", "auto"}),
        ("ddimctl invert --tau t", {"trailing"}),
        ("ddimctl train data --lr-decay c", {"cosine", "constant"}),
        ("ddimctl interpolate --video g", {"gif"}),
    ],
)
def test_completion_of_words_imports_nothing_heavy(words, completed, clean_env):
    request = {
        "_DDIMCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ddimctl"],
        env=clean_env | request,
        capture_output=True,
        text=True,
    )
    found = set(done.stdout.split())
    assert completed <= found
    assert all(word.startswith(words.split(" ")[-1]) for word in found)
    assert not HEAVY.search(done.stderr)


def test_a_run_imports_the_network_and_nothing_around_it(
    clean_env, tiny_class_checkpoint, tmp_path
):
    started = start(
        ["sample", "--ckpt", str(tiny_class_checkpoint), "--steps", "1", "-n", "1", "--out", "out"],
        clean_env,
        tmp_path,
    )
    assert started.code == 0, started.said
    assert any("diffusers.models.unets.unet_2d" in line for line in started.imports)
    assert started.needless == []
    networks = [line for line in started.imports if "diffusers.models." in line]
    assert len(networks) < 40


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddimctl {ddimctl.__version__}\n"


@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_help_names_every_option_with_a_text(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "<bool>" not in shown  # as if --resume took a value
    rows = [line for line in shown.splitlines() if re.match(r"│ [ *]*--", line)]
    assert len(rows) >= 5
    for row in rows:
        assert re.search(r"--[a-z-]+.*\s{2,}\S.*[.\]]\s+│$", row), row
        assert re.search(r"--[a-z-]+.*?\s{2,}\S.*\s{2,}\S", row), row


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_for_each_shell(shell, clean_env):
    done = subprocess.run(
        [sys.executable, "-m", "ddimctl"],
        env=clean_env | {"_DDIMCTL_COMPLETE": f"source_{shell}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert "_DDIMCTL_COMPLETE=" in done.stdout


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
def test_help_ends_with_examples_on_lines_of_their_own(command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= columns
    lines = [line.strip() for line in shown.splitlines()]
    end = [line for line in lines[lines.index("Examples:") :] if line]
    assert end[1:] == [
        line for what, example in EXAMPLES[command] for line in (f"# {what}", example)
    ]


@pytest.mark.parametrize("line", [line for pair in EXAMPLES.values() for _, line in pair])
def test_examples_are_right(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    assert command.make_context(name, arguments).params


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smaple"], "no such command 'smaple'. Did you mean 'sample'?"),
        (["sample", "--stepz", "3"], "no such option: --stepz. Did you mean '--steps'?"),
        (["sample", "--clip", "statik"], "'static', 'dynamic'. Did you mean 'static'?"),
        (["sample", "--save", "gird"], "unknown word 'gird'. Did you mean 'grid'?"),
        (["sample", "--tau", "linspce"], "no file. Did you mean 'linspace'?"),
        (["sample", "--clip", "qqq"], "is not one of 'none', 'static', 'dynamic'.\n"),
    ],
)
def test_what_was_meant_is_asked(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_word_lists_are_those_of_the_layers():
    from ddimctl.checkpoints.load import WEIGHTS
    from ddimctl.diffusion import multistep, noise, objective, paths, predictions, schedules, steps
    from ddimctl.files.pictures import video
    from ddimctl.files.pictures.images import FORMATS
    from ddimctl.jobs.sample.store import SAVES
    from ddimctl.jobs.train import request as training_request
    from ddimctl.runtime.device import PRECISIONS

    pairs = [
        (train_options.Prediction, predictions.PREDICTIONS),
        (sample_options.Clip, predictions.CLIPS),
        (train_options.ScheduleKind, schedules.KINDS),
        (sample_options.Variance, steps.VARIANCES),
        (sample_options.Solver, multistep.SOLVERS),
        (train_options.Weighting, objective.WEIGHTINGS),
        (options.Precision, ("auto", *PRECISIONS)),
        (options.Weights, WEIGHTS),
        (sample_options.ImageFormat, FORMATS),
        (train_options.LogKind, training_request.LOGS),
        (interpolate_options.PathKind, paths.PATHS),
        (interpolate_options.VideoFormat, video.FORMATS),
    ]
    for literal, words in pairs:
        assert typing.get_args(literal) == tuple(words)
    assert sample_options.SAVED == SAVES
    assert parse.MAX_SEED == noise.MAX_SEED


def test_train_defaults_are_those_of_the_request():
    import dataclasses
    import inspect

    from ddimctl.cli.commands.train import train
    from ddimctl.jobs.train.request import TrainRequest

    spelled = {"channels": int, "label_dropout": float, "holdout": float}
    defaults = {field.name: field.default for field in dataclasses.fields(TrainRequest)}
    for name, parameter in inspect.signature(train).parameters.items():
        if name in ("data", "out", "background", "json", "config", "debug", "precision"):
            continue
        assert spelled.get(name, lambda value: value)(parameter.default) == defaults[name], name


def fail_with(error, monkeypatch):
    """Make `ddimctl info` raise the error where a checkpoint would be loaded."""

    def load(*_, **__):
        raise error

    monkeypatch.setattr("ddimctl.checkpoints.load_checkpoint", load)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DdimctlError, 1),
        (CheckpointError, 1),
        (DataError, 1),
        (StorageError, 1),
        (DeviceError, 1),
        (NumericsError, 1),
        (RequestError, 2),
        (Stopped, 75),
    ],
)
def test_error_becomes_two_lines_and_its_exit_code(error, code, monkeypatch, capsys):
    fail_with(error("model.pt: it is\ndamaged.", "Fetch it again."), monkeypatch)
    assert main(["info", "model.pt"]) == code
    label = "stopped" if error is Stopped else "error"
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{label}: model.pt: it is damaged.\n  try: Fetch it again.\n"


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_the_traceback(arguments, monkeypatch, capsys):
    monkeypatch.setenv("DDIMCTL_DEBUG", "")  # so that what --debug sets is undone
    fail_with(DataError("cause"), monkeypatch)
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("\nerror: cause\n")


def test_debug_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("DDIMCTL_DEBUG", "1")
    fail_with(DataError("cause"), monkeypatch)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_bug_stays_a_traceback(monkeypatch):
    fail_with(ZeroDivisionError("a bug"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_keyboard_interrupt_is_130(monkeypatch, capsys):
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted: the run is not complete.\n"


WAITS = """
import sys, time
import ddimctl.checkpoints
from ddimctl.cli.examples import EXAMPLES
from ddimctl.cli.main import COMMANDS, app, main

def load(*_, **__):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)

ddimctl.checkpoints.load_checkpoint = load
sys.exit(main(["info"]))
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_run_after_it_cleaned_up(number, code, clean_env):
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        env=clean_env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "cleaned\n")
    assert err == "interrupted: the run is not complete.\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize("arguments", [["--help"], ["info", "--json"]])
def test_reader_that_goes_away_is_no_error(arguments, tiny_checkpoint, clean_env):
    reader, writer = os.pipe()
    os.close(reader)
    env = clean_env | {"DDIMCTL_CKPT": str(tiny_checkpoint)}
    done = subprocess.run(
        [sys.executable, "-m", "ddimctl", *arguments],
        env=env,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_take_nothing_from_a_run(
    closed, tiny_checkpoint, clean_env, tmp_path
):
    """Files of the run would get the streams' numbers, and in them what is printed."""
    command = f"sample --ckpt {tiny_checkpoint} --steps 1 -n 2 --out out --save grid,samples"
    python = [sys.executable, "-m", "ddimctl", *command.split()]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *python],
        env=clean_env,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "out/grid.png" in done.stdout.decode() or ">&-" in closed
    assert read_picture(tmp_path / "out" / "grid.png", 3).size
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["--version"], []])
def test_what_a_full_disk_cannot_take_is_an_error_of_one_line(arguments, clean_env):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ddimctl", *arguments]
        ran = subprocess.run(command, env=clean_env, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ran.returncode == 1
    assert ran.stderr == "error: the result cannot be printed: No space left on device.\n"
