"""Checkpoints of the peers as files: random weights under their names, with their settings beside."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import reference_ermongroup
import reference_openai
import torch
import yaml
from peer_weights import filled, given
from torch import Tensor

from ddimctl.checkpoints import Checkpoint

TINY_ERMONGROUP: dict[str, Any] = {
    **reference_ermongroup.CIFAR10,
    "image_size": 16,
    "ch": 32,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "num_diffusion_timesteps": 1000,
}
TINY_OPENAI: dict[str, Any] = {
    **reference_openai.DEFAULTS,
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": (1, 2),
    "attention_resolutions": "8",
    "num_heads": 2,
    "num_classes": 5,
}


class Peer(NamedTuple):
    """A random network of a peer.

    weights: by the file's names. settings: what its config or flags say. reference: (x, t, labels)
    -> its output. path: of its file.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    reference: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    path: Path


_FILLED: dict[str, dict[str, Tensor]] = {}


def _filled(reference: Any, settings: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Random weights of a network, the same dictionary's copy for the same network."""
    key = f"{reference.__name__} {settings} {seed}"
    if key not in _FILLED:
        _FILLED[key] = filled(reference.names_and_shapes(settings), seed)
    return dict(_FILLED[key])


def ermongroup(folder: Path, seed: int = 0, **changed: Any) -> Peer:
    """ckpt.pth with config.yml beside it, a network like TINY_ERMONGROUP with settings changed."""
    config = TINY_ERMONGROUP | changed
    weights = _filled(reference_ermongroup, config, seed)
    path = folder / "ckpt.pth"
    torch.save(weights, path)
    plain = json.loads(json.dumps(config))  # lists for tuples
    sections = {
        "data": {"image_size": plain.pop("image_size")},
        "diffusion": {
            key: plain.pop(key)
            for key in list(plain)
            if key.startswith("beta") or key == "num_diffusion_timesteps"
        },
        "model": plain,
    }
    (folder / "config.yml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    return Peer(
        weights,
        config,
        lambda x, t, y: reference_ermongroup.network(given(weights), config, x, t),
        path,
    )


def openai(folder: Path, seed: int = 0, **changed: Any) -> Peer:
    """model.pt with flags.json beside it, a network like TINY_OPENAI with flags changed."""
    flags = TINY_OPENAI | changed
    weights = _filled(reference_openai, flags, seed)
    path = folder / "model.pt"
    torch.save(weights, path)
    (folder / "flags.json").write_text(json.dumps(flags), encoding="utf-8")
    return Peer(
        weights,
        flags,
        lambda x, t, y: reference_openai.network(given(weights), flags, x, t, y),
        path,
    )


def outputs(peer: Peer, checkpoint: Checkpoint, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(ours, theirs) for two images of that size, at two timesteps and of two classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, checkpoint.sample_shape[0], *size, generator=generator)
    top = checkpoint.schedule.num_train_timesteps - 1
    t = torch.tensor([top // 3, top])
    y = None if checkpoint.num_classes is None else torch.tensor([0, checkpoint.num_classes - 1])
    with torch.inference_mode():
        return checkpoint.network(x, t, y), peer.reference(x, t, y)
