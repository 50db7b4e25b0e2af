"""What the peers' own code recorded, on tiny random networks of theirs, in their own files.

Their cumulative products are float32 and the networks random, hence the tolerance of trajectories.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory

DATA = Path(__file__).parents[1] / "data"
FOLDERS = sorted(path.parent.name for path in DATA.glob("*/cases.safetensors"))


class Recorded(NamedTuple):
    """tensors: by name. timesteps: of each trajectory, ascending, by the trajectory's name."""

    tensors: dict[str, Tensor]
    timesteps: dict[str, list[int]]


@cache
def recorded(folder: str) -> Recorded:
    with safe_open(DATA / folder / "cases.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cases = json.loads(file.metadata()["cases"])
    return Recorded(
        tensors, {name: case.get("timesteps") or case["sequence"] for name, case in cases.items()}
    )


@cache
def checkpoint(folder: str, weights: str = "auto") -> Checkpoint:
    return load_checkpoint(DATA / folder, weights=weights)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


OUTPUTS = [
    (folder, name)
    for folder in FOLDERS
    for name in recorded(folder).tensors
    if re.fullmatch(r"(raw_eps|eps|out)\.t\d+", name)
]
TRAJECTORIES = [(folder, name) for folder in FOLDERS for name in recorded(folder).timesteps]


def test_nothing_that_was_recorded_is_left_out() -> None:
    names = {(folder, name) for folder in FOLDERS for name in recorded(folder).tensors}
    used = {(folder, name) for folder in FOLDERS for name in ("x_T", "y")} | set(OUTPUTS)
    for folder, name in TRAJECTORIES:
        used |= {(folder, f"{name}.{part}") for part in ("x_0", "x_mid", "noise")}
    assert len(FOLDERS) == 4
    assert names <= used


def test_the_network_agrees() -> None:
    for folder, name in OUTPUTS:
        tensors = recorded(folder).tensors
        weights = "raw" if name.startswith("raw") else "auto"
        t = torch.full((2,), int(name.partition(".t")[2]))
        with torch.inference_mode():
            found = checkpoint(folder, weights).network(tensors["x_T"], t, tensors.get("y"))
        assert relative(found, tensors[name]) <= 1e-5, (folder, name)


def settings_of(name: str) -> dict[str, Any]:
    """The request that a case's name stands for."""
    eta = float(re.search(r"eta(\d\.\d)", name)[1])  # type: ignore[index]
    if "ddpm_noisy" in name:
        return {"eta": 1.0, "variance": "large", "clip": "static"}
    clip = "static" if name.endswith("clip1") else "none"
    if name.startswith("ddpm"):
        return {"eta": 1.0, "variance": "learned", "clip": clip}
    return {"eta": eta, "clip": clip}


def test_the_trajectory_agrees() -> None:
    for folder, name in TRAJECTORIES:
        tensors, timesteps = recorded(folder).tensors, recorded(folder).timesteps[name]
        noise = None
        if f"{name}.noise" in tensors:
            drawn = dict(zip(reversed(timesteps), tensors[f"{name}.noise"], strict=True))
            noise = lambda t, x, drawn=drawn: drawn[t]  # noqa: E731
        request, model = settings_of(name), checkpoint(folder)
        denoise = make_denoiser(model, clip=request.pop("clip"))
        with torch.inference_mode():
            steps = list(
                trajectory(
                    denoise,
                    tensors["x_T"],
                    model.schedule,
                    timesteps,
                    noise=noise,
                    labels=tensors.get("y"),
                    **request,
                )
            )
        assert relative(steps[-1].x, tensors[f"{name}.x_0"]) <= 1e-3, (folder, name)
        if f"{name}.x_mid" in tensors:
            assert relative(steps[(len(steps) - 1) // 2].x, tensors[f"{name}.x_mid"]) <= 1e-3, name
