"""The latent file: one tensor (N, C, H, W) and plain values about it, as .pt or .safetensors."""

import json
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import open_atomic
from ddimctl.files.untrusted.paths import check_plain_file, no_permission, reason

SUFFIXES: Final = (".pt", ".safetensors")
LATENTS: Final = "latents"
SAMPLES: Final = "samples"

_MEANINGS: Final = {LATENTS: "starting noise x_T", SAMPLES: "finished samples x_0"}
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPE: Final = "a dict with the key 'latents', or a tensor (N, C, H, W)"
_LARGEST_METADATA: Final = 2**22  # characters of JSON
_BLOCK: Final = 2**24  # bytes written at once
# Of what torch.load calls while it reads, as pickles name it.
_MAKERS: Final = (b"c_codecs\nencode\n", b"c__builtin__\nbytearray\n", b"cbuiltins\nbytearray\n")
# What torch.load raises on files that are damaged, hostile, or something else.
_READING_ERRORS: Final = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError),
    *(AttributeError, ArithmeticError, AssertionError, MemoryError, OSError, struct.error),
    *(zipfile.BadZipFile, SafetensorError),
)


class LatentFile(NamedTuple):
    """latents: (N, C, H, W), float32, finite. metadata: plain values, empty where there are none."""

    latents: Tensor
    metadata: dict[str, Any]


def save_latents(path: Path, latents: Tensor, metadata: Mapping[str, Any]) -> None:
    """Write x_T (N, C, H, W) as float32 with its metadata, in the format that the suffix names.

    A tensor that is mapped from a file is streamed, not copied into memory.
    Raises RequestError for another suffix, StorageError when the disk refuses.
    """
    _save(path, LATENTS, latents, metadata)


def save_samples(path: Path, samples: Tensor, metadata: Mapping[str, Any]) -> None:
    """The same for x_0, under the key "samples"."""
    _save(path, SAMPLES, samples, metadata)


def load_latents(path: Path, key: str = LATENTS) -> LatentFile:
    """Read a stranger's latent file (key SAMPLES: a samples file); nothing in it is executed.

    A bare tensor is accepted, and one of (C, H, W) gets a batch dimension. Raises DataError,
    naming the file and what is wrong with it.
    """
    _sniff(path)
    safe = path.suffix.lower() == ".safetensors"
    try:
        tensor, metadata = _read_safetensors(path, key) if safe else _read_pt(path, key)
    except _READING_ERRORS as error:
        why = "it is damaged, or of another format"
        if isinstance(error, pickle.UnpicklingError):
            why += ", or holds objects other than plain tensors and values, which are not loaded"
        raise DataError(
            f"{path} cannot be read: {why}.", f"Give a latent file: {_SHAPE}."
        ) from error
    return LatentFile(_checked(path, tensor), plain_metadata(path, metadata))


def plain_metadata(path: Path, metadata: Any) -> dict[str, Any]:
    """A stranger's settings, of a latent file or a manifest, if they are plain values of the right
    types; anything else in them is not for us to carry on. Raises DataError naming the file.
    """
    size, chunks = 0, []
    try:
        for chunk in json.JSONEncoder(allow_nan=False).iterencode(metadata):
            chunks.append(chunk)
            size += len(chunk)
            if size > _LARGEST_METADATA:  # a few bytes of pickle can stand for terabytes
                raise DataError(f"{path}: its metadata is too large.")
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: its metadata is not plain values.") from error
    if not isinstance(metadata, dict):
        raise DataError(f"{path}: its metadata is no table of names and values.")
    known = cast(dict[str, Any], json.loads("".join(chunks)))
    for name, is_right in _KNOWN.items():
        if name in known and not is_right(known[name]):
            raise DataError(f"{path}: its metadata has an impossible '{name}'.")
    return known


def _save(path: Path, key: str, tensor: Tensor, metadata: Mapping[str, Any]) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"{path}: the suffix names no latent format.", f"Use {' or '.join(SUFFIXES)}."
        )
    if tensor.ndim != 4:
        raise DataError(f"{key} must be (N, C, H, W), not {tuple(tensor.shape)}.")
    text = json.dumps(metadata, allow_nan=False)
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # torch.save would write the whole storage of a view
    with open_atomic(path) as file:
        if path.suffix.lower() == ".pt":
            torch.save({key: tensor, "metadata": json.loads(text)}, file)
        else:
            _write_safetensors(file.write, key, tensor, text)


