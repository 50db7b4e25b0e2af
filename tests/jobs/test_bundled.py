"""The checkpoint that comes with the package, on tiles that its training never saw."""

from pathlib import Path

import pytest
import torch

import ddimctl
from ddimctl.checkpoints.load import BUNDLED
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.files.pictures.images import from_uint8, picture_pixels, read_picture, to_uint8

TILES = sorted((Path(__file__).parents[2] / "examples" / "tiles").glob("*.png"))


@pytest.fixture(scope="module")
def bundled():
    return ddimctl.load_checkpoint()


@pytest.fixture(scope="module")
def tiles():
    return from_uint8(torch.stack([picture_pixels(read_picture(path, 3)) for path in TILES]))


def test_it_is_small_and_its_licence_lies_beside_it():
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 12e6
    assert "CC0" in (BUNDLED / "LICENSE-tiles.txt").read_text("utf-8")


def test_it_knows_six_classes_and_none(bundled):
    assert bundled.class_names == ("effect", "icon", "item", "monster", "player", "terrain")
    assert (bundled.num_classes, bundled.null_class) == (6, 6)
    assert bundled.sample_shape == (3, 32, 32)
    assert bundled.provenance.weights == "ema"
    assert bundled.provenance.name == "bundled"


def test_classes_differ_as_the_tiles_do(bundled):
    """Terrain fills its tile; monsters stand in the middle of a black one."""
    x_T = ddimctl.seeded_noise(range(16), bundled.sample_shape)
    labels = torch.tensor([bundled.class_names.index("monster")] * 8 + [5] * 8)
    tau = ddimctl.timesteps("linspace", 10, 1000)
    x_0 = ddimctl.sample(bundled, x_T, timesteps=tau, labels=labels)
    assert x_0.abs().max() < 2
    levels = (x_0.clamp(-1, 1) + 1) / 2
    frame = torch.cat((levels[:, :, 0], levels[:, :, -1], levels[..., 0], levels[..., -1]), -1)
    middle = levels[:, :, 10:22, 10:22].mean((1, 2, 3))
    border = frame.mean((1, 2))
    assert border[:8].median() < 0.1 < middle[:8].median()
    assert border[8:].median() > 4 * border[:8].median()


def test_held_out_tiles_come_back_within_a_level(bundled, tiles):
    tau = ddimctl.timesteps("linspace", 20, 1000)
    labels = torch.full((len(tiles),), 6)
    found = ddimctl.invert(bundled, tiles, timesteps=tau, labels=labels)
    back = ddimctl.sample(bundled, found.latents, timesteps=tau, labels=labels)
    assert (to_uint8(back).int() - to_uint8(tiles).int()).abs().max() <= 1
    assert found.evaluations.double().mean() <= 15


def test_it_removes_noise_from_tiles_that_it_never_saw(bundled, tiles):
    alpha_bar = bundled.schedule(300)
    eps = ddimctl.seeded_noise(range(len(tiles)), bundled.sample_shape)
    x = alpha_bar**0.5 * tiles + (1 - alpha_bar) ** 0.5 * eps
    with torch.inference_mode():
        found = make_denoiser(bundled)(x, 300, torch.full((len(tiles),), 6))
    noisy = x / alpha_bar**0.5
    assert (found.x_0 - tiles).square().mean() < 0.25 * (noisy - tiles).square().mean()
