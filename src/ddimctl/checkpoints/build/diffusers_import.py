"""The one import of diffusers, and what it leaves out."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final, NamedTuple

_DYNAMO: Final = "torch._dynamo"
# Packages whose __init__ imports all their modules, one or two of which a UNet2DModel needs.
_PACKAGES: Final = ("diffusers.models.transformers", "diffusers.models.unets", "diffusers.hooks")
_OF_ITS_METHODS: Final = "diffusers.hooks.group_offloading"  # imported by .to() and .device


def import_unet() -> Any:
    """diffusers' UNet2DModel class.

    diffusers decorates layers with torch._dynamo's marks when it is imported, which imports the
    whole compiler (about 1,000 modules) though nothing is compiled. An empty stand-in takes its
    place during the import only; torch.compile then traces through those layers instead. The other
    networks of diffusers (130 modules) are imported when first one is asked for.
    """
    if "diffusers" in sys.modules:
        return _plain_import()
    try:
        with _stand_in_for_dynamo(), _put_off():
            unet = _plain_import()
            import_module(_OF_ITS_METHODS)
            return unet
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
    if _DYNAMO in sys.modules:
        yield
        return
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


@contextmanager
def _put_off() -> Iterator[None]:
    """Within, importing a module of _PACKAGES does not run the __init__ of its package."""
    finder: Any = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder:
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _PACKAGES else None
        if spec is not None:
            vars(spec.loader)["exec_module"] = _leave_empty  # before the loader's own
        return spec


def _leave_empty(package: ModuleType) -> None:
    package.__class__ = _Package


class _Package(ModuleType):
    """A package whose __init__ runs when first something is asked that its modules do not answer.

    Python tells the two apart: what is there already, such as __path__ and modules that were
    imported, does not come here.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # some programs ask every module for them
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader: Any = self.__loader__
        del loader.exec_module
        loader.exec_module(self)
        return getattr(self, name)
