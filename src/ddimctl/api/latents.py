"""Latents: drawn, mixed, read and written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddimctl.api.arguments import instance, real, whole, word
from ddimctl.api.tensors import Integers, batch, classes, device_of, floats, integers, visited
from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion import noise, paths
from ddimctl.errors import RequestError, brief, python_words
from ddimctl.files import latents as files
from ddimctl.files.latents import LatentFile
from ddimctl.jobs.sample.manifest import latents_metadata
from ddimctl.jobs.sample.plan import SEEDED, SamplerSettings, make_plan

_UNKNOWN = "unknown"


@python_words()
def seeded_noise(
    seeds: Integers,
    shape: Sequence[int],
    t: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise (N, *shape), float32, one image per seed.

    shape: such as ckpt.sample_shape.  t: None for x_T, else the timestep whose step the noise is
    for. The noise of a seed is the same whatever the other seeds and the device (within 1e-6).
    Raises RequestError for a seed outside 0 ... 2^63 - 1, and for a shape without numbers.
    """
    sides = [whole("each of shape", side, 1, 2**31) for side in integers("shape", shape, 0)]
    found = integers("seeds", seeds, 0)
    at = None if t is None else whole("t", t, 0)
    return noise.seeded_noise(found, sides, at, device_of(device))


@python_words()
def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point on the arc from a (weight 0) to b (weight 1), which are taken as one vector each.

    a, b: of one shape; for a batch, call it for each latent, or use interpolate.
    Raises RequestError for different shapes, and where no arc is the shortest (opposite or zero).
    """
    return paths.slerp(*_pair(a, b), real("weight", weight))


@python_words()
def interpolate(
    latents: Tensor,
    frames: int = 16,
    *,
    path: str = "slerp",
    loop: bool = False,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """The latents (frames, C, H, W) of a path that visits latents (K, C, H, W) in order.

    path: "slerp" or "lerp".  loop: go back to the first at the end.  grid: instead of frames, the
    rows and columns of a grid between four latents (its corners), row by row.
    Raises RequestError for fewer than two latents, or fewer frames than latents.
    """
    inputs = floats("latents", latents, dims=4)
    way = paths.PATHS[word("path", path, paths.PATHS)]
    instance("loop", loop, bool, "True or False")
    if grid is not None:
        if not isinstance(grid, list | tuple) or len(grid) != 2:
            raise RequestError(f"grid must be (rows, columns), not {brief(grid)}.")
        rows, columns = (whole("each of grid", side, 2, 2**16) for side in grid)
        return paths.grid(inputs, rows, columns, way)
    if len(inputs) < 2:
        raise RequestError("latents holds one; a path leads between two or more.")
    places = paths.frame_positions(len(inputs), whole("frames", frames, 1, 2**31), loop)
    return paths.tour(inputs, places, way)


@python_words()
def load_latents(path: str | Path) -> LatentFile:
    """The latents (N, C, H, W), float32, and the metadata of a file of `ddimctl` or a stranger's.

    Nothing in the file is executed. Raises DataError, which says what is wrong with it.
    """
    return files.load_latents(_path(path))


@python_words()
def save_latents(
    path: str | Path,
    latents: Tensor,
    ckpt: Checkpoint | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    labels: Integers | None = None,
    seeds: Integers | None = None,
) -> None:
    """Write latents (N, C, H, W) to a .pt or .safetensors file, over one of that name.

    ckpt, timesteps, labels, seeds: what `ddimctl sample --latents` and `interpolate` are to decode
    them with; timesteps and ckpt belong together, the others need them.
    Raises RequestError for arguments that do not fit, StorageError where the disk refuses.
    """
    x = floats("latents", latents, dims=4)
    if ckpt is None:
        if any(value is not None for value in (timesteps, labels, seeds)):
            raise RequestError("timesteps, labels and seeds are of a checkpoint.", "Pass ckpt=.")
        files.save_latents(_path(path), x, {})
        return
    if timesteps is None:
        raise RequestError("latents of a checkpoint are at a timestep.", "Pass timesteps=.")
    batch("latents", x.to(ckpt.device), ckpt)
    tau, rows = visited(timesteps, ckpt), classes(labels, x, ckpt)
    names = range(len(x)) if seeds is None else integers("seeds", seeds, 0)
    if len(names) != len(x):
        raise RequestError(f"seeds are {len(names)}, the latents {len(x)}.", "Pass one for each.")
    plan = make_plan(
        SamplerSettings(len(tau), "explicit", tau, 0.0, "eta", "ddim", "none", 1.0),
        shape=(x.shape[1], x.shape[2], x.shape[3]),
        seeds=names,
        labels=None if rows is None else rows.tolist(),
        precision="fp32",
        batch_size=len(x),
        method=_UNKNOWN if seeds is None else SEEDED,
    )
    files.save_latents(_path(path), x, latents_metadata(plan, ckpt))


def _pair(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    first, second = floats("a", a), floats("b", b)
    if first.device != second.device:
        raise RequestError(f"a is on {first.device}, b on {second.device}.", "Move one of them.")
    return first, second


def _path(path: Any) -> Path:
    found: Path = Path(instance("path", path, (str, Path), "a file's path"))
    return found
