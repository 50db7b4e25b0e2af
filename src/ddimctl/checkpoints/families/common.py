"""What the families of single files have in common: a network told in diffusers' words."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.build.scheduler_config import MAX_TIMESTEPS, Diffusion
from ddimctl.errors import CheckpointError, DdimctlError, RequestError, brief

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


class Network(NamedTuple):
    """One network of a pipeline: its config and weights in diffusers' or transformers' words.

    theirs: from a weight's name there to its name in the file, for messages.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    theirs: Callable[[str], str] = str


class Converted(NamedTuple):
    """A UNet2DModel's config and weights, and what more there is to know.

    told: the settings that its weights do not show, as they were settled.
    theirs: from a weight's name in diffusers to its name in the file, for messages.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    diffusion: Diffusion
    patches: UNetPatches
    notes: tuple[str, ...] = ()
    told: Mapping[str, Any] = {}
    theirs: Callable[[str], str] = str


def wrong(said: Said, key: str, cause: str, remedy: str = "Correct it.") -> DdimctlError:
    """The error for what was said under that name: the user's, or that of the file beside."""
    if key in said.flags:
        return RequestError(f"--model-flag {key}: {cause}", remedy)
    return CheckpointError(f"{said.config}: {cause}", remedy)


def read_flags(said: Said, kinds: Mapping[str, type], ignored: Iterable[str]) -> dict[str, Any]:
    """The user's flags over the settings beside the file, each of its kind (int, float, bool, str).

    kinds: the settings of the family. ignored: others of its scripts', which change no image.
    Raises RequestError for a flag, CheckpointError for a setting, that is unknown or wrong.
    """
    for key in said.flags:
        if key not in kinds and key not in ignored:
            known = ", ".join(kinds)
            raise RequestError(f"--model-flag {key} is unknown here.", f"Known are {known}.")
    values: dict[str, Any] = {}
    for key, value in [*said.beside.items(), *said.flags.items()]:
        if key not in kinds or value is None:
            continue
        values[key] = _typed(_parsed(value) if isinstance(value, str) else value, kinds[key])
        if values[key] is None:
            words = {int: "a whole number", float: "a number", bool: "true or false"}
            wanted = words.get(kinds[key], "a word")
            raise wrong(said, key, f"{key} is {brief(value)}, but should be {wanted}.")
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
    """Compare what was said of the network with what its weights show (None: they do not).

    Raises CheckpointError for a contradiction, RequestError where a flag contradicts.
    """
    for key, value in found.items():
        if key in told and value not in (None, told[key]):
            cause = f"{key} is {told[key]}, but the weights of {said.name} show {value}."
            other = f"{said.config} seems to belong to another checkpoint: move it away."
            raise wrong(said, key, cause, "Leave that flag out." if key in said.flags else other)


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
        cause = f"images of {size[0]}x{size[1]} do not fit the {levels} levels of {said.name}."
        remedy = f"Name a size divisible by {divisor}."
        if SIZE in told:
            raise wrong(said, SIZE, cause, remedy)
        raise RequestError(f"--size: {cause}", remedy)
    return size


def check_steps(said: Said, key: str, steps: int) -> None:
    """Refuse a T that no schedule can have. Raises as wrong does."""
    if not 1 <= steps <= MAX_TIMESTEPS:
        raise wrong(said, key, f"{key} is {steps}.")


def side(weights: Mapping[str, Tensor], key: str, axis: int, said: Said) -> int:
    """The length of a weight along an axis. Raises CheckpointError where it has none."""
    shape = tuple(weights[key].shape) if key in weights else None
    if shape is None or axis >= len(shape) or shape[axis] < 1:
        what = f"has no weight {key}" if shape is None else f"has a {key} of the shape {shape}"
        raise CheckpointError(f"{said.name} is damaged: it {what}.", "Get the file again.")
    return shape[axis]


class Names(NamedTuple):
    """How a family calls what diffusers has, and back.

    blocks: modules of the network, theirs to diffusers'. leaves: modules within a block, likewise.
    """

    blocks: Mapping[str, str]
    leaves: Mapping[str, str]

    def inverted(self) -> "Names":
        return Names(*({ours: theirs for theirs, ours in table.items()} for table in self))

    def of(self, key: str) -> str:
        """The other name of a weight; one that is in no table keeps its own."""
        module, _, kind = key.rpartition(".")
        parts = module.split(".")
        for cut in range(len(parts), 0, -1):
            block, leaf = ".".join(parts[:cut]), ".".join(parts[cut:])
            if block in self.blocks and (not leaf or leaf in self.leaves):
                return ".".join(filter(None, (self.blocks[block], self.leaves.get(leaf), kind)))
        return key
