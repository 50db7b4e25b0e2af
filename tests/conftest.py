"""What all tests share: an environment of their own, two tiny checkpoints, and the command line."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from forks import Forks

pytest.register_assert_rewrite("training_runs")

# Where a shell started the tests in the background it is ignored, also by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # ignored under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Set before anything imports torch or huggingface_hub, which read their environment once.
_CACHE = tempfile.TemporaryDirectory(prefix="ddimctl-tests-", ignore_cleanup_errors=True)
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HOME=f"{_CACHE.name}/huggingface",
    XDG_CACHE_HOME=_CACHE.name,
    DDIMCTL_CACHE=f"{_CACHE.name}/ddimctl",
)
os.environ.setdefault("OMP_NUM_THREADS", "2")
for _name in list(os.environ):  # each DDIMCTL_COMMAND_OPTION is an option
    if _name.startswith("DDIMCTL_") and _name != "DDIMCTL_CACHE":
        del os.environ[_name]
for _name in ("HF_TOKEN", "HF_ENDPOINT"):
    os.environ.pop(_name, None)

_PASSED_ON = (
    *("PATH", "HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR"),
    *("HF_HUB_OFFLINE", "HF_HOME", "XDG_CACHE_HOME", "DDIMCTL_CACHE", "OMP_NUM_THREADS"),
)

# The job of each command; commands import them when they are run.
_JOBS = (
    *("sample.job.sample", "invert.job.invert", "invert.reconstruct.reconstruct"),
    *("interpolate.job.interpolate", "evaluate.job.evaluate", "evaluate.score.score"),
    *("evaluate.reference.make_reference", "replay.job.replay", "train.job.train"),
    *("info.info", "convert.convert"),
)

CLASS_NAMES = ("floor", "wall", "item", "monster", "door")


class Ran(NamedTuple):
    """What a command left: its exit code and everything it printed."""

    code: int
    stdout: str
    stderr: str


class RunCli(Protocol):
    """run_cli(*arguments, env=..., cwd=..., timeout=...): `ddimctl` in a process of its own.

    env is added to a clean environment (no terminal, no colour settings); cwd is the test's own
    temporary folder unless given.
    """

    def __call__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> Ran: ...


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """The environment of a command: what it needs to run, nothing that changes what it prints."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {"LANG": "C.UTF-8", "PYTHONUTF8": "1"}


@pytest.fixture
def run_cli(tmp_path: Path, clean_env: dict[str, str]) -> RunCli:
    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> Ran:
        finished = subprocess.run(
            [sys.executable, "-m", "ddimctl", *map(str, arguments)],
            env=clean_env | dict(env or {}),
            cwd=cwd or tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        return Ran(finished.returncode, finished.stdout, finished.stderr)

    return run


@pytest.fixture(scope="session")
def forks(
    clean_env: dict[str, str], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Forks]:
    """Commands in processes of their own, to be killed and signalled; their checkpoint is tiny."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    with Forks(clean_env, tiny_checkpoint, tmp_path_factory.mktemp("forks")) as started:
        yield started


@pytest.fixture
def run_forked(forks: Forks, tmp_path: Path) -> RunCli:
    """run_cli without the seconds of importing torch: forked from a process that has done so."""

    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 240,
    ) -> Ran:
        prelude = (
            f"import os, signal\nsignal.alarm({int(timeout)})\n"
            f"os.environ.pop('DDIMCTL_CKPT')\nos.environ.update({dict(env or {})!r})"
        )
        ended = forks.run(*arguments, cwd=cwd or tmp_path, prelude=prelude)
        return Ran(ended.code, ended.stdout, ended.stderr)

    return run


@pytest.fixture
def no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever command is run in this process ends where its job would begin: "error: taken"."""
    from ddimctl.errors import RequestError

    def refuse(*_: object, **__: object) -> None:
        raise RequestError("taken")

    for job in _JOBS:
        monkeypatch.setattr(f"ddimctl.jobs.{job}", refuse)
    monkeypatch.setattr("ddimctl.checkpoints.load_checkpoint", refuse)  # which info is about


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder: RGB, 16 x 16, no classes, fixed random weights, linear T = 1000, eps."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    _save_tiny(folder, num_class_embeds=None)
    return folder


@pytest.fixture(scope="session")
def tiny_class_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with CLASS_NAMES, a null class, and the ddimctl.json that `train` writes."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-class"
    _save_tiny(folder, num_class_embeds=len(CLASS_NAMES) + 1)
    settings = {
        "format_version": 1,
        "class_names": list(CLASS_NAMES),
        "num_classes": len(CLASS_NAMES),
        "null_class": len(CLASS_NAMES),
        "background": [0, 0, 0],
        "weights": "ema",
    }
    (folder / "ddimctl.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _save_tiny(folder: Path, num_class_embeds: int | None) -> None:
    import torch
    from diffusers import DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            in_channels=3,
            out_channels=3,
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            num_class_embeds=num_class_embeds,
        )
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(num_train_timesteps=1000).save_pretrained(folder / "scheduler")
