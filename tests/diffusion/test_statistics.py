import torch

from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.statistics import is_atypical, latent_statistics


def test_statistics_are_those_of_each_image():
    latents = torch.stack([torch.full((2, 2, 2), 3.0), torch.tensor([[[1.0, -1.0]] * 2] * 2)])
    mean, std = latent_statistics(latents)
    assert mean.tolist() == [3.0, 0.0]
    assert std.tolist() == [0.0, 1.0]


def test_noise_of_seeds_is_typical():
    for shape in ((1, 4, 4), (3, 16, 16), (3, 64, 64)):
        assert not is_atypical(seeded_noise(range(200), shape)).any()


def test_another_mean_or_deviation_is_atypical():
    for scale, shift in ((0.0, 0.0), (0.6, 0.0), (1.4, 0.0), (1.0, -0.3)):
        latents = seeded_noise(range(20), (3, 32, 32)) * scale + shift
        assert is_atypical(latents).all()
