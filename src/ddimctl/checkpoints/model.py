"""A loaded checkpoint, whichever family it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.checkpoints.codec import Codec
from ddimctl.checkpoints.conditioner import Conditioner
from ddimctl.checkpoints.table import Table
from ddimctl.diffusion.schedules import Schedule
from ddimctl.errors import RequestError, python_words
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.runtime.device import memory_errors, resolve_device


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint came from: what manifests, latents and `ddimctl info` record.

    name:     hub id, or the file's or folder's own name; never a path.
    family:   "diffusers", "ermongroup", "openai", "lucidrains" or "ldm" (a single file of Stable
              Diffusion).
    weights:  "ema" or "raw" where it is known, else "unknown".
    revision: the hub's commit hash, or None.
    sha256:   of the weight files' bytes, hexadecimal; empty for a network that is in no file.
    flags:    what was settled of the network beside its weights, by the names of --model-flag (and
              size), wherever it came from: said again, it gives the same network.
    parts:    names of what took the place of the checkpoint's own parts, by part ("vae"), or was
              added to them ("lora").
    notes:    sentences that the user should see once (assumed settings, ignored ones).
    """

    name: str
    family: str
    weights: str
    sha256: str = ""
    revision: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> JsonObject:
        """What names the checkpoint in manifests, latents and images: plain values."""
        record = {key: value for key, value in asdict(self).items() if key != "notes"}
        for key in ("flags", "parts"):
            if not record[key]:
                del record[key]
        return record


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A network with everything needed to run it.

    prediction:       "eps", "x_0" or "v".
    learned_variance: the output has 2C channels, the second half a variance in [-1, 1].
    sample_shape:     (C, H, W) of what the network was trained on: images, or their latents.
    size_divisor:     H and W of what the network works on must be multiples of it.
    num_classes:      how many classes (or prompts) a label may name, the null class not counted;
                      None without.
    null_class:       the label of "no class" (or of the negative prompt) for guidance, or None.
    class_names:      one per class, or empty; the prompts, once there are.
    background:       RGB or gray levels (0 to 255) under transparent pixels, or None if unknown.
    ignored:          the file's own sampler settings (clip_sample, ...), reported, not applied.
    patches:           what diffusers' config cannot say of the network.
    codec:            between images and what the network works on; None where it works on images.
    conditioner:      encodes prompts; None where the network takes none.
    table:            what the labels stand for in a network that attends to embeddings, else None.
    """

    unet: nn.Module
    schedule: Schedule
    prediction: str
    learned_variance: bool
    sample_shape: tuple[int, int, int]
    size_divisor: int
    provenance: Provenance
    num_classes: int | None = None
    null_class: int | None = None
    class_names: tuple[str, ...] = ()
    background: tuple[int, ...] | None = None
    ignored: JsonObject = field(default_factory=dict)
    patches: UNetPatches = field(default_factory=UNetPatches)
    codec: Codec | None = None
    conditioner: Conditioner | None = None
    table: Table | None = None

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, in pixels, that the network was trained on."""
        if self.codec is None:
            return self.sample_shape
        _, height, width = self.sample_shape
        return self.codec.channels, height * self.codec.factor, width * self.codec.factor

    @property
    def picture_divisor(self) -> int:
        """Height and width of images, in pixels, must be multiples of it."""
        return self.size_divisor * (1 if self.codec is None else self.codec.factor)

    def __repr__(self) -> str:
        classes = "" if self.num_classes is None else f"{self.num_classes} classes, "
        return (
            f"Checkpoint({self.provenance.name!r}, {'x'.join(map(str, self.sample_shape))}, "
            f"{self.prediction}, T={self.schedule.num_train_timesteps}, {classes}"
            f"{self.parameters / 1e6:.1f}M parameters, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    def to(self, device: str | torch.device) -> "Checkpoint":
        """This checkpoint, with its networks moved (in place) to "cpu", "cuda", "cuda:1" or "auto".

        Raises DeviceError where there is no such device, or too little memory on it.
        """
        with python_words(), memory_errors("Use another device."):
            place = resolve_device(str(device))
            self.unet.to(place)
            if self.codec is not None:
                self.codec.model.to(place)
        return self if self.table is None else replace(self, table=self.table.near(self.device))

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.unet.parameters())

    @property
    def self_conditioned(self) -> bool:
        """Whether the network takes its own last prediction of x_0, too."""
        config: Any = getattr(self.unet, "config", None)
        return bool(getattr(config, "self_condition", False))

    def class_name(self, label: int) -> str:
        """The class's name, or its number where classes have none."""
        if label == self.null_class and label >= len(self.class_names):
            return "none"
        return self.class_names[label] if self.class_names else str(label)

    def encode(self, images: Tensor) -> Tensor:
        """What the network works on (N, *sample_shape's C, h, w), of images (N, C, H, W) in
        [-1, 1]: themselves, or their latents. Raises NumericsError as Codec.encode does.
        """
        return images if self.codec is None else self.codec.encode(images)

    def decode(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] nominal, not clamped, of what the network works on:
        the inverse of encode. Raises NumericsError as Codec.decode does.
        """
        return x if self.codec is None else self.codec.decode(x)

    def with_prompts(
        self,
        prompts: Sequence[str],
        negative: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> "Checkpoint":
        """The same checkpoint, whose classes are the prompts: label i is prompt i, the null class
        the negative prompt.

        negative: None as Conditioner.table takes it. size: (H, W) of the images in pixels, else
        those trained on. Raises RequestError where the checkpoint takes no prompts, and as
        Conditioner.table does.
        """
        if self.conditioner is None:
            raise RequestError(
                f"{self.provenance.name} takes no prompts.", "Leave --prompt and --negative out."
            )
        _, *native = self.picture_shape
        table = self.conditioner.table(prompts, negative, size or (native[0], native[1]))
        return self.with_table(table, tuple(prompts))

    def with_table(self, table: Table, names: tuple[str, ...]) -> "Checkpoint":
        """The same checkpoint with these rows; the last one is the null class's. names: one for each
        row but the last."""
        return replace(
            self,
            table=table.near(next(self.unet.parameters()).device),
            num_classes=len(names),
            null_class=len(table) - 1,
            class_names=names,
        )

    def network(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, x_0: Tensor | None = None
    ) -> Tensor:
        """The raw output, at least float32: (N, C or 2C, H, W) for x (N, C, H, W), t (N,), labels (N,).

        labels: None is the null class.  x_0: the last prediction, where self_conditioned. Raises
        RequestError where a class or a prompt is needed and none given.
        """
        if self.conditioner is not None and self.table is None:
            raise RequestError("this checkpoint needs a prompt.", "Pass one with --prompt.")
        if labels is None and self.num_classes is not None:
            if self.null_class is None:
                raise RequestError("this checkpoint needs class labels.", "Pass labels=, (N,).")
            labels = torch.full_like(t, self.null_class)
        dtype = next(self.unet.parameters()).dtype
        x, high = x.to(dtype), torch.promote_types(x.dtype, torch.float32)
        if self.patches.timestep_scale != 1:
            t = t * self.patches.timestep_scale
        given: dict[str, Any] = {"class_labels": labels}
        if self.table is not None and labels is not None:
            given = self.table.conditions(labels, x)
        if self.self_conditioned:
            given["x_self_cond"] = x_0
        output: Tensor = self.unet(x, t, **given, return_dict=False)[0]
        # a copy, since in CUDA graphs the next call writes over the output
        return output.to(high, copy=True)
