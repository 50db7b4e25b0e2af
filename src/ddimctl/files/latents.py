"""The latent file: one tensor (N, C, H, W) and plain values about it, as .pt or .safetensors."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.errors import DataError, RequestError, brief
from ddimctl.files.atomic import open_atomic
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.reader import read_tensor_file
from ddimctl.files.untrusted.settings import JsonObject, check_format_version, parse_json

SUFFIXES: Final = (".pt", ".safetensors")
LATENTS: Final = "latents"
SAMPLES: Final = "samples"
FORMAT_VERSION: Final = 1
"""Of the metadata."""

_MEANINGS: Final = {LATENTS: "starting noise x_T", SAMPLES: "finished samples x_0"}
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHAPE: Final = "a dict with the key 'latents', or a tensor (N, C, H, W)"
_REMEDY: Final = f"Pass a latent file: {_SHAPE}."
_LARGEST_METADATA: Final = 2**22  # characters of JSON
_LONGEST_PROMPT: Final = 10_000  # characters
_BLOCK: Final = 2**24  # bytes written at once


class LatentFile(NamedTuple):
    """latents: (N, C, H, W), float32, finite. metadata: plain values, empty where there are none."""

    latents: Tensor
    metadata: JsonObject


def save_latents(path: Path, latents: Tensor, metadata: Mapping[str, Any]) -> None:
    """Write x_T (N, C, H, W) as float32 with its metadata, in the format that the suffix names.

    A tensor that is mapped from a file is streamed, not copied into memory.
    Raises RequestError for another suffix, StorageError when the disk refuses.
    """
    _save(path, LATENTS, latents, metadata)


def save_samples(
    path: Path,
    samples: Tensor,
    metadata: Mapping[str, Any],
    more: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """The same for finished images, under the key "samples". more: other tensors, in a .pt."""
    _save(path, SAMPLES, samples, metadata, more)


def load_latents(path: Path, key: str = LATENTS) -> LatentFile:
    """Read an untrusted latent file (key SAMPLES: a samples file); nothing in it is executed.

    A bare tensor is accepted, and one of (C, H, W) gets a batch dimension. Raises DataError,
    naming the file and what is wrong with it.
    """
    with refusals(str(path), DataError, _REMEDY):
        content, texts = read_tensor_file(path)
        if isinstance(content, Tensor):
            content = {key: content}
        if not isinstance(content, dict):
            raise Refused(f"holds a {type(content).__name__}, not {_SHAPE}.")
        latents = _checked(_pick(key, content))
    if texts is None:
        return LatentFile(latents, plain_metadata(path, content.get("metadata", {})))
    with refusals(f"{path}: its metadata", DataError):
        metadata = parse_json(texts.get("ddimctl", "{}"), paths=True)
    return LatentFile(latents, plain_metadata(path, metadata))


def plain_metadata(path: Path, metadata: Any) -> JsonObject:
    """Untrusted settings, of a latent file or a manifest, if they are plain values of the right
    types; anything else in them is not for us to carry on. Raises DataError naming the file.
    """
    with refusals(f"{path}: its metadata", DataError):
        plain = _plain(metadata)
        if not isinstance(plain, dict):
            raise Refused("is not a dict.")
        check_format_version(plain, FORMAT_VERSION)
        for name, is_right in _KNOWN.items():
            if name in plain and not is_right(plain[name]):
                raise Refused(f"has an invalid value for '{name}'.")
    return plain


def _plain(values: Any) -> Any:
    """The values as JSON has them: tuples as lists, all names as texts."""
    size, chunks = 0, []
    try:
        for chunk in json.JSONEncoder(allow_nan=False).iterencode(values):
            chunks.append(chunk)
            size += len(chunk)
            if size > _LARGEST_METADATA:  # a few bytes of pickle can stand for terabytes
                raise Refused("is too large.")
    except (TypeError, ValueError, RecursionError) as error:
        raise Refused("does not hold plain values only.") from error
    return parse_json("".join(chunks), paths=True)


def _save(
    path: Path,
    key: str,
    tensor: Tensor,
    metadata: Mapping[str, Any],
    more: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise RequestError(
            f"{path}: the suffix is not that of a latent file.", f"Use {' or '.join(SUFFIXES)}."
        )
    if tensor.ndim != 4:
        raise DataError(f"{key} must be (N, C, H, W), not {tuple(tensor.shape)}.")
    text = json.dumps(metadata, allow_nan=False)
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()  # torch.save would write the whole storage of a view
    with open_atomic(path) as file:
        if path.suffix.lower() == ".pt":
            torch.save({key: tensor, **more, "metadata": json.loads(text)}, file)
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


def _pick(key: str, content: Mapping[Any, Any]) -> Any:
    if key in content:
        return content[key]
    for other, meaning in _MEANINGS.items():
        if other in content:
            raise Refused(f"holds {meaning}, not {_MEANINGS[key]}.")
    found = ", ".join(map(brief, list(content)[:3])) or "nothing"
    raise Refused(f"has no '{key}'; it holds {found}.")


def _checked(tensor: Any) -> Tensor:
    """The tensor of a file as (N, C, H, W), float32 and finite, in memory."""
    if not isinstance(tensor, Tensor):
        raise Refused("holds latents that are not a plain tensor.")
    if tensor.dtype not in _DTYPES:
        raise Refused(f"holds numbers of type {tensor.dtype}, not floating-point numbers.")
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4:
        raise Refused(f"has the shape {tuple(tensor.shape)}, not (N, C, H, W).")
    if tensor.numel() == 0:
        raise Refused(f"holds no latent: its shape is {tuple(tensor.shape)}.")
    plain = torch.contiguous_format
    latents: Tensor = tensor.detach().to(torch.float32, copy=True, memory_format=plain)
    for index, latent in enumerate(latents):
        if not bool(latent.isfinite().all()):
            raise Refused(f"holds NaN or infinite values in latent {index}.")
    return latents


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_PROMPT


# What is used of a stranger's metadata; the rest is carried along unread.
_KNOWN: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("steps", "top"), _is_count),
    **dict.fromkeys(("timesteps", "labels", "seeds"), _are_counts),
    **dict.fromkeys(("eta", "guidance", "guidance_rescale"), _is_number),
    "prompts": lambda value: isinstance(value, list) and all(map(_is_prompt, value)),
    "negative": _is_prompt,
    **dict.fromkeys(
        ("tau", "variance", "solver", "clip", "precision", "method", "prediction"), _is_text
    ),
    **dict.fromkeys(("checkpoint", "schedule", "codec"), lambda value: isinstance(value, dict)),
}
