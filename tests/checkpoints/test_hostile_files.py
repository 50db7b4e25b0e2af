"""Hostile files of tensors are refused in words: nothing in them runs, no memory is taken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_files import BROKEN, CALLING, payload, read, read_latents
from pickle_parts import program, write_zip
from tiny_unets import tiny_unet

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import CheckpointError, DataError
from peak import IMPORT_PEAK

pytestmark = [
    pytest.mark.filterwarnings("ignore:Duplicate name"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
]
MEASURE = f"""
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from hostile_files import measure
measure(Path(sys.argv[1]))
"""
FORCED = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    write, said = BROKEN[name]
    write(path := tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=said) as caught:
        read(path)
    assert caught.value.cause.startswith("folder/model.bin")
    with pytest.raises(DataError, match=said) as of_latents:
        read_latents(path)
    assert of_latents.value.cause == caught.value.cause.replace("folder/model.bin", str(path))
    for error in (caught.value, of_latents.value):
        assert len(error.cause.splitlines()) == 1
        assert len(error.cause.replace(str(path), "")) < 300
        assert error.remedy


@pytest.mark.parametrize("forced", [None, *FORCED])
@pytest.mark.parametrize("name", CALLING)
def test_files_that_call_something_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, forced: str | None
) -> None:
    if forced:
        monkeypatch.setenv(forced, "1")
    write, said = CALLING[name]
    write(path := tmp_path / "model.bin", canary := tmp_path / "canary")
    with pytest.raises(CheckpointError, match=said):
        read(path)
    with pytest.raises(DataError, match=said):
        read_latents(path)
    assert not canary.exists()


@pytest.mark.parametrize("forced", FORCED)
def test_torch_load_itself_would_not_run_them_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: str
) -> None:
    from ddimctl.files.untrusted import reader

    monkeypatch.setenv(forced, "1")
    monkeypatch.setattr(reader, "_check_zip", lambda *arguments: None)
    canary = tmp_path / "canary"
    write_zip(tmp_path / "model.bin", program(payload(canary)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path / "model.bin")
    assert not canary.exists()


_CARELESS = """
import pathlib, pickle, sys, torch
for path in map(pathlib.Path, sys.argv[1:]):
    try:
        with path.open("rb") as file:
            pickle.load(file) if "bare" in path.name else torch.load(file, weights_only=False)
    except Exception:
        pass
"""


def test_unpickled_without_care_they_all_would_run(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in CALLING]
    for path, (write, _) in zip(paths, CALLING.values(), strict=True):
        write(path, tmp_path / f"canary-{path.name}")
    subprocess.run([sys.executable, "-c", _CARELESS, *paths], check=True, timeout=120)
    assert {path.name for path in tmp_path.glob("canary-*")} == {f"canary-{n}" for n in CALLING}


def test_none_of_them_takes_memory(tmp_path: Path, clean_env: dict[str, str]) -> None:
    (files := tmp_path / "files").mkdir()
    for name, (write, _) in BROKEN.items():
        write(files / name)
    for name, (write_calling, _) in CALLING.items():
        write_calling(files / f"calling-{name}", tmp_path / "canary")
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_PEAK + MEASURE, files],
        env=clean_env,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    grown = json.loads(ran.stdout)
    assert set(grown) == {path.name for path in files.iterdir()}
    assert {name: size for name, size in grown.items() if size > 200} == {}
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["zip", "legacy", "expanded", "st-cut"])
def test_the_command_says_it_in_two_lines(tmp_path: Path, run_cli, name: str) -> None:
    tiny_unet().save_config(folder := tmp_path / "model")
    path = folder / f"diffusion_pytorch_model.{'safetensors' if name[:3] == 'st-' else 'bin'}"
    if name in CALLING:
        CALLING[name][0](path, tmp_path / "canary")
    else:
        BROKEN[name][0](path)
    said = (CALLING.get(name) or BROKEN[name])[1]
    ran = run_cli("info", folder, env=dict.fromkeys(FORCED[:1], "1"))
    assert ran.code == 1
    assert ran.stdout == ""
    cause, remedy = ran.stderr.splitlines()
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(folder)
    assert caught.value.cause in cause
    assert caught.value.remedy in remedy
    assert not (tmp_path / "canary").exists()
