"""LoRA files of diffusers, PEFT and kohya, added to the weights of a checkpoint."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.weights import check_room, sha256_of
from ddimctl.checkpoints.families.common import Names
from ddimctl.checkpoints.families.ldm_unet import compvis_names
from ddimctl.errors import CheckpointError, RequestError, brief
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.reader import read_tensor_file
from ddimctl.files.untrusted.settings import JsonObject, parse_json

PARTS: Final = ("unet", "text_encoder", "text_encoder_2")

# How the names of weights begin, and the part of the pipeline that they belong to.
_PREFIXES: Final = {
    "unet.": "unet",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lora_unet_": "unet",
    "lora_te2_": "text_encoder_2",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
    "base_model.model.text_model.": "text_encoder",
    "base_model.model.": "unet",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
}
# How they end, by what they are.
_ENDS: Final = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
}
_OTHER_KINDS: Final = (  # | is the end of a name
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (".oft_", "OFT"),
    (".diff|", "full weight differences"),
    (".diff_b|", "full weight differences"),
    (".on_input", "IA3"),
    ("bundle_emb.", "LoRA with textual inversion embeddings"),
)
_METADATA: Final = "lora_adapter_metadata"  # in the header of diffusers' files
_REMEDY: Final = "Use the LoRA with the kind of checkpoint that it was trained for."


class Pair(NamedTuple):
    """up (O, R), down (R, I), each with a kernel's sides behind where the layer is a convolution;
    mid (R, R, H, W) in a few files of those. scale: alpha / R."""

    up: Tensor
    down: Tensor
    mid: Tensor | None
    scale: float


class Lora(NamedTuple):
    """name: of the file. weight: what its deltas are multiplied by. pairs: by part of the pipeline
    (PARTS) and name of the layer, the dots written as underscores."""

    name: str
    weight: float
    sha256: str
    pairs: dict[str, dict[str, Pair]]

    def record(self) -> JsonObject:
        """What names it in manifests and latents: plain values."""
        return {"name": self.name, "weight": self.weight, "sha256": self.sha256}


def parse_lora(text: str) -> tuple[Path, float]:
    """(file, weight) of FILE[:WEIGHT]; 1 without. Raises RequestError for a weight that is none."""
    path, colon, number = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text).expanduser(), 1.0
    try:
        weight = float(number)
    except ValueError:
        if "/" in number or "\\" in number or "." in number:  # a path with a colon in it
            return Path(text).expanduser(), 1.0
        weight = math.nan
    if not math.isfinite(weight):
        raise RequestError(
            f"--lora {text}: {number!r} is not a weight.", "Write FILE:0.8, or FILE."
        )
    return Path(path).expanduser(), weight


def read_lora(path: Path, weight: float = 1.0) -> Lora:
    """The deltas in a file.

    Raises CheckpointError where it is missing, damaged, no LoRA, or of a kind that is not known.
    """
    name = path.name
    with refusals(name, CheckpointError, "Check the path of --lora."):
        check_room([path], name)
        content, texts = read_tensor_file(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{name} is not a state dict.", "Pass a LoRA file.")
    return Lora(name, weight, sha256_of([path]), read_pairs(content, name, texts or {}))


def read_pairs(
    tensors: Mapping[str, Tensor], name: str, texts: Mapping[str, str] | None = None
) -> dict[str, dict[str, Pair]]:
    """The pairs by part and layer, as in Lora. texts: those in the file's header. Raises as read_lora."""
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, layer, what = _place(key, name)
        slot = found.setdefault((part, layer), {})
        if what in slot or not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise CheckpointError(f"{name} is damaged: {key} occurs twice or is of a strange type.")
        slot[what] = tensor
    if not found:
        raise CheckpointError(f"{name} holds no weights.", "Pass a LoRA file.")
    metadata = _metadata(name, texts or {})
    pairs: dict[str, dict[str, Pair]] = {}
    for (part, layer), slot in found.items():
        alpha = _alpha(slot.get("alpha"), metadata, part, layer, name)
        pairs.setdefault(part, {})[layer] = _pair(slot, alpha, f"{name}: {part}: {layer}")
    return pairs


def _place(key: str, name: str) -> tuple[str, str, str]:
    """(part, layer with underscores, what) of a tensor's name."""
    if kind := next((kind for mark, kind in _OTHER_KINDS if mark in f"{key}|"), ""):
        raise CheckpointError(
            f"{name} is of the kind {kind}, which is not supported.", "Pass a plain LoRA."
        )
    start = next((start for start in _PREFIXES if key.startswith(start)), None)
    end = next((end for end in _ENDS if key.endswith(end)), None)
    if start is None or end is None:
        cause = f"{name} is not a LoRA for Stable Diffusion: its key {brief(key)} is unknown."
        raise CheckpointError(cause, _REMEDY)
    cut = 0 if start.endswith(("blocks.", "block.")) else len(start)
    cut -= len("text_model.") if start.endswith("text_model.") else 0
    layer = key[cut : len(key) - len(end)].replace(".processor.", ".")
    if end.startswith("_lora") and layer.endswith(".to_out"):
        layer += ".0"
    return _PREFIXES[start], layer.replace(".", "_"), _ENDS[end]


def _metadata(name: str, texts: Mapping[str, str]) -> Mapping[str, Any]:
    """What PEFT says of the adapter in a file's header."""
    if _METADATA not in texts:
        return {}
    try:
        metadata = parse_json(texts[_METADATA].encode())
    except Refused as refused:
        raise CheckpointError(f"{name}: {_METADATA} {refused.cause}", "Get it again.") from refused
    return metadata if isinstance(metadata, dict) else {}


