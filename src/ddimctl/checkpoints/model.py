"""A loaded checkpoint, whichever family it came from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.diffusion.schedules import Schedule
from ddimctl.errors import RequestError, python_words
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.runtime.device import memory_errors, resolve_device


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint came from: what manifests, latents and `ddimctl info` record.

    name:     hub id, or the file's or folder's own name; never a path.
    family:   "diffusers", "ermongroup" or "openai".
    weights:  "ema" or "raw" where it is known, else "unknown".
    revision: the hub's commit hash, or None.
    sha256:   of the weight files' bytes, hexadecimal; empty for a network that is in no file.
    flags:    what was settled of the network beside its weights, by the names of --model-flag (and
              size), wherever it came from: said again, it gives the same network.
    notes:    sentences that the user should see once (assumed settings, ignored ones).
    """

    name: str
    family: str
    weights: str
    sha256: str = ""
    revision: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def record(self) -> JsonObject:
        """What names the checkpoint in manifests, latents and images: plain values."""
        record = {key: value for key, value in asdict(self).items() if key != "notes"}
        if not self.flags:
            del record["flags"]
        return record


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """A network with everything needed to run it.

    prediction:       "eps", "x_0" or "v".
    learned_variance: the output has 2C channels, the second half a variance in [-1, 1].
    sample_shape:     (C, H, W) of the training images.
    size_divisor:     H and W must be multiples of it.
    num_classes:      how many classes a label may name, the null class not counted; None without.
    null_class:       the label of "no class" for guidance, or None.
    class_names:      one per class, or empty.
    background:       RGB or gray levels (0 to 255) under transparent pixels, or None if unknown.
    ignored:          the file's own sampler settings (clip_sample, ...), reported, not applied.
    patches:           what diffusers' config cannot say of the network.
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
        """This checkpoint, with its network moved (in place) to "cpu", "cuda", "cuda:1" or "auto".

        Raises DeviceError where there is no such device, or too little memory on it.
        """
        with python_words(), memory_errors("Use another device."):
            self.unet.to(resolve_device(str(device)))
        return self

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(weight.numel() for weight in self.unet.parameters())

    def class_name(self, label: int) -> str:
        """The class's name, or its number where classes have none."""
        if label == self.null_class and label >= len(self.class_names):
            return "none"
        return self.class_names[label] if self.class_names else str(label)

    def network(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The raw output, at least float32: (N, C or 2C, H, W) for x (N, C, H, W), t (N,), labels (N,).

        labels: None is the null class. Raises RequestError where a class is needed and none given.
        """
        if labels is None and self.num_classes is not None:
            if self.null_class is None:
                raise RequestError("this checkpoint needs class labels.", "Pass labels=, (N,).")
            labels = torch.full_like(t, self.null_class)
        dtype = next(self.unet.parameters()).dtype
        if self.patches.timestep_scale != 1:
            t = t * self.patches.timestep_scale
        output: Tensor = self.unet(x.to(dtype), t, class_labels=labels, return_dict=False)[0]
        # a copy, since in CUDA graphs the next call writes over the output
        return output.to(torch.promote_types(x.dtype, torch.float32), copy=True)
