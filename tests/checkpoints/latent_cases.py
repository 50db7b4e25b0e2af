"""Tiny latent pipelines in their real formats, and what diffusers' own pipelines made of them."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, load_checkpoint

DATA = Path(__file__).parents[1] / "data/latent"
TEXT = ("sd1", "sd2", "sdxl")
NAMES = (*TEXT, "ldm-vq")


class Case(NamedTuple):
    """settings: of runs and prompts. tensors: by name."""

    checkpoint: Checkpoint
    settings: dict[str, Any]
    tensors: dict[str, Tensor]


@cache
def case(name: str) -> Case:
    folder = DATA / name
    settings = json.loads((folder / "cases.json").read_text("utf-8"))
    return Case(load_checkpoint(folder), settings, load_file(folder / "cases.safetensors"))


def copy_of(name: str, folder: Path) -> Path:
    """A copy of the pipeline, to be changed."""
    return shutil.copytree(
        DATA / name, folder / name, ignore=shutil.ignore_patterns("cases.*"), dirs_exist_ok=True
    )


def change(path: Path, **settings: Any) -> None:
    """Settings of a JSON file, changed; None takes one out."""
    found = json.loads(path.read_text("utf-8")) | settings
    kept = {key: value for key, value in found.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
