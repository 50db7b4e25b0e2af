"""Trajectories that ermongroup/ddim's own code recorded, on a tiny random network of theirs."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddimctl.checkpoints import load_checkpoint
from ddimctl.diffusion.sampling import sample
from ddimctl.diffusion.timesteps import timesteps

FOLDER = Path(__file__).parents[1] / "data" / "ermongroup_tiny"
RECORDED = [0, 33, *range(66, 1000, 33)]  # their "30" steps are 31

CASES = {
    "uniform.S10.eta0.0": (timesteps("uniform", 10), {}),
    "uniform.S20.eta0.0": (timesteps("uniform", 20), {}),
    "uniform.S30.eta0.0": (tuple(RECORDED), {}),
    "quad.S10.eta0.0": (timesteps("quadratic", 10), {}),
    "uniform.S10.eta0.5": (timesteps("uniform", 10), {"eta": 0.5}),
    "uniform.S10.eta1.0": (timesteps("uniform", 10), {"eta": 1.0}),
    "uniform+ddpm_noisy.S10.eta0.0": (
        timesteps("uniform", 10),
        {"eta": 1.0, "variance": "large", "clip": "static"},
    ),
}


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(FOLDER)


@pytest.fixture(scope="module")
def cases():
    with safe_open(FOLDER / "cases.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_the_network_agrees(checkpoint, cases, t):
    with torch.inference_mode():
        eps = checkpoint.network(cases["x_T"], torch.full((2,), t))
    assert relative(eps, cases[f"eps.t{t}"]) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_agrees(checkpoint, cases, name):
    tau, settings = CASES[name]
    recorded = cases.get(f"{name}.noise")
    drawn = None
    if recorded is not None:
        by_timestep = dict(zip(reversed(tau), recorded, strict=True))
        drawn = lambda t, x: by_timestep[t]  # noqa: E731
    x_0 = sample(checkpoint, cases["x_T"], timesteps=tau, noise=drawn, **settings)
    assert relative(x_0, cases[f"{name}.x_0"]) <= 1e-3