def _write_safetensors(
    write: Callable[[bytes], object], key: str, tensor: Tensor, metadata: str
) -> None:
    """The format itself: the header's length, the JSON header, the numbers (little-endian)."""
    entry = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
    header = json.dumps({"__metadata__": {"ddimctl": metadata}, key: entry}).encode("ascii")
    header += b" " * (-len(header) % 8)
    write(len(header).to_bytes(8, "little") + header)
    values = tensor.view(-1)
    for start in range(0, len(values), _BLOCK // 4):
        write(values[start : start + _BLOCK // 4].numpy().astype("<f4", copy=False).tobytes())


def _sniff(path: Path) -> None:
    """Refuse what is plainly something else than a file of tensors."""
    check_plain_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except PermissionError as error:
        raise no_permission(path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.", "Check the disk.") from error
    if not start:
        raise DataError(f"{path} is empty.", "Write or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself.", "Run git lfs pull.")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not a latent file.", "Download the file itself.")


def _read_pt(path: Path, key: str) -> tuple[Any, Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            claimed = sum(entry.file_size for entry in entries)
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or claimed > path.stat().st_size:  # torch never compresses
                raise DataError(f"{path} is compressed: it would unpack to {claimed} bytes.")
            for entry in entries:
                if entry.filename.endswith("data.pkl"):
                    _check_pickle(path, archive.read(entry))
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as old:
            _check_pickle(path, old)
    content = torch.load(path, weights_only=True, map_location="cpu")
    if isinstance(content, Tensor):
        return content, {}
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not {_SHAPE}.")
    return _pick(path, key, content), content.get("metadata", {})


def _check_pickle(path: Path, content: bytes | mmap.mmap) -> None:
    """Refuse what makes gigabytes of a few bytes; no plain value is made with it."""
    for maker in _MAKERS:
        if content.find(maker) >= 0:
            name = ".".join(maker[1:].decode().split())
            raise DataError(
                f"{path} holds objects other than plain tensors and values ({name}), which are "
                "not loaded.",
                f"Give a latent file: {_SHAPE}.",
            )


def _read_safetensors(path: Path, key: str) -> tuple[Any, Any]:
    with safe_open(path, framework="pt") as file:
        _pick(path, key, dict.fromkeys(file.keys()))
        text = (file.metadata() or {}).get("ddimctl", "{}")
        return file.get_tensor(key), json.loads(text)


def _pick(path: Path, key: str, content: Mapping[Any, Any]) -> Any:
    if key in content:
        return content[key]
    for other, meaning in _MEANINGS.items():
        if other in content:
            raise DataError(f"{path} holds {meaning}, not {_MEANINGS[key]}.")
    found = ", ".join(repr(name) for name in list(content)[:3]) or "nothing"
    raise DataError(f"{path} has no '{key}'; it holds {found}.", f"Give a latent file: {_SHAPE}.")


def _checked(path: Path, tensor: Any) -> Tensor:
    """A stranger's tensor as (N, C, H, W), float32 and finite."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        raise DataError(f"{path}: the latents are not a plain tensor.")
    if tensor.dtype not in _DTYPES:
        raise DataError(f"{path} holds numbers of type {tensor.dtype}, not floating-point ones.")
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4:
        raise DataError(f"{path} has the shape {tuple(tensor.shape)}, not (N, C, H, W).")
    if tensor.numel() == 0:
        raise DataError(f"{path} holds no latent: its shape is {tuple(tensor.shape)}.")
    if tensor.untyped_storage().nbytes() < tensor.nbytes:  # strides of 0 claim without holding
        raise DataError(f"{path} claims more numbers than it holds.")
    latents: Tensor = tensor.detach().to(torch.float32).contiguous()
    for index, latent in enumerate(latents):
        if not bool(latent.isfinite().all()):
            raise DataError(f"{path}: latent {index} has values that are not finite.")
    return latents


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


# What is used of a stranger's metadata; the rest is carried along unread.
_KNOWN: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("steps", "top"), _is_count),
    **dict.fromkeys(("timesteps", "labels", "seeds"), _are_counts),
    **dict.fromkeys(("eta", "guidance"), _is_number),
    **dict.fromkeys(
        ("tau", "variance", "solver", "clip", "precision", "method", "prediction"), _is_text
    ),
    **dict.fromkeys(("checkpoint", "schedule"), lambda value: isinstance(value, dict)),
}
