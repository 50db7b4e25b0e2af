"""What the tests of commands share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ddimctl.cli.main import main


@pytest.fixture
def run_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """run_here(*arguments): code, stdout and stderr of `ddimctl` in this process, in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run
