"""Commands in processes that share one import of torch, so that killing twenty of them is cheap.

The server has run no tensor operation, so its forks are as good as fresh processes. A fault is
Python source that a fork runs before its command.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """code: the exit code, or minus the signal that killed it.  text: everything it printed."""

    code: int
    text: str
    seconds: float


class Forks:
    """forks(*arguments, fault=..., kill_after=seconds): `ddimctl` in a fork of the server."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=dict(env) | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, *arguments: str | Path, fault: str = "", kill_after: float | None = None
    ) -> Ended:
        job = {"arguments": list(map(str, arguments)), "fault": fault, "log": str(self._log)}
        assert self._server.stdin and self._server.stdout
        begun = time.monotonic()
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # a child that has ended is not reaped before "reap"
        self._server.stdin.write("reap\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return Ended(code, self._log.read_text("utf-8"), time.monotonic() - begun)

    def close(self) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(timeout=60)


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    import torch._dynamo  # which optimizers import

    import ddimctl.jobs.train  # noqa: F401
    from ddimctl.checkpoints._diffusers import import_unet
    from ddimctl.cli.main import main

    import_unet()
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
                os.dup2(target, stream)
            code = 70
            try:
                exec(job["fault"], {})
                code = main(job["arguments"])
            except BaseException:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        print(child, flush=True)
        assert sys.stdin.readline() == "reap\n"
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
