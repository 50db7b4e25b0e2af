"""What the families of single files have in common: a network described in diffusers' terms."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.build.scheduler_config import MAX_TIMESTEPS, Diffusion
from ddimctl.errors import CheckpointError, DdimctlError, RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

SIZE: Final = "image_size"


class Flags(NamedTuple):
    """The settings of a network that come from outside its weights.

    file: name of the weight file. given: the user's --model-flag. beside: settings of the file named
    config that lies beside the weights, in one level. size: (H, W) of the training images where
    neither names it.
    """

    file: str
    given: Mapping[str, str]
    beside: Mapping[str, Any]
    size: tuple[int, int] | None = None
    config: str = ""


class Network(NamedTuple):
    """One network of a pipeline: its config and weights in diffusers' or transformers' words.

    source_name: from a weight's name there to its name in the file, for messages.
    """

    config: JsonObject
    weights: dict[str, Tensor]
    source_name: Callable[[str], str] = str


class Converted(NamedTuple):
    """A UNet2DModel's config and weights, and what its config cannot hold.

    settings: the resolved settings that the weights do not show. source_name: from a weight's name
    in diffusers to its name in the file, for messages.
    """

    config: JsonObject
    weights: dict[str, Tensor]
    diffusion: Diffusion
    patches: UNetPatches
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = {}
    source_name: Callable[[str], str] = str


def wrong(flags: Flags, key: str, cause: str, remedy: str = "Correct it.") -> DdimctlError:
    """The error for the setting of that name, which is the user's or that of the file beside."""
    if key in flags.given:
        return RequestError(f"--model-flag {key}: {cause}", remedy)
    return CheckpointError(f"{flags.config}: {cause}", remedy)


def read_flags(flags: Flags, kinds: Mapping[str, type], ignored: Iterable[str]) -> JsonObject:
    """The user's flags over the settings beside the file, each of its kind (int, float, bool, str).

    kinds: the settings of the family. ignored: others of its scripts', which change no image.
    Raises RequestError for a flag, CheckpointError for a setting, that is unknown or wrong.
    """
    for key in flags.given:
        if key not in kinds and key not in ignored:
            known = ", ".join(kinds)
            raise RequestError(f"--model-flag {key} is unknown.", f"Known flags: {known}.")
    values: JsonObject = {}
    for key, value in [*flags.beside.items(), *flags.given.items()]:
        if key not in kinds or value is None:
            continue
        values[key] = _typed(_parsed(value) if isinstance(value, str) else value, kinds[key])
        if values[key] is None:
            words = {int: "a whole number", float: "a number", bool: "true or false"}
            wanted = words.get(kinds[key], "a word")
            raise wrong(flags, key, f"{key} is {brief(value)}, not {wanted}.")
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


def check_settings(flags: Flags, settings: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Compare the settings with those that the weights show (None: they do not show it).

    Raises CheckpointError for a contradiction, RequestError where a flag contradicts.
    """
    for key, value in found.items():
        if key in settings and value not in (None, settings[key]):
            cause = f"{key} is {settings[key]}, but the weights of {flags.file} show {value}."
            other = f"Move {flags.config} away if it belongs to another checkpoint."
            raise wrong(
                flags, key, cause, f"Leave out --model-flag {key}." if key in flags.given else other
            )


def training_size(flags: Flags, settings: Mapping[str, Any], levels: int) -> tuple[int, int]:
    """(H, W) of the training images. Raises RequestError where nothing names it."""
    size = (settings[SIZE], settings[SIZE]) if SIZE in settings else flags.size
    if size is None:
        raise RequestError(
            f"{flags.file} does not hold the image size.",
            f"Pass --size, or --model-flag {SIZE}=32.",
        )
    divisor = 2 ** (levels - 1)
    if min(size) < 1 or size[0] % divisor or size[1] % divisor:
        cause = f"images of {size[0]}x{size[1]} do not fit the {levels} levels of {flags.file}."
        remedy = f"Pass a size divisible by {divisor}."
        if SIZE in settings:
            raise wrong(flags, SIZE, cause, remedy)
        raise RequestError(f"--size: {cause}", remedy)
    return size


def check_steps(flags: Flags, key: str, steps: int) -> None:
    """Refuse a T that no schedule can have. Raises as wrong does."""
    if not 1 <= steps <= MAX_TIMESTEPS:
        raise wrong(flags, key, f"{key} is {steps}.")


def side(weights: Mapping[str, Tensor], key: str, axis: int, flags: Flags) -> int:
    """The length of a weight along an axis. Raises CheckpointError where it has none."""
    shape = tuple(weights[key].shape) if key in weights else None
    if shape is None or axis >= len(shape) or shape[axis] < 1:
        what = f"has no weight {key}" if shape is None else f"has a {key} of the shape {shape}"
        raise CheckpointError(f"{flags.file} is damaged: it {what}.", "Get the file again.")
    return shape[axis]


class Names(NamedTuple):
    """Module names of a family to diffusers'. blocks: of the network. leaves: within a block."""

    blocks: Mapping[str, str]
    leaves: Mapping[str, str]

    def inverted(self) -> "Names":
        return Names(*({ours: source for source, ours in table.items()} for table in self))

    def of(self, key: str) -> str:
        """The other name of a weight; one that is in no table keeps its own."""
        module, _, kind = key.rpartition(".")
        parts = module.split(".")
        for cut in range(len(parts), 0, -1):
            block, leaf = ".".join(parts[:cut]), ".".join(parts[cut:])
            if block in self.blocks and (not leaf or leaf in self.leaves):
                return ".".join(filter(None, (self.blocks[block], self.leaves.get(leaf), kind)))
        return key
