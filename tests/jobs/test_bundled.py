"""The checkpoint that comes with the package, on avatars that its training never saw."""

from pathlib import Path

import pytest
import torch

import ddimctl
from ddimctl.checkpoints.load import BUNDLED
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.files.pictures.images import from_uint8, image_pixels, read_image, to_uint8

AVATARS = sorted((Path(__file__).parents[2] / "examples" / "avatars").glob("*.png"))


@pytest.fixture(scope="module")
def bundled():
    return ddimctl.load_checkpoint()


@pytest.fixture(scope="module")
def avatars():
    return from_uint8(torch.stack([image_pixels(read_image(path, 3)) for path in AVATARS]))


def test_it_is_small_and_its_licence_lies_beside_it():
    size = sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file())
    assert size <= 12e6
    assert "CC0" in (BUNDLED / "LICENSE-avatars.txt").read_text("utf-8")


def test_it_knows_three_classes_and_none(bundled):
    assert bundled.class_names == ("peep", "pixel", "thumb")
    assert (bundled.num_classes, bundled.null_class) == (3, 3)
    assert bundled.sample_shape == (3, 32, 32)
    assert bundled.provenance.weights == "ema"
    assert bundled.provenance.name == "bundled"


def test_classes_differ_as_the_styles_do(bundled):
    """Pixel avatars are of flat squares, so neighbouring pixels are equal more often."""
    x_T = ddimctl.seeded_noise(range(16), bundled.sample_shape)
    labels = torch.tensor([bundled.class_names.index(name) for name in ("peep", "pixel")])
    tau = ddimctl.timesteps("linspace", 20, 1000)
    x_0 = ddimctl.sample(bundled, x_T, timesteps=tau, labels=labels.repeat_interleave(8))
    assert x_0.abs().max() < 2
    pixels = to_uint8(x_0).int()
    flat = ((pixels[:, :, 1:] - pixels[:, :, :-1]).abs().amax(-1) <= 8).double().mean((1, 2))
    assert flat[8:].median() > flat[:8].median()


def test_held_out_avatars_come_back_within_a_level(bundled, avatars):
    tau = ddimctl.timesteps("linspace", 20, 1000)
    labels = torch.full((len(avatars),), 3)
    found = ddimctl.invert(bundled, avatars, timesteps=tau, labels=labels)
    back = ddimctl.sample(bundled, found.latents, timesteps=tau, labels=labels)
    assert (to_uint8(back).int() - to_uint8(avatars).int()).abs().max() <= 1
    assert found.evaluations.double().mean() <= 15


def test_it_removes_noise_from_avatars_that_it_never_saw(bundled, avatars):
    alpha_bar = bundled.schedule(300)
    eps = ddimctl.seeded_noise(range(len(avatars)), bundled.sample_shape)
    x = alpha_bar**0.5 * avatars + (1 - alpha_bar) ** 0.5 * eps
    with torch.inference_mode():
        found = make_denoiser(bundled)(x, 300, torch.full((len(avatars),), 3))
    noisy = x / alpha_bar**0.5
    assert (found.x_0 - avatars).square().mean() < 0.25 * (noisy - avatars).square().mean()
