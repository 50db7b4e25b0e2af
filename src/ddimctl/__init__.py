"""Denoising Diffusion Implicit Models (Song, Meng, Ermon 2021) from the terminal and from Python.

    ckpt = ddimctl.load_checkpoint("google/ddpm-cifar10-32")
    tau = ddimctl.timesteps("quadratic", 20, ckpt.schedule.num_train_timesteps)
    x_T = ddimctl.seeded_noise([0, 1, 2], ckpt.sample_shape)
    x_0 = ddimctl.sample(ckpt, x_T, timesteps=tau)
    back = ddimctl.invert(ckpt, x_0, timesteps=tau)  # .latents, .residuals, .evaluations
    ddimctl.make_grid(x_0).save("grid.png")

Names are imported when they are first used, so that `import ddimctl` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddimctl.api.images import make_grid, prepare_image, to_pil
    from ddimctl.api.latents import interpolate, load_latents, save_latents, seeded_noise, slerp
    from ddimctl.api.sampling import invert, sample, search_timesteps, trajectory
    from ddimctl.api.settings import load_checkpoint, make_schedule, timesteps
    from ddimctl.checkpoints.model import Checkpoint
    from ddimctl.diffusion.inversion import Inversion
    from ddimctl.diffusion.sampling import Step
    from ddimctl.diffusion.schedules import Schedule
    from ddimctl.errors import (
        CheckpointError,
        DataError,
        DdimctlError,
        DeviceError,
        NumericsError,
        RequestError,
        Stopped,
        StorageError,
    )
    from ddimctl.files.latents import LatentFile

    __version__: str

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "DdimctlError",
    "DeviceError",
    "Inversion",
    "LatentFile",
    "NumericsError",
    "RequestError",
    "Schedule",
    "Step",
    "Stopped",
    "StorageError",
    "__version__",
    "interpolate",
    "invert",
    "load_checkpoint",
    "load_latents",
    "make_grid",
    "make_schedule",
    "prepare_image",
    "sample",
    "save_latents",
    "search_timesteps",
    "seeded_noise",
    "slerp",
    "timesteps",
    "to_pil",
    "trajectory",
]

_HOMES = {
    "Checkpoint": "ddimctl.checkpoints.model",
    "Inversion": "ddimctl.diffusion.inversion",
    "LatentFile": "ddimctl.files.latents",
    "Schedule": "ddimctl.diffusion.schedules",
    "Step": "ddimctl.diffusion.sampling",
    "interpolate": "ddimctl.api.latents",
    "invert": "ddimctl.api.sampling",
    "load_checkpoint": "ddimctl.api.settings",
    "load_latents": "ddimctl.api.latents",
    "make_grid": "ddimctl.api.images",
    "make_schedule": "ddimctl.api.settings",
    "prepare_image": "ddimctl.api.images",
    "sample": "ddimctl.api.sampling",
    "save_latents": "ddimctl.api.latents",
    "search_timesteps": "ddimctl.api.sampling",
    "seeded_noise": "ddimctl.api.latents",
    "slerp": "ddimctl.api.latents",
    "timesteps": "ddimctl.api.settings",
    "to_pil": "ddimctl.api.images",
    "trajectory": "ddimctl.api.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ddimctl' has no attribute '{name}'")
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("ddimctl")
    else:
        value = getattr(import_module(_HOMES.get(name, "ddimctl.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
