"""Honest files of torch.save and safetensors, whole: what they hold, and what they are."""

import argparse
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_parts import call, look_up, number, program, state_dict, text, write_zip
from safetensors.torch import save_file

from ddimctl.checkpoints.build.weights import check_finite, read_file
from ddimctl.checkpoints.identify import check_content
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted import guards
from ddimctl.files.untrusted.zip_members import stored_members

FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def _round_trip(path: Path, value: Any, zipped: bool) -> Any:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return read_file(path, path.name)


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network(torch.ones(2, 2, 5, 5)).sum().backward()
    optimizer.step()
    return network, optimizer


@FORMS
def test_a_list_of_model_optimizer_epoch_step_and_ema_is_read_as_it_was_saved(
    tmp_path: Path, zipped: bool
) -> None:
    network, optimizer = _trained()
    ema = {key: value.double() for key, value in network.state_dict().items()}
    saved = [network.state_dict(), optimizer.state_dict(), 3, 41, ema]
    found = _round_trip(tmp_path / "model.ckpt", saved, zipped)
    assert isinstance(found[0], OrderedDict)
    assert list(found[0]) == list(saved[0])
    assert found[1]["param_groups"] == saved[1]["param_groups"]
    assert found[2:4] == [3, 41]
    for have, had in [
        (found[0], saved[0]),
        (found[4], ema),
        (found[1]["state"][0], saved[1]["state"][0]),
    ]:
        torch.testing.assert_close(dict(have), dict(had), rtol=0, atol=0)


@FORMS
def test_plain_values_and_tensors_of_every_kind_come_back(tmp_path: Path, zipped: bool) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    saved = {
        "views": [whole, whole.t(), whole[1:, ::2], whole[2]],
        "types": [
            torch.ones(2, dtype=d) for d in (torch.float16, torch.bfloat16, torch.int64, torch.bool)
        ],
        "shapes": (torch.tensor(2.5), torch.empty(0, 3), torch.nn.Parameter(torch.ones(2))),
        "plain": [None, True, -1, 2**40, 1.5, "ä", b"\xff", (1, (2,))],
        "torch": [torch.Size([2, 3]), torch.device("cuda:3"), torch.float16],
    }
    found = _round_trip(tmp_path / "model.pt", saved, zipped)
    for kind in ("views", "types", "shapes"):
        for have, had in zip(found[kind], saved[kind], strict=True):
            assert have.dtype == had.dtype
            assert torch.equal(have, had)
    assert found["plain"] == saved["plain"]
    assert found["torch"] == saved["torch"]
    assert found["views"][1].data_ptr() == found["views"][0].data_ptr()


@FORMS
def test_a_namespace_comes_as_a_dict(tmp_path: Path, zipped: bool) -> None:
    saved = {"config": argparse.Namespace(ch=128, model=argparse.Namespace(attn=[16]))}
    found = _round_trip(tmp_path / "model.pt", saved, zipped)
    assert found == {"config": {"ch": 128, "model": {"attn": [16]}}}


@pytest.mark.parametrize("package", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_numpy_scalar_comes_as_a_number_without_numpy(tmp_path: Path, package: str) -> None:
    dtype = call(("numpy", "dtype"), text("f8"), b"\x89", b"\x88")
    dtype += b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = call(("_codecs", "encode"), text("\x00\x00\x00\x00\x00\x00ø?"), text("latin1"))
    write_zip(tmp_path / "a.pt", program(call((package, "scalar"), dtype, data)))
    assert read_file(tmp_path / "a.pt", "a.pt") == 1.5


def test_what_numpy_itself_writes_is_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    scalars = [numpy.float32(0.25), numpy.int64(-3), numpy.bool_(True)]
    assert _round_trip(tmp_path / "a.pt", scalars, True) == [0.25, -3, True]
    with pytest.raises(CheckpointError, match=r"would call numpy.*_reconstruct"):
        _round_trip(tmp_path / "a.pt", numpy.ones(3), True)


def test_the_allowance_for_a_file_ends_with_its_reading(tmp_path: Path) -> None:
    _round_trip(tmp_path / "a.pt", argparse.Namespace(a=1), True)
    assert "argparse.Namespace" not in str(torch.serialization.get_safe_globals())
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt", weights_only=True)


def test_the_tensors_of_a_zip_file_are_mapped_not_copied(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(300), "b": torch.ones(2)}, path := tmp_path / "a.pt")
    places = stored_members(path)
    found = read_file(path, "a.pt")
    apart = places["data/1"].offset - places["data/0"].offset
    assert found["b"].data_ptr() - found["a"].data_ptr() == apart


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    assert torch.equal(read_file(tmp_path / "model.safetensors", "x")["a"], torch.ones(3))
    save_file({"a": torch.ones(3)}, tmp_path / "model.pt")
    assert torch.equal(read_file(tmp_path / "model.pt", "x")["a"], torch.ones(3))


def test_forcing_both_ways_at_once_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match="TORCH_FORCE"):
        _round_trip(tmp_path / "a.pt", {"a": torch.ones(3)}, True)


