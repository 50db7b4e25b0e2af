import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ddimctl.errors import DataError, RequestError, StorageError
from ddimctl.files import latents
from ddimctl.files.latents import SAMPLES, load_latents, save_latents, save_samples

SUFFIXES = [".pt", ".safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("version", [2, 0, "1", None, True])
def test_metadata_of_another_format_version_are_refused_by_name(tmp_path, suffix, version):
    path = tmp_path / f"a{suffix}"
    save_latents(path, torch.zeros(1, 3, 4, 4), {"format_version": version})
    with pytest.raises(DataError, match="its metadata has the format version"):
        load_latents(path)


METADATA = {
    "checkpoint": {"name": "google/ddpm-cifar10-32", "revision": None},
    "timesteps": [0, 10, 999],
    "eta": 0.5,
    "flag": False,
    "text": "ᾱ",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_latents_and_metadata_come_back(tmp_path: Path, suffix: str) -> None:
    path, x_T = tmp_path / f"a{suffix}", torch.randn(3, 2, 4, 5)
    save_latents(path, x_T, METADATA)
    found = load_latents(path)
    assert torch.equal(found.latents, x_T)
    assert found.metadata == METADATA


def test_others_read_the_files_without_us(tmp_path: Path) -> None:
    x_T = torch.randn(2, 3, 4, 4)
    save_latents(tmp_path / "a.pt", x_T, METADATA)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"latents", "metadata"}
    assert torch.equal(content["latents"], x_T)
    assert content["metadata"] == METADATA

    save_latents(tmp_path / "a.safetensors", x_T, METADATA)
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("latents"), x_T)
        assert json.loads(file.metadata()["ddimctl"]) == METADATA


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_samples_are_a_file_of_their_own(tmp_path: Path, suffix: str) -> None:
    path, samples = tmp_path / f"a{suffix}", torch.randn(1, 1, 2, 2)
    save_samples(path, samples, {})
    assert torch.equal(load_latents(path, SAMPLES).latents, samples)
    with pytest.raises(DataError, match="finished samples x_0, not starting noise x_T"):
        load_latents(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    x_T = torch.randn(2, 1, 3, 3, dtype=dtype)
    save_latents(tmp_path / f"a{suffix}", x_T, {})
    assert torch.equal(load_latents(tmp_path / f"a{suffix}").latents, x_T.float())
    if suffix == ".pt":
        torch.save({"latents": x_T}, tmp_path / "b.pt")
    else:
        save_file({"latents": x_T}, tmp_path / "b.safetensors")
    found = load_latents(tmp_path / f"b{suffix}")
    assert found.latents.dtype == torch.float32
    assert torch.equal(found.latents, x_T.float())
    assert found.metadata == {}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_latents_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    x_T = torch.randn(2, 1, 3, 3)
    (tmp_path / "b").mkdir()
    for path in (tmp_path / f"a{suffix}", tmp_path / "b" / f"c{suffix}"):
        save_latents(path, x_T.clone(), METADATA)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / "b" / f"c{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_view_is_written_without_what_it_is_a_view_of(tmp_path: Path, suffix: str) -> None:
    whole = torch.randn(100, 3, 16, 16)
    for index, view in enumerate((whole[7:8], whole.permute(0, 1, 3, 2)[:1], whole[:1, :, ::2])):
        path = tmp_path / f"{index}{suffix}"
        save_latents(path, view, {})
        assert torch.equal(load_latents(path).latents, view)
        assert path.stat().st_size < 8192


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_mapped_tensor_is_written_from_the_map(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 6 * 2**20  # 24 MiB, more than one block
    mapped = torch.from_file(str(tmp_path / "map"), shared=True, size=size).view(-1, 3, 32, 64)
    mapped.copy_(torch.arange(size).view_as(mapped) % 1013)
    written: list[int] = []
    torch_save, write = torch.save, latents._write_safetensors

    def spy_pt(content: dict[str, torch.Tensor], file: object) -> None:
        written.append(content["latents"].data_ptr())
        torch_save(content, file)

    def spy_safetensors(file: object, key: str, tensor: torch.Tensor, text: str) -> None:
        written.append(tensor.data_ptr())
        write(file, key, tensor, text)

    monkeypatch.setattr(latents.torch, "save", spy_pt)
    monkeypatch.setattr(latents, "_write_safetensors", spy_safetensors)
    save_latents(tmp_path / f"a{suffix}", mapped, {"n": len(mapped)})
    assert written == [mapped.data_ptr()]
    assert torch.equal(load_latents(tmp_path / f"a{suffix}").latents, mapped)


def test_a_bare_tensor_is_accepted_and_gets_a_batch_dimension(tmp_path: Path) -> None:
    x_T = torch.randn(2, 3, 4, 4)
    torch.save(x_T, tmp_path / "four.pt")
    torch.save(torch.nn.Parameter(x_T[0]), tmp_path / "three.pt")
    torch.save(x_T, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_latents(tmp_path / "four.pt").latents, x_T)
    assert torch.equal(load_latents(tmp_path / "old.pt").latents, x_T)
    found = load_latents(tmp_path / "three.pt")
    assert torch.equal(found.latents, x_T[:1])
    assert not found.latents.requires_grad
    assert found.metadata == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"weights": torch.zeros(1)}, "no 'latents'; it holds 'weights'"),
        ({}, "holds nothing"),
        ([torch.zeros(1, 1, 2, 2)], "holds a list"),
        (7, "holds a int"),
        ({"latents": "text"}, "not a plain tensor"),
        ({"latents": torch.zeros(1, 1, 2, 2).to_sparse()}, "holds a sparse tensor"),
        (torch.zeros(4, 4), r"shape \(4, 4\)"),
        (torch.zeros(1, 1, 1, 4, 4), "not \\(N, C, H, W\\)"),
        (torch.zeros(0, 3, 4, 4), "holds no latent"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.int64), "torch.int64"),
        (torch.zeros(1, 1, 2, 2, dtype=torch.complex64), "torch.complex64"),
        (torch.zeros(1).expand(1000, 3, 100, 100), "larger than its storage"),
        (
            torch.tensor([0.0, 1.0, float("nan")]).view(3, 1, 1, 1),
            "NaN or infinite values in latent 2",
        ),
        (
            torch.full((2, 1, 1, 1), 1e300, dtype=torch.float64),
            "NaN or infinite values in latent 0",
        ),
        ({"latents": torch.zeros(1, 1, 1, 1), "metadata": [1]}, "not a dict"),
        ({"latents": torch.zeros(1, 1, 1, 1), "metadata": {"a": torch.zeros(1)}}, "plain values"),
        ({"latents": torch.zeros(1, 1, 1, 1), "metadata": {"a": float("inf")}}, "plain values"),
    ],
)
def test_what_is_no_latent_is_refused_with_the_reason(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=words) as raised:
        load_latents(tmp_path / "a.pt")
    assert raised.value.cause.startswith(str(tmp_path / "a.pt"))


