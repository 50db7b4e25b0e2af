"""Weight files: found, read without running anything, and put into a network, strictly."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from ddimctl.checkpoints.source import Source, read_json
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.guards import check_memory, refusals
from ddimctl.files.untrusted.reader import read_tensor_file
from ddimctl.files.untrusted.settings import JsonObject

STEM: Final = "diffusion_pytorch_model"
STEMS: Final = {"safetensors": STEM, "bin": STEM}
"""What weight files are called, by kind."""
TEXT_STEMS: Final = {"safetensors": "model", "bin": "pytorch_model"}
"""The same for the networks of transformers."""

# The attention blocks of diffusers before 0.15, as in the google/ddpm-* files.
_OLD_ATTENTION: Final = re.compile(
    r"(.+\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)"
)
_ATTENTION_NAMES: Final = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}

_GET_PLAIN: Final = (
    "Use a safetensors file, or a plain state dict, as torch.save(model.state_dict(), …) writes it."
)
_FLOATS: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SHOWN: Final = 5


def find_weights(
    source: Source, prefix: str, variant: str | None, stems: Mapping[str, str] = STEMS
) -> tuple[Path, ...]:
    """The weight files under prefix ("" or "unet/"), by name: safetensors before .bin, one file
    before shards. stems: STEMS or TEXT_STEMS. Raises CheckpointError where there are none.
    """
    found = look_for_weights(source, prefix, variant, stems)
    if found:
        return found
    tag = f".{variant}" if variant else ""
    wanted = f"{prefix}{stems['safetensors']}{tag}.safetensors or .bin"
    raise CheckpointError(
        f"{source.name} has no weights ({wanted}).",
        "Leave out --variant, or pass one that the folder has."
        if variant
        else "If the file names contain a variant such as fp16, pass --variant fp16.",
    )


def look_for_weights(
    source: Source, prefix: str, variant: str | None, stems: Mapping[str, str]
) -> tuple[Path, ...]:
    """The same, but nothing where there are none."""
    tag = f".{variant}" if variant else ""
    for kind, stem in stems.items():
        whole = source.get(f"{prefix}{stem}{tag}.{kind}")
        if whole is not None:
            return (whole,)
        index = f"{prefix}{stem}.{kind}.index{tag}.json"
        found = read_json(source, index)
        if found is not None:
            return _shards(source, prefix, index, found)
    return ()


def _shards(source: Source, prefix: str, where: str, index: JsonObject) -> tuple[Path, ...]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{source.name}/{where} has no weight_map.", "Get the file again.")
    paths = []
    for name in sorted({str(name) for name in names.values()}):
        if "/" in name or "\\" in name or name.startswith("."):
            raise CheckpointError(f"{source.name}/{where} names a file elsewhere: {name!r}.")
        path = source.get(prefix + name)
        if path is None:
            raise CheckpointError(
                f"{source.name}/{prefix}{name} is missing, but {where} lists it.",
                "Download the whole checkpoint.",
            )
        paths.append(path)
    return tuple(paths)


def check_room(paths: Sequence[Path], name: str) -> None:
    """Raise CheckpointError where the files are larger than the memory. name: the checkpoint's."""
    with refusals(name, CheckpointError):
        check_memory(size_of(paths))


def size_of(paths: Iterable[Path]) -> int:
    """Bytes."""
    return sum(path.stat().st_size for path in paths)


def sha256_of(paths: Iterable[Path]) -> str:
    """Of the files' bytes one after the other, hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def read_weights(paths: Sequence[Path], name: str, unused: str = "") -> dict[str, Tensor]:
    """Weights by their present-day names, on the CPU, memory-mapped where the format can.

    name: the checkpoint's, for messages. unused: those whose names end so are left out. Raises CheckpointError for damaged or foreign files.
    """
    weights: dict[str, Tensor] = {}
    for path in paths:
        where = f"{name}/{path.name}"
        found = read_file(path, where)
        if not isinstance(found, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
        ):
            raise CheckpointError(
                f"{where} is not a state dict.", "Use the file of the UNet's weights."
            )
        for key, tensor in found.items():
            if unused and key.endswith(unused):
                continue
            key = _present_name(key)
            if key in weights:
                raise CheckpointError(f"{where}: the weight {key} occurs twice.")
            if tensor.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{where}: {key} has the type {tensor.dtype}, which is not supported.",
                    "Use the float16 or float32 weights.",
                )
            weights[key] = tensor
    return weights


def read_file(path: Path, where: str) -> object:
    """What a weight file holds: plain containers, numbers, strings and tensors on the CPU.

    Raises CheckpointError for damaged or foreign files.
    """
    with refusals(where, CheckpointError, _GET_PLAIN):
        return read_tensor_file(path).content


def _present_name(key: str) -> str:
    old = _OLD_ATTENTION.fullmatch(key)
    return f"{old[1]}.{_ATTENTION_NAMES[old[2]]}.{old[3]}" if old else key


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError where a weight is NaN or infinite: such a network makes no images.

    where: the file or checkpoint, for messages. Reads every number once.
    """
    broken = [key for key, tensor in weights.items() if not _is_finite(tensor.detach())]
    if broken:
        first = weights[broken[0]].detach()
        count = int((~first.isfinite()).sum())
        more = len(broken) - 1
        others = ", and so does 1 more weight" if more == 1 else f", and so do {more} more weights"
        raise CheckpointError(
            f"{where}: {broken[0]} holds {count:,} NaN or infinite values of {first.numel():,}"
            f"{others if more else ''}.",
            "Get the file again, or pass --allow-nonfinite to use it as it is.",
        )


def _is_finite(tensor: Tensor) -> bool:
    """A finite sum has finite terms only; one that overflows says nothing, so all are looked at."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def assign_weights(
    unet: nn.Module,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    remedy: str,
    source_name: Callable[[str], str] = str,
) -> None:
    """Make weights the network's own; convolutions without a copy where device and dtype are right.

    source_name: from a weight's name to that in the user's file. Raises CheckpointError with this
    remedy when the names or shapes are not exactly the network's.
    """
    wanted = unet.state_dict()
    missing = list(dict.fromkeys(source_name(key) for key in wanted if key not in weights))
    extra = list(dict.fromkeys(source_name(key) for key in weights if key not in wanted))
    misshapen = [
        f"{source_name(key)} {tuple(weights[key].shape)} for {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in weights and weights[key].shape != tensor.shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(islice(keys, _SHOWN))}{', …' * (len(keys) > _SHOWN)})"
        for what, keys in (("missing", missing), ("extra", extra), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise CheckpointError(
            f"{name}: the weights do not fit the network: {'; '.join(problems)}.", remedy
        )
    placed = {key: _place(tensor, device, dtype) for key, tensor in weights.items()}
    unet.load_state_dict(placed, assign=True)


def _place(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The last bits of a matrix product depend on how its operands are aligned in memory, so
    matrices leave the file's layout; convolutions, most of the bytes, may stay mapped.
    """
    return tensor.to(device, dtype, copy=tensor.ndim < 4)
