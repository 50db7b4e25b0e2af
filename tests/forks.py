"""Commands in processes of their own that need not import torch again: forked from one that has."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from types import MappingProxyType
from typing import Any, NamedTuple, Self

_SERVER = """
import json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)  # a fork would wait for ever on the threads of its parent
import torch._dynamo  # which optimizers import
import ddimctl.jobs.interpolate.job, ddimctl.jobs.invert.job, ddimctl.jobs.invert.reconstruct, ddimctl.jobs.sample.job
import ddimctl.jobs.evaluate.job, ddimctl.jobs.train.job
from ddimctl.checkpoints import load_checkpoint
from ddimctl.cli.main import main
load_checkpoint(os.environ["DDIMCTL_CKPT"])  # and with it what is imported late
print("ready", flush=True)
def begin(order):
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number, path in enumerate((os.devnull, order["stdout"], order["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags), number)
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
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

for line in sys.stdin:
    orders = json.loads(line)
    started = [(begin(order), order) for order in orders]
    for pid, order in started:
        if order["kill_after"] is not None:
            time.sleep(order["kill_after"])
            os.kill(pid, signal.SIGKILL)  # which has not been waited for, and so is this one
    ended = []
    for pid, _ in started:
        _, status, usage = os.wait4(pid, 0)
        ended.append([os.waitstatus_to_exitcode(status), usage.ru_maxrss])
    print(json.dumps(ended), flush=True)
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
            env={
                **env,
                "DDIMCTL_CKPT": str(checkpoint),
                "OMP_NUM_THREADS": "1",
                "TORCH_CPP_LOG_LEVEL": "ERROR",
            },
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
        return self._run([self._order(arguments, cwd, prelude, kill_after, {})])[0]

    def run_many(
        self,
        count: int,
        *arguments: object,
        cwd: Path,
        preludes: Mapping[int, str] = MappingProxyType({}),
        kill_after: Mapping[int, float] = MappingProxyType({}),
        env: Mapping[str, str] = MappingProxyType({}),
    ) -> list[Ended]:
        """The same in many processes that are one run, with the variables that torchrun sets.

        preludes, kill_after: of those with that rank.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
        return self._run(
            [
                self._order(
                    arguments,
                    cwd,
                    preludes.get(rank, ""),
                    kill_after.get(rank),
                    variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | dict(env),
                )
                for rank in range(count)
            ]
        )

    def _order(
        self,
        arguments: Sequence[object],
        cwd: Path | None,
        prelude: str,
        kill_after: float | None,
        env: Mapping[str, str],
    ) -> dict[str, Any]:
        rank = env.get("RANK", "0")
        return {
            "arguments": list(map(str, arguments)),
            "prelude": prelude,
            "cwd": str(cwd or self._folder),
            "kill_after": kill_after,
            "env": dict(env),
            "stdout": str(self._folder / f"stdout-{rank}"),
            "stderr": str(self._folder / f"stderr-{rank}"),
        }

    def _run(self, orders: Sequence[dict[str, Any]]) -> list[Ended]:
        begun = time.monotonic()
        self._server.stdin.write(json.dumps(orders) + "\n")
        self._server.stdin.flush()
        results = json.loads(self._server.stdout.readline())
        seconds = time.monotonic() - begun
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return [
            Ended(
                code,
                Path(order["stdout"]).read_text(),
                Path(order["stderr"]).read_text(),
                peak / unit,
                seconds,
            )
            for order, (code, peak) in zip(orders, results, strict=True)
        ]


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
            with Image.open(path) as image:
                image.load()


def killed_often(
    forks: Forks, command: Sequence[object], cwd: Path, delays: Sequence[float]
) -> Ended:
    """Run a command that names --out out and --resume, SIGKILL it after each delay, then let it end.

    A run that ends before it is killed is taken away and begun again, and if nothing of it had
    been there, then the delays were of a slower hour: all become shorter.
    """
    pace = 1.0
    for delay in delays:
        resumed = (cwd / "out").exists()
        while (ended := forks.run(*command, cwd=cwd, kill_after=pace * delay)).code == 0:
            check_whole(cwd / "out")
            rmtree(cwd / "out")
            pace *= 1.0 if resumed else 0.8
            resumed = False
        assert ended.code == -signal.SIGKILL, ended.stderr
        if (cwd / "out").exists():
            check_whole(cwd / "out")
    return forks.run(*command, cwd=cwd)
