"""What commands import: usage errors nothing heavy, runs nothing that they do not use."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

HEAVY = re.compile(r"\b(torch|diffusers|numpy|PIL|huggingface_hub|safetensors)\b")

# Python's own name for a module, where it begins with one of these: of torch its compiler, of
# diffusers everything but the network.
NEEDLESS = re.compile(
    r"(torch\._(dynamo|inductor)|sympy|torchvision|pandas"
    r"|scipy|matplotlib|av|huggingface_hub\.(inference|cli)"
    r"|diffusers\.(pipelines|schedulers|loaders|modular_pipelines)"
    r"|diffusers\.hooks\.(?!(hooks|_common|group_offloading)$)\w+"
    r"|diffusers\.models\.(autoencoders|controlnets|adapter|attention_dispatch)"
    r"|diffusers\.models\.unets\.(?!unet_2d(_blocks)?$)\w+"
    r"|diffusers\.models\.transformers\.(?!(dual_)?transformer_2d$)\w+)(\.|$)"
)


class Started(NamedTuple):
    """code, stdout: the command's. said: its lines on stderr. imports: one line for each module,
    heavy: those of them that take long. needless: the modules that no plain run should import."""

    code: int
    stdout: str
    said: list[str]
    imports: list[str]
    heavy: list[str]
    needless: list[str]


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
    needless = [name for name in map(_module, imports) if NEEDLESS.match(name)]
    return Started(done.returncode, done.stdout, said, imports, heavy, needless)


def _module(line: str) -> str:
    """The name at the end of a line of `python -X importtime`."""
    return line.rpartition("|")[2].strip()


def assert_light_usage_error(arguments: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
    """Exit code 2, two lines on stderr, none on stdout, and nothing heavy imported."""
    started = start(arguments, env, cwd)
    assert started.code == 2
    assert started.heavy == []
    assert len(started.said) == 2
    assert started.said[0].startswith("error: ")
    assert started.stdout == ""
