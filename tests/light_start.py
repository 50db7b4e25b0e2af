"""Commands that must not import anything heavy: run with the list of what they import."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HEAVY = re.compile(r"\b(torch|diffusers|numpy|PIL|huggingface_hub|safetensors)\b")


class Started(NamedTuple):
    """code, stdout: the command's. said: its lines on stderr. imports: one line for each module,
    heavy: those of them that take long."""

    code: int
    stdout: str
    said: list[str]
    imports: list[str]
    heavy: list[str]


def start(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> Started:
    """Run `ddimctl` in a process of its own that lists its imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ddimctl", *arguments],
        env=dict(env),
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    imports = [line for line in lines if line.startswith("import time:")]
    said = [line for line in lines if not line.startswith("import time:")]
    heavy = [line for line in imports if HEAVY.search(line)]
    return Started(done.returncode, done.stdout, said, imports, heavy)


def assert_light_usage_error(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
    """Exit code 2, two lines on stderr, none on stdout, and nothing heavy imported."""
    started = start(arguments, env, cwd)
    assert started.code == 2
    assert started.heavy == []
    assert len(started.said) == 2
    assert started.said[0].startswith("error: ")
    assert started.stdout == ""
