"""What an interpolation leads between: latents, images and seeds, and what they agree on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
from ddimctl.files.latents import SUFFIXES, load_latents
from ddimctl.files.pictures.images import read_image
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.sample.plan import class_index, drawn_labels

_ANNOUNCED: Final = ("steps", "tau", "solver", "clip", "guidance", "precision")
_OF_ONE_FILE: Final = ("labels", "seeds", "method", "eta", "variance")


@dataclass(frozen=True)
class Input:
    """One place that the frames lead through.

    name: what errors call it.  caption: what images and manifests do, without folders.
    source: a latent (C, H, W), an image, or a seed.  label: the latent's, if any.
    latent_metadata: of the latent's file.
    """

    name: str
    caption: str
    source: Tensor | Path | int
    label: int | None = None
    prompt: str | None = None
    latent_metadata: Mapping[str, Any] = field(default_factory=dict)


def read_inputs(files: Sequence[Path], seeds: Sequence[int]) -> list[Input]:
    """The files' latents and images in order, every latent of a file, and then the seeds.

    Raises DataError for a file that cannot be used.
    """
    inputs: list[Input] = []
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            inputs += _read_latents(path)
        else:
            read_image(path, 3)  # a bad one is known before the checkpoint is loaded
            inputs.append(Input(str(path), path.stem, path))
    return inputs + [Input(f"seed {seed}", f"seed {seed}", seed) for seed in seeds]


def _read_latents(path: Path) -> list[Input]:
    latents, metadata = load_latents(path)
    labels = metadata.get("labels") or [None] * len(latents)
    if len(labels) != len(latents):
        raise DataError(f"{path}: its labels are not one class index for each latent.")
    prompts = metadata.get("prompts") or [None] * len(latents)
    if len(prompts) != len(latents):
        raise DataError(f"{path}: its prompts are not one for each latent.")
    numbers = [f" #{i}" for i in range(len(latents))] if len(latents) > 1 else [""]
    return [
        Input(str(path) + number, path.stem + number, latent, label, prompt, metadata)
        for number, latent, label, prompt in zip(numbers, latents, labels, prompts, strict=True)
    ]


def agree(inputs: Sequence[Input], ckpt: str | None) -> JsonObject:
    """The metadata that the frames inherit: the first file's, which the others may not contradict.

    ckpt: the checkpoint that the user named, to which all inputs then belong.
    Raises RequestError naming two inputs of different sizes, checkpoints or timesteps.
    """
    _check_alike(
        [(i, "x".join(map(str, i.source.shape))) for i in inputs if isinstance(i.source, Tensor)],
        "has the size {}",
        "Interpolate between latents of one size.",
    )
    if ckpt is None:
        records = [(i, i.latent_metadata.get("checkpoint")) for i in inputs]
        named = [(i, record) for i, record in records if isinstance(record, dict)]
        _check_alike(
            [(i, f"'{r.get('name')}' ({str(r.get('sha256'))[:12]})") for i, r in named],
            "belongs to the checkpoint {}",
            "Interpolate between latents of one checkpoint, or choose one with --ckpt.",
        )
    _check_alike(
        [
            (i, str(i.latent_metadata["top"]))
            for i in inputs
            if i.latent_metadata.get("top") is not None
        ],
        "is at timestep {}",
        "Make both with lists of timesteps that end at the same one.",
    )
    first = next((i.latent_metadata for i in inputs if i.latent_metadata), {})
    common = {key: value for key, value in first.items() if key not in _OF_ONE_FILE}
    for key in ("checkpoint", "top"):  # a file may lack what another has
        value = next(
            (i.latent_metadata[key] for i in inputs if i.latent_metadata.get(key) is not None), None
        )
        common |= {} if value is None else {key: value}
    return common


def differences(inputs: Sequence[Input], flags: Mapping[str, Any]) -> list[str]:
    """Sentences on recorded settings that frames do not inherit; settings of the flags need none."""
    files = [i for i in inputs if i.latent_metadata]
    found = []
    for key in _ANNOUNCED:
        values = {
            str(i.latent_metadata[key]): i.name
            for i in files
            if i.latent_metadata.get(key) is not None
        }
        if len(values) > 1 and flags.get(key) is None:
            listed = ", ".join(f"{value} ({name})" for value, name in values.items())
            found.append(f"the inputs differ in {key}: {listed}; that of the first is used.")
    for i in files:
        if i.latent_metadata.get("eta") or i.latent_metadata.get("variance") not in (None, "eta"):
            found.append(
                f"{i.name} was sampled with eta > 0; frames are decoded with eta 0, so its own image "
                "looks different here."
            )
    return found


def common_label(
    inputs: Sequence[Input], classes: Sequence[str] | None, checkpoint: Checkpoint
) -> int | None:
    """The label of all frames: --class, else the latents' own, else the seeds' as `sample` draws
    them; images and latents that name none take the null class. None without classes.

    Raises RequestError where the inputs' labels differ or nothing tells one.
    """
    if checkpoint.num_classes is None:
        if classes:
            raise RequestError("--class: this checkpoint has no classes.", "Leave --class out.")
        return None
    if classes:
        if len(classes) > 1:
            raise RequestError("--class: all frames are of one class.", "Name one.")
        return class_index(classes[0], checkpoint)
    labels = [(i, i.label) for i in inputs if i.label is not None]
    seeds = [i.source for i in inputs if isinstance(i.source, int)]
    if not labels and len(seeds) == len(inputs):
        labels = list(zip(inputs, drawn_labels(seeds, checkpoint), strict=True))
    if not labels:
        if checkpoint.null_class is None:
            raise RequestError("no input records a class.", "Choose one with --class.")
        return checkpoint.null_class
    for i, label in labels:
        if not (0 <= label < checkpoint.num_classes or label == checkpoint.null_class):
            raise RequestError(
                f"{i.name} is of class {label}, which this checkpoint does not have.",
                "Choose one with --class.",
            )
    _check_alike(
        [(i, f"'{checkpoint.class_name(label)}'") for i, label in labels],
        "is of class {}",
        "Choose one class for all frames with --class.",
    )
    return labels[0][1]


def _check_alike(values: Sequence[tuple[Input, str]], says: str, remedy: str) -> None:
    """Raise RequestError with the first input whose value is not the first one's."""
    for other, value in values[1:]:
        first, expected = values[0]
        if value != expected:
            raise RequestError(
                f"{other.name} {says.format(value)}, {first.name} {says.format(expected)}.", remedy
            )
