"""Commands in processes of their own that need not import torch again: forked from one that has."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple, Self

_SERVER = """
import json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)  # a fork would wait for ever on the threads of its parent
import torch._dynamo  # which optimizers import
import ddimctl.jobs.interpolate, ddimctl.jobs.invert, ddimctl.jobs.reconstruct, ddimctl.jobs.sample
import ddimctl.jobs.train
from ddimctl.checkpoints import load_checkpoint
from ddimctl.cli.main import main
load_checkpoint(os.environ["DDIMCTL_CKPT"])  # and with it what is imported late
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if not pid:
        code = 70
        try:
            for number, path in enumerate((os.devnull, order["stdout"], order["stderr"])):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                os.dup2(os.open(path, flags), number)
            os.chdir(order["cwd"])
            exec(order["prelude"], {})
            code = main(order["arguments"])
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if order["kill_after"] is not None:
        time.sleep(order["kill_after"])
        os.kill(pid, signal.SIGKILL)  # which has not been waited for, and so is this one
    _, status, usage = os.wait4(pid, 0)
    print(os.waitstatus_to_exitcode(status), usage.ru_maxrss, flush=True)
"""


class Ended(NamedTuple):
    """How a command ended: its code (negative: the signal), its output, its peak in MiB, its time."""

    code: int
    stdout: str
    stderr: str
    peak: float
    seconds: float

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


class Forks:
    """A process that has imported everything, and forks one command after another."""

    def __init__(self, env: Mapping[str, str], checkpoint: Path, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env={**env, "DDIMCTL_CKPT": str(checkpoint), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout.readline() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()
        self._server.wait()

    def run(
        self,
        *arguments: object,
        cwd: Path | None = None,
        prelude: str = "",
        kill_after: float | None = None,
    ) -> Ended:
        """Run a command to its end, or SIGKILL it after so many seconds.

        prelude: Python that the new process runs first, to put faults into the program.
        """
        outputs = [self._folder / "stdout", self._folder / "stderr"]
        order = {
            "arguments": list(map(str, arguments)),
            "prelude": prelude,
            "cwd": str(cwd or self._folder),
            "kill_after": kill_after,
            "stdout": str(outputs[0]),
            "stderr": str(outputs[1]),
        }
        begun = time.monotonic()
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        code, peak = map(int, self._server.stdout.readline().split())
        unit = 2**20 if sys.platform == "darwin" else 2**10
        texts = [path.read_text() for path in outputs]
        return Ended(code, *texts, peak / unit, time.monotonic() - begun)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, dotfiles too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_whole(folder: Path) -> None:
    """Assert that every file under its final name can be read to its end."""
    import torch
    from PIL import Image

    for path in folder.rglob("*"):
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        else:
            with Image.open(path) as picture:
                picture.load()


def killed_often(
    forks: Forks, command: Sequence[object], cwd: Path, delays: Sequence[float]
) -> Ended:
    """Run a command that names --out out and --resume, SIGKILL it after each delay, then let it end.

    A run that ends before it is killed is taken away and begun again.
    """
    hits = 0
    for delay in delays:
        ended = forks.run(*command, cwd=cwd, kill_after=delay)
        hits += ended.code == -signal.SIGKILL
        if (cwd / "out").exists():
            check_whole(cwd / "out")
        if ended.code == 0:
            rmtree(cwd / "out")
        else:
            assert ended.code == -signal.SIGKILL, ended.stderr
    assert hits >= len(delays) / 2
    return forks.run(*command, cwd=cwd)
