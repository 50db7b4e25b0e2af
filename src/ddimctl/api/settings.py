"""What comes before sampling: the checkpoint, the noise schedule, the timesteps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddimctl.api.arguments import instance, real, sides, whole
from ddimctl.diffusion.timesteps import timesteps as make_timesteps
from ddimctl.errors import RequestError, python_words

if TYPE_CHECKING:
    import torch

    from ddimctl.checkpoints import Checkpoint
    from ddimctl.diffusion.schedules import Schedule


@python_words()
def timesteps(kind: str, steps: int, num_train_timesteps: int = 1000) -> tuple[int, ...]:
    """Exactly `steps` of the training timesteps 0 ... num_train_timesteps - 1, ascending.

    kind: "linspace" (both ends), "trailing", or the paper's "uniform" and "quadratic".
    Raises RequestError for an unknown kind, and for more steps than there are distinct timesteps.
    """
    return make_timesteps(
        kind,
        whole("steps", steps, 1),
        whole("num_train_timesteps", num_train_timesteps, 1, 10**6),
    )


@python_words()
def make_schedule(
    kind: str = "linear",
    num_train_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    rescale_zero_snr: bool = False,
) -> "Schedule":
    """alpha_bar for each of the training timesteps, (T,), float64, as `Schedule.alpha_bar`.

    kind: "linear", "scaled_linear", "cosine" or "sigmoid"; the betas are those of linear,
    scaled_linear and sigmoid. rescale_zero_snr: shift and scale so that the last alpha_bar is 0.
    Raises RequestError for an unknown kind, and for betas outside (0, 1].
    """
    from ddimctl.diffusion import schedules

    return schedules.make_schedule(
        kind,
        whole("num_train_timesteps", num_train_timesteps, 1, 10**6),
        real("beta_start", beta_start),
        real("beta_end", beta_end),
        instance("rescale_zero_snr", rescale_zero_snr, bool, "True or False"),
    )


@python_words()
def load_checkpoint(
    spec: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    weights: str = "auto",
    size: tuple[int, int] | None = None,
    flags: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    device: "str | torch.device" = "cpu",
    dtype: "torch.dtype | None" = None,
    download: bool = True,
    vae: str | Path | None = None,
    lora: Sequence[str | Path] = (),
) -> "Checkpoint":
    """The checkpoint that spec names: a folder, a file, a hub id (owner/name), "bundled", or None
    for $DDIMCTL_CKPT, else the bundled one.

    revision: branch, tag or commit of a hub id.  variant: such as "fp16", of its weight files.
    weights: "auto" (EMA where there is one), "ema" or "raw".  size: (H, W) of the training images,
    where the files do not hold it.  flags: other settings that they do not hold, by name.
    allow_nonfinite: accept weights that are NaN or infinite.  device: "cpu", "cuda", "cuda:1" or
    "auto".  dtype: of the weights, float32 by default.  download: whether a hub id may be fetched.
    vae: a folder or hub id of an autoencoder to use instead of the checkpoint's own.  lora: LoRA files,
    each FILE or FILE:WEIGHT, added to the weights of a latent checkpoint.
    Raises CheckpointError where there is none, or it cannot be run; DeviceError, RequestError.
    """
    import torch

    from ddimctl.api.tensors import device_of
    from ddimctl.checkpoints.load import load_checkpoint as load

    text, none = "text", type(None)
    for name, value in (("revision", revision), ("variant", variant)):
        instance(name, value, (str, none), text)
    instance("flags", flags, (Mapping, none), "a dict of settings by name")
    for key, value in (flags or {}).items():
        instance(f"flags[{key!r}]", value, (str, int, float), "text or a number")
    instance("vae", vae, (str, Path, none), "a path, a hub id or None")
    for each in instance("lora", lora, (list, tuple), "a list of files"):
        instance("each of lora", each, (str, Path), "a path, or text FILE:WEIGHT")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        raise RequestError(f"dtype must be float32, bfloat16 or float16, not {dtype}.")
    return load(
        instance("spec", spec, (str, Path, none), "a path, a hub id or None"),
        revision=revision,
        variant=variant,
        weights=weights,
        size=sides(size),
        flags={str(key): str(value) for key, value in (flags or {}).items()},
        allow_nonfinite=instance("allow_nonfinite", allow_nonfinite, bool, "True or False"),
        device=device_of(device),
        dtype=dtype,
        download=instance("download", download, bool, "True or False"),
        vae=vae,
        lora=lora,
    )