def test_the_old_format_needs_memory_which_is_asked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "available_memory", lambda: 100)
    assert _round_trip(tmp_path / "a.pt", {"a": torch.ones(30)}, True)
    with pytest.raises(CheckpointError, match=r"needs .* of memory"):
        _round_trip(tmp_path / "a.pt", {"a": torch.ones(30)}, False)


def test_available_memory_is_less_than_a_machine_has() -> None:
    available = guards.available_memory()
    assert available is not None
    assert 2**24 < available <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_container_has_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "_CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\nactive_file 50\n")
    assert guards.available_memory() == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert guards.available_memory() > 2**24


@pytest.mark.parametrize(
    ("bad", "count"), [(float("nan"), 1), (float("inf"), 1), (-float("inf"), 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_are_named_and_counted(
    bad: float, count: int, dtype: torch.dtype
) -> None:
    weights = {name: torch.ones(5, 7, dtype=dtype) for name in "abc"}
    weights["b"][0, :count] = bad
    with pytest.raises(
        CheckpointError, match=rf"^here: b holds {count} NaN or infinite values of 35"
    ) as e:
        check_finite(weights, "here")
    assert "--allow-nonfinite" in e.value.remedy
    weights["c"][1, 1] = bad
    with pytest.raises(CheckpointError, match=r"so does 1 more weight\."):
        check_finite(weights, "here")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_weights_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    same = torch.full((100, 100), largest, dtype=dtype)
    check_finite({"same": same, "both": torch.cat([same, -same])}, "here")
    check_finite(
        {"index": torch.arange(3), "none": torch.empty(0), "p": torch.nn.Parameter(same)}, ""
    )
    with pytest.raises(CheckpointError, match=r"holds 1 NaN"):
        check_finite({"same": torch.cat([same.flatten(), same[0, :1] * float("inf")])}, "here")


def _onnx() -> bytes:
    return b"\x08\x08\x12\x07pytorch\x1a\x052.1.0"


def _torchscript() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"model/{name}", b"")
    return file.getvalue()


def _tar(name: str) -> bytes:
    return name.encode().ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"\x1f\x8b\x08\x00", "compressed", "Unpack"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed", "Unpack"),
        (b"7z\xbc\xaf\x27\x1c\x00", "7z", "Unpack"),
        (b"Rar!\x1a\x07\x01", "rar", "Unpack"),
        (_tar("readme"), "tar archive", "Unpack"),
        (_tar("storages"), r"PyTorch 0\.1", "Save it again"),
        (b"\x89PNG\r\n\x1a\n", "an image", "--ckpt"),
        (b"\xff\xd8\xff\xe0", "an image", "--ckpt"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "an image", "--ckpt"),
        (_onnx(), "ONNX", "PyTorch"),
        (b"GGUF\x03\x00\x00\x00", "GGUF", "diffusers folder"),
        (b"\x89HDF\r\n\x1a\n", "Keras", "PyTorch"),
        (b"\x93NUMPY\x01\x00", "numpy", "diffusers folder"),
        (b"x" * 40 + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "TensorFlow", "PyTorch"),
        (_torchscript(), "TorchScript", "state dict"),
    ],
)
def test_files_of_other_programs_are_named(
    tmp_path: Path, content: bytes, what: str, remedy: str
) -> None:
    (path := tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=what) as caught:
        check_content(path, "model.pt")
    assert remedy in caught.value.remedy
    with pytest.raises(CheckpointError, match=what):
        read_file(path, "model.pt")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in [
        (tmp_path / "pipe", "a pipe or a device"),
        (Path(os.devnull), "a pipe or a device"),
        (tmp_path, "a folder"),
    ]:
        with pytest.raises(CheckpointError, match=what):
            read_file(path, path.name)
    with pytest.raises(CheckpointError, match="nothing: there is no such file"):
        check_content(tmp_path / "nothing", "nothing")


def test_a_pickle_may_name_types_without_calling_them(tmp_path: Path) -> None:
    body = b"](" + look_up("torch", "float16") + number(3) + state_dict() + b"e"
    found = read_file(write_zip(tmp_path / "a.pt", program(body), bytes(16)), "a.pt")
    assert found[:2] == [torch.float16, 3]
    assert torch.equal(found[2]["a"], torch.zeros(4))


@pytest.mark.parametrize("length", [0x8B1F, 0x120108])
def test_the_length_of_a_safetensors_header_may_look_like_another_format(
    tmp_path: Path, length: int
) -> None:
    header = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'.ljust(length)
    (tmp_path / "a").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert check_content(tmp_path / "a", "a") == "safetensors"
    assert torch.equal(read_file(tmp_path / "a", "a")["a"], torch.zeros(1))


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    saved = {"a": torch.arange(64.0), "b": [torch.ones(3, dtype=torch.int64), "text", 1.5]}
    torch.save(saved, path := tmp_path / "a.pt")
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = read_file(path, "a.pt")
        except CheckpointError:
            refused += 1
            continue
        assert found.keys() == saved.keys()
        assert torch.equal(found["a"], saved["a"])
        assert torch.equal(found["b"][0], saved["b"][0])
        assert found["b"][1:] == saved["b"][1:]
    assert refused > 200


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        assert _round_trip(tmp_path / "a.pt", {"a": torch.ones(3)}, True)["a"].sum() == 3
    finally:
        torch.serialization.set_crc32_options(True)
