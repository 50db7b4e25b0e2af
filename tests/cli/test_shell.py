"""The entry point: help, usage errors, the error boundary, signals."""

import json
import os
import re
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import ddimctl
from ddimctl.cli.examples import EXAMPLES
from ddimctl.cli.main import COMMANDS, main
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
from ddimctl.files.pictures.images import read_image
from ddimctl.jobs import parse, requests
from ddimctl.jobs.interpolate import request as interpolate_request
from ddimctl.jobs.train import request as train_request


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddimctl {ddimctl.__version__}\n"


def test_help_names_every_option_with_a_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        assert main([command.__name__, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "<bool>" not in shown  # as if --resume took a value
        rows = [line for line in shown.splitlines() if re.match(r"│ [ *]*--", line)]
        assert len(rows) >= 5
        for row in rows:
            assert re.search(r"--[a-z-]+.*\s{2,}\S.*[.\]]\s+│$", row), row
            assert re.search(r"--[a-z-]+.*?\s{2,}\S.*\s{2,}\S", row), row


@pytest.mark.parametrize("columns", [80, 120])
def test_help_ends_with_examples_on_lines_of_their_own(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    for command, examples in EXAMPLES.items():
        assert main([command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert max(map(len, shown.splitlines())) <= columns
        lines = [line.strip() for line in shown.splitlines()]
        end = [line for line in lines[lines.index("Examples:") :] if line]
        assert end[1:] == [x for what, line in examples for x in (f"# {what}", line)]
    assert set(EXAMPLES) == {command.__name__ for command in COMMANDS}


def test_what_was_meant_is_asked(capsys):
    cases = (
        ("smaple", "unknown command 'smaple'. Did you mean 'sample'?"),
        ("sample --stepz 3", "unknown option --stepz. Did you mean '--steps'?"),
        ("sample --clip statik", "static, dynamic, not 'statik'. Did you mean 'static'?"),
        ("sample --save gird", "unknown word 'gird'. Did you mean 'grid'?"),
        ("sample --tau linspce", "or a file. Did you mean 'linspace'?"),
        ("sample --clip qqq", "--clip must be one of none, static, dynamic, not 'qqq'.\n"),
    )
    for line, said in cases:
        assert main(line.split()) == 2
        assert said in capsys.readouterr().err


def test_word_lists_are_those_of_the_layers():
    from ddimctl.checkpoints.load import WEIGHTS
    from ddimctl.diffusion import multistep, noise, objective, paths, predictions, schedules, steps
    from ddimctl.files.pictures import video
    from ddimctl.files.pictures.images import FORMATS
    from ddimctl.jobs.sample.store import SAVES
    from ddimctl.runtime.device import PRECISIONS

    pairs = [
        (train_request.Prediction, predictions.PREDICTIONS),
        (requests.Clip, predictions.CLIPS),
        (train_request.ScheduleKind, schedules.KINDS),
        (requests.Variance, steps.VARIANCES),
        (requests.Solver, multistep.SOLVERS),
        (train_request.Weighting, objective.WEIGHTINGS),
        (requests.Precision, ("auto", *PRECISIONS)),
        (requests.Weights, WEIGHTS),
        (requests.ImageFormat, FORMATS),
        (interpolate_request.PathKind, paths.PATHS),
        (interpolate_request.VideoFormat, video.FORMATS),
    ]
    for literal, words in pairs:
        assert typing.get_args(literal) == tuple(words)
    assert typing.get_args(requests.Output) == SAVES
    assert parse.MAX_SEED == noise.MAX_SEED


def fail_with(error, monkeypatch):
    """Make `ddimctl info` raise the error where a checkpoint would be loaded."""

    def load(*_, **__):
        raise error

    monkeypatch.setattr("ddimctl.jobs.info.load_checkpoint", load)


def test_error_becomes_two_lines_and_its_exit_code(monkeypatch, capsys):
    failures = (DdimctlError, CheckpointError, DataError, StorageError, DeviceError, NumericsError)
    for error, code in (*((each, 1) for each in failures), (RequestError, 2), (Stopped, 75)):
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
    assert capsys.readouterr().err == "interrupted: the run is incomplete.\n"


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
    assert err == "interrupted: the run is incomplete.\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["sample", "--help"], 0), (["--version"], 0), (["info", "--json"], 141)],
)
def test_reader_that_goes_away_is_no_error(arguments, code, tiny_checkpoint, clean_env):
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
    assert done.returncode == code


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143), ("SIGUSR1", 143)]
)
def test_a_signal_while_importing_is_one_line(clean_env, name, code):
    script = f"""
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "typer":
            os.kill(os.getpid(), signal.{name})
sys.meta_path.insert(0, Finder())
from ddimctl.__main__ import main
sys.exit(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], env=clean_env, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (code, "")
    assert ran.stderr == "interrupted: nothing was begun.\n"


def test_under_nohup_a_hangup_is_ignored(clean_env):
    script = (
        "import os, signal, sys; from ddimctl.__main__ import main; sys.argv[1:] = ['--version']"
    )
    script += "; code = main(); os.kill(os.getpid(), signal.SIGHUP); sys.exit(code)"
    ran = subprocess.run(
        ["nohup", sys.executable, "-c", script], env=clean_env, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (0, f"ddimctl {ddimctl.__version__}\n")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        PermissionError(13, "Permission denied", "/closed/x"),
        OSError(36, "File name too long", "x" * 300),
        OSError(24, "Too many open files", "a"),
        OSError(11, "Resource temporarily unavailable"),
    ],
)
def test_what_the_system_refuses_is_no_bug(monkeypatch, capsys, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("ddimctl.jobs.sample.job.sample", refuse)
    assert main(["sample"]) == 1
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause.startswith("error: ") and remedy.startswith("  try: ")


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError(5, "Input/output error", "a")])
def test_other_errors_of_the_system_stay_tracebacks(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("ddimctl.jobs.sample.job.sample", refuse)
    with pytest.raises(type(error)):
        main(["sample"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
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
    assert read_image(tmp_path / "out" / "grid.png", 3).size
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_a_full_disk_cannot_take_is_an_error_of_one_line(clean_env):
    for line in ("--help", "sample --help", "--version", ""):
        with Path("/dev/full").open("w") as full:
            order = [sys.executable, "-m", "ddimctl", *line.split()]
            ran = subprocess.run(
                order, env=clean_env, stdout=full, stderr=subprocess.PIPE, text=True
            )
        assert ran.returncode == 1
        assert ran.stderr == "error: the result cannot be printed: No space left on device.\n"
