"""From what a user names to a checkpoint."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch

from ddimctl.checkpoints.build.assemble import Options
from ddimctl.checkpoints.families.diffusers_folder import load_diffusers
from ddimctl.checkpoints.families.single_file import load_file, weight_files
from ddimctl.checkpoints.identify import SUPPORTED, refuse_file
from ddimctl.checkpoints.lora import parse_lora, read_lora
from ddimctl.checkpoints.model import Checkpoint
from ddimctl.checkpoints.source import Source, folder_source
from ddimctl.errors import CheckpointError, RequestError

BUNDLED: Final = Path(__file__).parent / "bundled"
BUNDLED_NAME: Final = "bundled"
VARIABLE: Final = "DDIMCTL_CKPT"
WEIGHTS: Final = ("auto", "ema", "raw")

_HUB_ID: Final = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def load_checkpoint(
    spec: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    weights: str = "auto",
    size: tuple[int, int] | None = None,
    flags: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    download: bool = True,
    vae: str | Path | None = None,
    lora: Iterable[str | Path] = (),
) -> Checkpoint:
    """The checkpoint that spec names: a folder, a file of one of the families, a hub id (owner/name;
    an existing path is a path), the text "bundled" for the one in this package ("./bundled" is a
    path), or None for $DDIMCTL_CKPT, else the one in this package.

    revision: a branch, tag or commit of a hub id.  variant: "fp16" where weights come in several.
    weights: one of WEIGHTS; auto is EMA where there is one.  size: (H, W) of the training's images
    where the files do not say it.  flags: what else they do not say, by the names of the family's
    own settings.  allow_nonfinite: take weights that are NaN or infinite.  dtype: of the weights,
    else float32.  download: whether a hub id may be fetched; if not, it must be in the cache.
    vae: a folder or hub id with an autoencoder that takes the place of the checkpoint's own.
    lora: files FILE[:WEIGHT] whose deltas are added to the weights, in their order.

    Raises CheckpointError when there is none, or it cannot be run; RequestError for bad options.
    """
    if weights not in WEIGHTS:
        raise RequestError(f"unknown weights '{weights}'.", f"Choose one of {', '.join(WEIGHTS)}.")
    options = Options(
        variant=variant,
        weights=weights,
        size=size,
        flags=flags or {},
        allow_nonfinite=allow_nonfinite,
        device=torch.device(device),
        dtype=dtype or torch.float32,
        loras=tuple(read_lora(*parse_lora(str(each))) for each in lora),
        vae=None if vae is None else _find_vae(vae, download=download),
    )
    found = _find(spec, revision, download=download)
    if isinstance(found, Path):
        return load_file(found, options)
    return load_diffusers(found, options)


def _find(spec: str | Path | None, revision: str | None, *, download: bool) -> Source | Path:
    """The file, or the tree of files, that spec names. Raises as load_checkpoint does."""
    if spec is None:
        spec = os.environ.get(VARIABLE) or BUNDLED_NAME
    path = local_path(spec)
    try:
        if path.exists():
            if revision is not None:
                raise RequestError(
                    f"'{spec}' is a path, which has no revisions.", "Leave --revision out."
                )
            if not path.is_dir():
                return path
            return _look_into(path) or folder_source(path)
    except OSError as error:
        raise CheckpointError(f"'{spec}' cannot be read: {error.strerror}.") from error
    if path == BUNDLED:
        raise CheckpointError(
            "this installation has no bundled checkpoint.", f"Pass --ckpt, or set {VARIABLE}."
        )
    if not is_hub_id(str(spec)):
        raise CheckpointError(
            f"'{spec}' is neither an existing file or folder nor a hub id (owner/name).",
            "Check the spelling, or pass an id such as google/ddpm-cifar10-32.",
        )
    from ddimctl.checkpoints.hub import (
        NOT_ASKED,
        cached_source,
        hub_source,
    )  # huggingface_hub takes a while to import

    if not download:
        return cached_source(str(spec), revision, NOT_ASKED)
    return hub_source(str(spec), revision)


def _find_vae(spec: str | Path, *, download: bool) -> Source:
    """The tree of files that holds an autoencoder. Raises CheckpointError."""
    path = Path(spec).expanduser()
    if path.is_dir():
        return folder_source(path)
    found = _find(spec, None, download=download)
    if isinstance(found, Path):
        raise CheckpointError(
            f"--vae {found.name} is a file.", "Pass a folder of diffusers, or a hub id."
        )
    return found


def local_path(spec: str | Path) -> Path:
    """Where spec would be on this disk; the name of the bundled checkpoint comes before a file's."""
    return BUNDLED if spec == BUNDLED_NAME else Path(os.path.expanduser(spec))  # noqa: PTH111, leaves what it cannot expand


def is_hub_id(name: str) -> bool:
    """Whether the name has the form of a hub id, owner/name."""
    return _HUB_ID.fullmatch(name) is not None


def _look_into(folder: Path) -> Path | None:
    """The file in a folder that holds a single one; None where it is a diffusers folder.

    Raises CheckpointError, which names the right folder where the user's is one level too deep or
    too high.
    """
    parent = folder.resolve().parent
    if folder.resolve().name in ("unet", "unet_ema") and (parent / "scheduler").is_dir():
        raise CheckpointError(
            f"{folder} holds only the network of a checkpoint, without its schedule.",
            f"Pass the folder above it: {folder.parent}",
        )
    if any((folder / name).is_file() for name in ("config.json", "model_index.json")):
        return None
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if any((path / "config.json").is_file() for path in inside):
        return None
    for path in inside:
        if (path / "unet").is_dir() or (path / "model_index.json").is_file():
            raise CheckpointError(f"{folder} is not a checkpoint itself.", f"Pass {path}")
    if not inside:
        raise CheckpointError(f"{folder} is an empty folder.", SUPPORTED)
    if files := weight_files(folder):
        if len(files) == 1:
            return files[0]
        names = ", ".join(path.name for path in files[:5])
        raise CheckpointError(f"{folder} holds several weight files.", f"Pass one: {names}.")
    if len(inside) == 1 and inside[0].is_file():
        refuse_file(inside[0])
    names = ", ".join(path.name for path in inside[:5])
    raise CheckpointError(
        f"{folder} has no config.json or unet/config.json; it holds {names}"
        f"{', …' if len(inside) > 5 else ''}.",
        SUPPORTED,
    )
