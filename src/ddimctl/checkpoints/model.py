"""A loaded checkpoint, whichever family it came from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ddimctl.checkpoints.build.network import UNetPatches
from ddimctl.diffusion.schedules import Schedule
from ddimctl.errors import RequestError


@dataclass(frozen=True)
class Provenance:
    """Where a checkpoint came from: what manifests, latents and `ddimctl info` record.

    name:     hub id, or the file's or folder's own name; never a path.
    family:   "diffusers", "ermongroup", "openai" or "lucidrains".
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

    def record(self) -> dict[str, Any]:
        """What names the checkpoint in manifests, latents and images: plain values."""
        record = {key: value for key, value in asdict(self).items() if key != "notes"}
        if not self.flags:
            del record["flags"]
        return record


@dataclass(frozen=True, eq=False)
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
    ignored: dict[str, Any] = field(default_factory=dict)
    patches: UNetPatches = field(default_factory=UNetPatches)

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

    def network(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, x_0: Tensor | None = None
    ) -> Tensor:
        """The raw output, at least float32: (N, C or 2C, H, W) for x (N, C, H, W), t (N,), labels (N,).

        labels: None is the null class.  x_0: the last prediction, where self_conditioned. Raises RequestError where a class is needed and none given.
        """
        if labels is None and self.num_classes is not None:
            if self.null_class is None:
                raise RequestError("this checkpoint needs class labels.", "Pass labels=, (N,).")
            labels = torch.full_like(t, self.null_class)
        dtype = next(self.unet.parameters()).dtype
        if self.patches.timestep_scale != 1:
            t = t * self.patches.timestep_scale
        more = {"x_self_cond": x_0} if self.self_conditioned else {}
        output: Tensor = self.unet(x.to(dtype), t, class_labels=labels, return_dict=False, **more)[
            0
        ]
        # a copy, since in CUDA graphs the next call writes over the output
        return output.to(torch.promote_types(x.dtype, torch.float32), copy=True)
