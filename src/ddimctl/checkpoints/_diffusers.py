"""The one import of diffusers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

_DYNAMO = "torch._dynamo"


def import_unet() -> Any:
    """diffusers' UNet2DModel class.

    diffusers decorates layers with torch._dynamo's marks when it is imported, which imports the
    whole compiler (about 1,000 modules) though nothing is compiled. An empty stand-in takes its
    place during the import only; torch.compile then traces through those layers instead.
    """
    if _DYNAMO in sys.modules or "diffusers" in sys.modules:
        return _plain_import()
    try:
        with _stand_in_for_dynamo():
            return _plain_import()
    except (ImportError, AttributeError, TypeError):  # a release that needs more of it
        for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
            del sys.modules[name]
        return _plain_import()


class Parts(NamedTuple):
    """The modules that a UNet2DModel is made of, for networks that its config cannot describe."""

    ResnetBlock2D: Any
    Downsample2D: Any
    Upsample2D: Any
    TimestepEmbedding: Any


def import_parts() -> Parts:
    """The parts of the UNet2DModel that import_unet gave."""
    import_unet()
    resnet = import_module("diffusers.models.resnet")
    embeddings = import_module("diffusers.models.embeddings")
    return Parts(
        resnet.ResnetBlock2D,
        resnet.Downsample2D,
        resnet.Upsample2D,
        embeddings.TimestepEmbedding,
    )


def _plain_import() -> Any:
    return import_module("diffusers.models.unets.unet_2d").UNet2DModel


@contextmanager
def _stand_in_for_dynamo() -> Iterator[None]:
    stand_in = ModuleType(_DYNAMO)
    vars(stand_in).update(allow_in_graph=_unmarked, disable=_unmarked)
    sys.modules[_DYNAMO] = stand_in
    try:
        yield
    finally:
        del sys.modules[_DYNAMO]


def _unmarked(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _unmarked if function is None else function