def _alpha(
    tensor: Tensor | None, metadata: Mapping[str, Any], part: str, layer: str, name: str
) -> tuple[float | None, bool]:
    """(alpha or None, whether it is divided by the root of the rank)."""
    if metadata.get(f"{part}.use_dora"):
        raise CheckpointError(
            f"{name} is of the kind DoRA, which is not supported.", "Pass a plain LoRA."
        )
    value: Any = metadata.get(f"{part}.lora_alpha")
    patterns = metadata.get(f"{part}.alpha_pattern")
    for pattern, special in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).lstrip("^").rstrip("$").replace("\\.", ".").replace(".", "_")
        if layer == plain or layer.endswith(f"_{plain}"):
            value = special
    if tensor is not None:
        value = float(tensor) if tensor.numel() == 1 else math.nan
    if value is None:
        return None, False
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CheckpointError(f"{name} is damaged: alpha of {layer} is {brief(value)}.")
    return float(value), bool(metadata.get(f"{part}.use_rslora"))


def _pair(slot: Mapping[str, Tensor], alpha: tuple[float | None, bool], where: str) -> Pair:
    up, down, mid = slot.get("up"), slot.get("down"), slot.get("mid")
    if up is None or down is None:
        raise CheckpointError(f"{where} lacks one of its two matrices.", "Get the file again.")
    rank = down.shape[0] if down.ndim >= 2 else 0
    fits = up.ndim in (2, 4) and down.ndim in (2, 4) and rank >= 1 and up.shape[1] == rank
    fits = fits and (up.ndim == 2 or up.shape[2:] == (1, 1))
    if mid is not None:
        ends = down.ndim == 4 and down.shape[2:] == (1, 1)
        fits = fits and ends and mid.ndim == 4 and mid.shape[:2] == (rank, rank)
    if not fits:
        shapes = f"{tuple(up.shape)} and {tuple(down.shape)}"
        raise CheckpointError(f"{where} has the shapes {shapes}, which do not fit together.")
    value, by_root = alpha
    return Pair(up, down, mid, 1.0 if value is None else value / (rank**0.5 if by_root else rank))


def fuse(lora: Lora, part: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a part of the pipeline (one of PARTS) with weight * scale * up @ down added.

    Those that change become float32; the others are the same tensors. Raises CheckpointError where a
    layer of the LoRA is not there, or has another shape.
    """
    pairs = lora.pairs.get(part, {})
    keys = _layers(weights, part) if pairs else {}
    if strange := [layer for layer in pairs if layer not in keys]:
        raise CheckpointError(
            f"{lora.name} does not fit the checkpoint: {len(strange)} of its {len(pairs)} layers "
            f"are not in the {part} ({strange[0]}{', …' * (len(strange) > 1)}).",
            _REMEDY,
        )
    changed = {}
    for layer, pair in pairs.items():
        key = keys[layer]
        shape = _shape(pair)
        if _squeezed(shape) != _squeezed(tuple(weights[key].shape)):
            raise CheckpointError(
                f"{lora.name} does not fit the checkpoint: {part}.{key} is "
                f"{tuple(weights[key].shape)}, and the LoRA's {shape}.",
                _REMEDY,
            )
        delta = _delta(pair).reshape(weights[key].shape)
        changed[key] = weights[key].float() + lora.weight * pair.scale * delta
    return {**weights, **changed}


def fuse_all(
    loras: Iterable[Lora], part: str, weights: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """fuse with one after the other."""
    for lora in loras:
        weights = fuse(lora, part, weights)
    return weights


def check_parts(lora: Lora, parts: Iterable[str]) -> None:
    """Raise CheckpointError where the LoRA changes a part that the pipeline does not have."""
    if rest := sorted(lora.pairs.keys() - set(parts)):
        raise CheckpointError(
            f"{lora.name} changes the {rest[0]}, which this checkpoint does not have.", _REMEDY
        )


def fused_sha256(sha256: str, loras: Iterable[Lora]) -> str:
    """The hash of a checkpoint with LoRAs: its own without any."""
    for lora in loras:
        sha256 = hashlib.sha256(f"{sha256} {lora.sha256} {lora.weight!r}".encode()).hexdigest()
    return sha256


def _shape(pair: Pair) -> tuple[int, ...]:
    kernel = pair.down if pair.mid is None else pair.mid
    return (pair.up.shape[0], pair.down.shape[1], *kernel.shape[2:])


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1 x 1 convolution is a linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _delta(pair: Pair) -> Tensor:
    up, down = pair.up.float().flatten(1), pair.down.float()
    if pair.mid is not None:
        return torch.einsum("or,rshw,si->oihw", up, pair.mid.float(), down.flatten(1))
    return (up @ down.flatten(1)).reshape(_shape(pair))


def _layers(weights: Mapping[str, Tensor], part: str) -> dict[str, str]:
    """Layers by the names that files have for them, with underscores, to the keys of weights."""
    keys = {}
    names = compvis_names(weights) if part == "unet" else Names({}, {})
    for key, tensor in weights.items():
        if key.endswith(".weight") and tensor.ndim >= 2:
            aliases = {key, names.of(key)}  # kohya's files for SDXL have CompVis' names
            if part != "unet":
                aliases |= {key.removeprefix("text_model."), f"text_model.{key}"}
            for name in aliases:
                keys[name.removesuffix(".weight").replace(".", "_")] = key
    return keys
