"""The reference file: what is kept of a data set to score samples against, as .safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import write_bytes
from ddimctl.files.untrusted.guards import refusals
from ddimctl.files.untrusted.safetensors_file import read_safetensors
from ddimctl.files.untrusted.settings import JsonObject, check_format_version, parse_json

SUFFIX: Final = ".safetensors"
FORMAT_VERSION: Final = 1
_LARGEST: Final = 2**30  # bytes: many times what any metric keeps
_DTYPES: Final = (torch.int64, torch.float32, torch.float64)
_REMEDY: Final = "Make one with: ddimctl reference DATA."


def check_reference_name(path: Path) -> None:
    """Raise RequestError for another suffix, before anything is measured."""
    if path.suffix.lower() != SUFFIX:
        raise RequestError(f"{path}: a reference file ends in {SUFFIX}.", f"Name it NAME{SUFFIX}.")


def save_reference(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write the tensors, and the facts about them (plain values) into the header.

    Raises RequestError for another suffix, StorageError when the disk refuses.
    """
    check_reference_name(path)
    text = json.dumps(facts, allow_nan=False)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(whole, {"ddimctl": text}))


def load_reference(path: Path) -> tuple[dict[str, Tensor], JsonObject]:
    """The tensors, finite, and the facts of an untrusted file.

    Raises RequestError where there is none, DataError for what is not a reference file.
    """
    if not path.is_file():
        raise RequestError(f"{path}: there is no such file.", _REMEDY)
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} is too large for a reference file.", _REMEDY)
    with refusals(f"the reference file {path}", DataError, _REMEDY):
        tensors, texts = read_safetensors(path)
        facts = parse_json(texts.get("ddimctl", "null"), paths=True)
    if not isinstance(facts, dict) or facts.get("kind") != "reference":
        raise DataError(f"{path} is not a reference file.", _REMEDY)
    with refusals(str(path), DataError, _REMEDY):
        check_format_version(facts, FORMAT_VERSION)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES or not bool(tensor.isfinite().all()):
            raise DataError(f"{path}: its '{name}' is damaged.", _REMEDY)
    return tensors, facts
