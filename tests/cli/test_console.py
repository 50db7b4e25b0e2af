"""What a running job shows, and where results go."""

import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ddimctl.cli.output import console
from ddimctl.cli.output.progress import PlainView, times_text
from ddimctl.jobs.events import Notice, Progress, Wrote


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def finished(done=4, total=4, phase="sampling"):
    return Progress(phase, done, total, "images")


def test_run_job_returns_the_result_and_keeps_stdout_clean(capsys):
    def job(request, report):
        report(Notice("a schedule is assumed."))
        report(Wrote("run/grid.png", "samples"))
        report(finished())
        return 42

    assert console.run_job(job, None) == 42
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "note: a schedule is assumed.",
        "wrote: run/grid.png (samples)",
        "sampling: 4/4 images, 0:00",
    ]


def test_notice_is_shown_once(capsys):
    def job(request, report):
        report(Notice("the same"))
        report(Notice("the same"))
        report(Notice("another"))

    console.run_job(job, None)
    assert capsys.readouterr().err.splitlines() == ["note: the same", "note: another"]


def test_quiet_job_shows_its_notes_only(capsys):
    def job(request, report):
        report(Notice("read me"))
        report(finished())

    console.run_job(job, None, quiet=True)
    assert capsys.readouterr().err == "note: read me\n"


def test_log_has_a_line_every_ten_seconds_and_one_at_the_end(capsys):
    clock = Clock()
    view = PlainView(console.say, clock)
    for done in range(26):
        clock.now = float(done)
        view.progress(Progress("training", done, 25, "steps", {"loss": f"{done / 100:.2f}"}))
    assert capsys.readouterr().err.splitlines() == [
        "training: 10/25 steps, loss 0.10, 0:10, 0:15 left",
        "training: 20/25 steps, loss 0.20, 0:20, 0:05 left",
        "training: 25/25 steps, loss 0.25, 0:25",
    ]


def test_inner_phase_ends_without_a_line(capsys):
    view = PlainView(console.say, Clock())
    view.progress(finished(1, 2, "training"))
    view.progress(finished(4, 4, "sampling"))
    view.progress(finished(2, 2, "training"))
    assert capsys.readouterr().err == "training: 2/2 images, 0:00\n"


def test_log_says_how_far_a_broken_run_came(capsys):
    def job(request, report):
        report(finished(1, 9, "training"))
        report(finished(1, 4, "sampling"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        console.run_job(job, None)
    assert capsys.readouterr().err == "training: 1/9 images, 0:00\n"


def shown(events):
    """The lines of a log, of (second, steps done) of a training of so many."""
    said, clock = [], Clock()
    view = PlainView(lambda label, text: said.append(text), clock)
    for second, done, total in events:
        clock.now = float(second)
        view.progress(Progress("training", done, total, "steps"))
    return said


def test_estimate_does_not_count_what_was_done_before():
    lines = shown([(0, 5000, 6000), (10, 5100, 6000), (50, 5100, 6000)])
    assert lines == ["5100/6000 steps, 0:10, 1:30 left", "5100/6000 steps, 0:50, 7:30 left"]


def test_estimate_follows_the_recent_pace():
    slow = [(second, second, 10_000) for second in range(101)]
    fast = [(second, 100 + 10 * (second - 100), 10_000) for second in range(101, 201)]
    assert shown(slow + fast)[-1].endswith("14:50 left")  # 8,900 steps, ten a second


def test_phase_of_nothing_is_finished_and_a_clock_may_stand():
    assert shown([(0, 0, 0)]) == ["0/0 steps, 0:00"]
    assert shown([(0, 0, 2), (0, 1, 2), (0, 2, 2)]) == ["2/2 steps, 0:00"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.9, "1:00:00"), (93784, "26:03:04")],
)
def test_durations_in_words(seconds, text):
    assert times_text(seconds, None) == text


def test_result_as_lines(capsys):
    console.print_result(["demo/grid.png", "demo/manifest.json"], {}, as_json=False)
    assert capsys.readouterr() == ("demo/grid.png\ndemo/manifest.json\n", "")


