"""Checkpoints: from a folder or a hub id to a network that can be run, and back to a folder.

Names are imported when they are first used, so that looking at this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddimctl.checkpoints.load import load_checkpoint
    from ddimctl.checkpoints.model import Checkpoint, Provenance
    from ddimctl.checkpoints.save import checkpoint_files

__all__ = ["Checkpoint", "Provenance", "checkpoint_files", "load_checkpoint"]

_MODULES = {
    "Checkpoint": "model",
    "Provenance": "model",
    "checkpoint_files": "save",
    "load_checkpoint": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
