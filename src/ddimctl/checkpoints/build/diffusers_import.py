"""The one import of diffusers, and what it leaves out."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, Final, NamedTuple

_DYNAMO: Final = "torch._dynamo"
# Packages whose __init__ imports all their modules, one or two of which a network needs.
_PACKAGES: Final = (
    *("diffusers.models.transformers", "diffusers.models.unets", "diffusers.hooks"),
    "diffusers.models.autoencoders",
)
# What diffusers imports, where it is installed, for methods of networks that are not used here.
_LEFT_OUT: Final = ("transformers", "peft")
_LOADERS: Final = "diffusers.loaders"
_MODULES: Final = {
    "UNet2DModel": "diffusers.models.unets.unet_2d",
    "UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "VQModel": "diffusers.models.autoencoders.vq_model",
}
_OF_ITS_METHODS: Final = "diffusers.hooks.group_offloading"  # imported by .to() and .device


def import_unet() -> Any:
    """diffusers' UNet2DModel class."""
    return import_network("UNet2DModel")


def import_network(name: str) -> Any:
    """diffusers' class of this name, a key of _MODULES.

    diffusers decorates layers with torch._dynamo's marks when it is imported, which imports the
    whole compiler (about 1,000 modules) though nothing is compiled. An empty stand-in takes its
    place during the import only; torch.compile then traces through those layers instead. The other
    networks of diffusers (130 modules) are imported when first one is asked for, and transformers
    and peft not at all.
    """
    global _lightly
    if "diffusers" in sys.modules and not _lightly:
        return _plain_import(name)
    try:
        with _stand_in_for_dynamo(), _put_off():
            import_module("diffusers.utils.constants")
            with _pretended_absent():
                network = _plain_import(name)
                import_module(_OF_ITS_METHODS)
            _lightly = True
            return network
    except (ImportError, AttributeError, TypeError, RuntimeError):  # a release that needs more
        _lightly = False
        _forget("diffusers")
        return _plain_import(name)


_lightly = False  # whether diffusers was imported here, in parts


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


def _plain_import(name: str) -> Any:
    return getattr(import_module(_MODULES[name]), name)


def _forget(package: str) -> None:
    """Have the package and its modules imported anew when they are next asked for."""
    for name in list(sys.modules):
        if name == package or name.startswith(f"{package}."):
            del sys.modules[name]


@contextmanager
def _pretended_absent() -> Iterator[None]:
    """Within, diffusers does not find the packages of _LEFT_OUT.

    Its loaders decide by that which functions they have, so those imported within are forgotten:
    whoever asks for them gets whole ones.
    """
    found: Any = import_module("diffusers.utils.import_utils")
    flags = [f"_{name}_available" for name in _LEFT_OUT]
    before = {flag: getattr(found, flag) for flag in flags}
    known = _LOADERS in sys.modules
    hidden = [name for name in _LEFT_OUT if name not in sys.modules]
    finder: Any = _Absent(hidden)
    sys.meta_path.insert(0, finder)
    try:
        vars(found).update(dict.fromkeys(flags, False))
        yield
    finally:
        vars(found).update(before)
        sys.meta_path.remove(finder)
        if any(before.values()) and not known:
            _forget(_LOADERS)
            vars(sys.modules["diffusers"]).pop("loaders", None)


class _Absent:
    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


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