def test_result_as_one_json_object(capsys):
    record = {"outputs": {"grid": "ä.png"}, "seeds": [1, 2]}
    console.print_result(["unused"], record, as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out) == record
    assert out.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – ü", "plain – ü"),
        ("two\nlines", "two lines"),
        ("\x1b[2Jcleared\x07", "?[2Jcleared?"),
        ("right\u202eleft", "right?left"),
        ("\udcff.png", "?.png"),
    ],
)
def test_names_of_strangers_cannot_command_the_terminal(text, shown):
    assert console.printable(text) == shown


def test_error_is_two_lines(capsys):
    console.complain("error", "it\nbroke", "Mend it.")
    console.complain("error", "no remedy", "")
    assert capsys.readouterr().err == "error: it broke\n  try: Mend it.\nerror: no remedy\n"


JOB = """
import time
from ddimctl.cli.output.console import complain, print_result, run_job
from ddimctl.jobs.events import Notice, Progress

def job(request, report):
    report(Notice("[bold]not markup[/bold] :smile:"))
    for done in range(9):
        time.sleep(0.05)
        report(Progress("sampling", done, 8, "images", {"batch": "1/2"}))
    return "grid.png"

print_result([run_job(job, None)], {}, False)
complain("error", "cause", "remedy")
"""


def on_terminal(env, columns=80):
    """What JOB writes to a terminal of that width."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    given = {"COLUMNS": str(columns), "TERM": "xterm-256color"} | env
    with subprocess.Popen(
        [sys.executable, "-c", JOB],
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=given,
    ) as process:
        os.close(follower)
        written = b""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready, _, _ = select.select([leader], [], [], 1)
            if not ready:
                continue
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # Linux: the other side is closed
                break
            if not chunk:
                break
            written += chunk
    os.close(leader)
    assert process.returncode == 0, written
    return written.decode()


def test_a_terminal_that_is_closed_ends_no_run(clean_env):
    """ssh is cut off, and the run was told to outlive that (disown, setsid)."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = JOB + "\nimport pathlib\npathlib.Path(sys.argv[1]).write_text('to the end')\n"
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [sys.executable, "-c", "import sys" + code, f"{folder}/end"],
        stdin=follower,
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=clean_env | {"TERM": "xterm-256color"},
    ) as process:  # fmt: skip
        os.close(follower)
        shown = b""
        while b"sampling" not in shown:
            shown += os.read(leader, 65536)
        os.close(leader)
        assert process.wait(60) == 0
        assert Path(folder, "end").read_text() == "to the end"


def test_a_result_for_a_terminal_that_is_closed_is_no_error(clean_env):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    code = """
import sys
from ddimctl.cli.output.console import print_result
sys.stdin.read()
print_result(["grid.png"], {}, False)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=follower,
        stderr=subprocess.PIPE,
        env=clean_env,
    ) as process:
        os.close(follower)
        os.close(leader)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (console.BROKEN_PIPE_CODE, b"")


def colours(text):
    """The SGR parameters that set a colour."""
    codes = (code for group in re.findall(r"\x1b\[([0-9;]*)m", text) for code in group.split(";"))
    return {code for code in codes if re.fullmatch(r"(3|4|9|10)[0-7]", code)}


def lines_of(text):
    """The text without escapes, in lines."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n").splitlines()


def test_terminal_gets_a_coloured_bar_and_the_note_as_written(clean_env):
    shown = on_terminal(clean_env)
    assert colours(shown)
    lines = lines_of(shown)
    assert "note: [bold]not markup[/bold] :smile:" in lines
    assert any(re.fullmatch(r"sampling  ━{10,40}  8/8 images  batch 1/2  0:0\d", x) for x in lines)
    assert "error: cause" in lines


def test_no_color_is_honoured(clean_env):
    shown = on_terminal(clean_env | {"NO_COLOR": "1"})
    assert "8/8 images" in shown
    assert not colours(shown)


def test_dumb_terminal_gets_lines(clean_env):
    shown = on_terminal(clean_env | {"TERM": "dumb"})
    assert "\x1b" not in shown
    assert any(line.startswith("sampling: 8/8 images, batch 1/2, ") for line in lines_of(shown))


@pytest.mark.parametrize("columns", [20, 40, 60, 120])
def test_bar_fits_the_terminal(columns, clean_env):
    lines = lines_of(on_terminal(clean_env, columns))
    bars = [line for line in lines if line.startswith("sampling")]
    assert bars
    assert max(map(len, bars)) <= columns
