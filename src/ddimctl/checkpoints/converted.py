"""What the families of single files have in common: a network told in diffusers' words."""

from collections.abc import Iterable, Mapping
from reprlib import repr as brief
from typing import Any, Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.network import Beyond
from ddimctl.checkpoints.scheduler_config import Diffusion
from ddimctl.errors import CheckpointError, RequestError

SIZE: Final = "image_size"


class Said(NamedTuple):
    """What is known of a network beside its weights.

    name:   of the file. flags: what the user said. beside: what a settings file beside it says, in
    one level. size: (H, W) to take where nothing else names the training's. config: the name of
    that settings file.
    """

    name: str
    flags: Mapping[str, str]
    beside: Mapping[str, Any]
    size: tuple[int, int] | None = None
    config: str = ""


class Converted(NamedTuple):
    """A UNet2DModel's config and weights, and what more there is to know.

    used: those of the user's flags without which the network could not be run, for the record.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    diffusion: Diffusion
    beyond: Beyond
    notes: tuple[str, ...] = ()
    used: Mapping[str, str] = {}


def read_flags(said: Said, kinds: Mapping[str, type], ignored: Iterable[str]) -> dict[str, Any]:
    """The user's flags over the settings beside the file, each of its kind (int, float, bool, str).

    kinds: the settings of the family. ignored: names that its files also have, which change no
    picture. Raises RequestError for a flag, CheckpointError for a setting, that is unknown or wrong.
    """
    values: dict[str, Any] = {}
    for key, value in said.beside.items():
        if key in kinds and value is not None:
            values[key] = _typed(value, kinds[key])
            if values[key] is None:
                raise CheckpointError(f"{said.config}: {key} is {brief(value)}.")
    for key, text in said.flags.items():
        if key not in kinds:
            known = ", ".join(kinds)
            why = "changes nothing" if key in ignored else "is unknown for this kind of file"
            raise RequestError(f"--model-flag: {key} {why}.", f"Known are {known}.")
        values[key] = _typed(_parsed(text), kinds[key])
        if values[key] is None:
            word = {int: "a whole number", float: "a number", bool: "true or false"}
            raise RequestError(
                f"--model-flag {key}={text}: it should be {word.get(kinds[key], 'a word')}."
            )
    return values


def _parsed(text: str) -> Any:
    words = {"true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _typed(value: Any, kind: type) -> Any:
    """The value as its kind, or None where it is of another."""
    if kind is str:
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if kind is float and type(value) is int:
        value = float(value)
    return value if type(value) is kind else None


def check_told(said: Said, told: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare what was said of the network with what its weights show.

    Raises CheckpointError for a contradiction, RequestError where a flag contradicts.
    """
    for key, value in found.items():
        if key in told and told[key] != value:
            message = f"{key} is {told[key]}, but the weights of {said.name} show {value}."
            if key in said.flags:
                raise RequestError(f"--model-flag: {message}", "Leave that flag out.")
            raise CheckpointError(
                f"{said.config}: {message}", f"{said.config} belongs to another checkpoint."
            )


def training_size(said: Said, told: Mapping[str, Any], levels: int) -> tuple[int, int]:
    """(H, W) of the training's images. Raises RequestError where nothing says it."""
    size = (told[SIZE], told[SIZE]) if SIZE in told else said.size
    if size is None:
        raise RequestError(
            f"{said.name} does not say the size of its images.",
            f"Pass --size, or --model-flag {SIZE}=32.",
        )
    divisor = 2 ** (levels - 1)
    if min(size) < 1 or size[0] % divisor or size[1] % divisor:
        raise RequestError(
            f"{said.name}: images of {size[0]}x{size[1]} do not fit its {levels} levels.",
            f"Name a size divisible by {divisor}.",
        )
    return size


def renamed(
    weights: Mapping[str, Tensor], blocks: Mapping[str, str], leaves: Mapping[str, str]
) -> dict[str, Tensor]:
    """Weights by the names that the tables give; what is in no table keeps its own.

    blocks: prefixes of modules, theirs to diffusers'. leaves: modules within a block, likewise.
    """
    found = {}
    for key, tensor in weights.items():
        module, _, kind = key.rpartition(".")
        for prefix, ours in blocks.items():
            if module == prefix:
                key = f"{ours}.{kind}"
            elif module.startswith(f"{prefix}."):
                leaf = module[len(prefix) + 1 :]
                if leaf in leaves:
                    key = f"{ours}.{leaves[leaf]}.{kind}"
        found[key] = tensor
    return found
