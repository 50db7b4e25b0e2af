"""Denoising Diffusion Implicit Models (Song, Meng, Ermon 2021) from the terminal and from Python.

    ckpt = ddimctl.load_checkpoint("google/ddpm-cifar10-32")
    tau = ddimctl.timesteps("quadratic", 20, ckpt.schedule.num_train_timesteps)
    x_T = ddimctl.seeded_noise([0, 1, 2], ckpt.sample_shape)
    x_0 = ddimctl.sample(ckpt, x_T, timesteps=tau)
    back = ddimctl.invert(ckpt, x_0, timesteps=tau)  # .latents, .residuals, .evaluations

Names are imported when they are first used, so that `import ddimctl` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddimctl.checkpoints import load_checkpoint
    from ddimctl.checkpoints.model import Checkpoint
    from ddimctl.diffusion.inversion import Inversion, invert
    from ddimctl.diffusion.noise import seeded_noise
    from ddimctl.diffusion.paths import slerp
    from ddimctl.diffusion.sampling import sample
    from ddimctl.diffusion.schedules import Schedule, make_schedule
    from ddimctl.diffusion.tau_search import search_timesteps
    from ddimctl.diffusion.timesteps import timesteps
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

    __version__: str

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "DdimctlError",
    "DeviceError",
    "Inversion",
    "NumericsError",
    "RequestError",
    "Schedule",
    "Stopped",
    "StorageError",
    "__version__",
    "invert",
    "load_checkpoint",
    "make_schedule",
    "sample",
    "search_timesteps",
    "seeded_noise",
    "slerp",
    "timesteps",
]

_HOMES = {
    "Checkpoint": "ddimctl.checkpoints.model",
    "Inversion": "ddimctl.diffusion.inversion",
    "Schedule": "ddimctl.diffusion.schedules",
    "invert": "ddimctl.diffusion.inversion",
    "load_checkpoint": "ddimctl.checkpoints",
    "make_schedule": "ddimctl.diffusion.schedules",
    "sample": "ddimctl.diffusion.sampling",
    "search_timesteps": "ddimctl.diffusion.tau_search",
    "seeded_noise": "ddimctl.diffusion.noise",
    "slerp": "ddimctl.diffusion.paths",
    "timesteps": "ddimctl.diffusion.timesteps",
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