@pytest.mark.parametrize(("levels", "words"), [(7, "too large"), (9, "nested too deeply")])
def test_metadata_that_unfolds_without_end_is_refused(
    tmp_path: Path, levels: int, words: str
) -> None:
    folded: list[object] = []
    for _ in range(levels):
        folded = [folded] * 10
    torch.save({"latents": torch.zeros(1, 1, 1, 1), "metadata": {"a": folded}}, tmp_path / "a.pt")
    with pytest.raises(DataError, match=words):
        load_latents(tmp_path / "a.pt")


class Hostile:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.canary, "executed"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pt"
    content = {"latents": torch.zeros(1, 1, 2, 2), "metadata": Hostile(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"would call [\w.]+, so it was not read"):
        load_latents(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)  # it would have been run
    assert canary.exists()


def test_a_bare_hostile_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Hostile(canary), protocol=2))
    with pytest.raises(DataError, match=r"a\.pt"):
        load_latents(tmp_path / "a.pt")
    assert not canary.exists()


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(1, 3, 512, 512), buffer)
    with (
        zipfile.ZipFile(buffer) as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    with pytest.raises(DataError, match="compressed"):
        load_latents(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"hello", "cannot be read"),
        (b"PK\x03\x04 and no more", "is a zip archive"),
        (struct.pack("<Q", 2**60) + b"{}", "cannot be read"),
    ],
)
def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, suffix: str, data: bytes, words: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as raised:
        load_latents(path)
    assert len(raised.value.cause.splitlines()) == 1
    assert raised.value.remedy


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_give_latents_or_a_data_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    save_latents(path, torch.randn(1, 1, 4, 4), METADATA)
    whole, generator = path.read_bytes(), torch.Generator().manual_seed(0)
    for trial in range(150):
        data = bytearray(whole if trial % 3 else whole[: len(whole) * trial // 150])
        for place in torch.randint(0, max(1, len(data)), (5,), generator=generator).tolist():
            data[place : place + 1] = bytes([int(torch.randint(256, (), generator=generator))])
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_latents(path)
            except DataError:
                continue


@pytest.mark.parametrize("name", ["gone.pt", "gone.safetensors", "."])
def test_files_that_are_not_there_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        load_latents(tmp_path / name)


def test_other_suffixes_and_shapes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"a\.npz"):
        save_latents(tmp_path / "a.npz", torch.zeros(1, 1, 2, 2), {})
    with pytest.raises(DataError, match="must be"):
        save_latents(tmp_path / "a.pt", torch.zeros(2, 2), {})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        save_latents(tmp_path / "file" / "a.pt", torch.zeros(1, 1, 2, 2), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", "abc"),
        ("timesteps", [0, 1.5]),
        ("timesteps", [True]),
        ("steps", -1),
        ("steps", "20"),
        ("eta", "1"),
        ("guidance", None),
        ("labels", 3),
        ("seeds", [-1]),
        ("precision", 32),
        ("tau", []),
        ("checkpoint", "google/ddpm"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_settings_of_a_wrong_type_are_refused_by_name(tmp_path, name, value, suffix):
    path = tmp_path / f"strange{suffix}"
    save_latents(path, torch.zeros(1, 3, 4, 4), {name: value})
    with pytest.raises(DataError, match=f"invalid value for '{name}'"):
        load_latents(path)


def test_names_that_are_not_utf_8_stay_readable(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for suffix in SUFFIXES:
        save_latents(path := tmp_path / f"a{suffix}", torch.ones(1, 1, 2, 2), {"picture": name})
        assert load_latents(path).metadata == {"picture": name}
    save_latents(path := tmp_path / f"{name}.pt", torch.ones(1, 1, 2, 2), {})
    assert torch.equal(load_latents(path).latents, torch.ones(1, 1, 2, 2))
    torch.save({"latents": torch.ones(1, 1, 2, 2), "metadata": {"picture": "\ud800"}}, path)
    with pytest.raises(DataError, match="a lone surrogate"):
        load_latents(path)


def test_what_is_read_is_a_copy_that_no_change_of_the_file_reaches(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        save_latents(path := tmp_path / f"a{suffix}", torch.ones(1, 3, 64, 64), {})
        found = load_latents(path).latents
        path.write_bytes(bytes(path.stat().st_size))
        assert torch.equal(found, torch.ones(1, 3, 64, 64))


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    save_latents(tmp_path / "a.pt", torch.ones(1, 1, 2, 2), {"eta": 0.5})
    save_latents(tmp_path / "b.safetensors", torch.ones(1, 1, 2, 2), {"eta": 0.5})
    (tmp_path / "a.pt").rename(tmp_path / "c.safetensors")
    (tmp_path / "b.safetensors").rename(tmp_path / "d.pt")
    for name in ("c.safetensors", "d.pt"):
        found = load_latents(tmp_path / name)
        assert torch.equal(found.latents, torch.ones(1, 1, 2, 2))
        assert found.metadata == {"eta": 0.5}
