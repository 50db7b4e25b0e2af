"""Data x_0 from a mixture of Gaussians around a few images: the ideal network in closed form."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddimctl.diffusion.schedules import Schedule, make_schedule

SHAPE = (1, 2, 2)


def image(*seeds: int) -> Tensor:
    """(N, 1, 2, 2), float64: images of the mixture's kind, one for each seed."""
    centres = MixtureModel().centres
    rows = [
        centres[seed % len(centres)]
        + 0.1 * torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in seeds
    ]
    return torch.stack(rows).view(-1, *SHAPE)


@dataclass
class MixtureModel:
    """Equal parts N(centre, deviation^2 I). Counts the images it is asked about in `evaluations`."""

    schedule: Schedule = field(default_factory=make_schedule)
    prediction: str = "eps"
    deviation: float = 0.1
    learned_variance: bool = False
    self_conditioned: bool = False
    null_class: int | None = None
    evaluations: int = 0
    batches: list[int] = field(default_factory=list)
    centres: Tensor = field(
        default_factory=lambda: torch.tensor(
            [[-0.8, -0.2, 0.3, 0.9], [0.7, 0.6, -0.5, -0.4], [0.1, -0.9, 0.8, -0.1]],
            dtype=torch.float64,
        )
    )

    def network(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.evaluations += len(x)
        self.batches.append(len(x))
        level = self.schedule.alpha_bar[t][:, None]
        signal, noise = level.sqrt(), (1 - level).sqrt()
        flat = x.double().flatten(1)
        variance = level * self.deviation**2 + 1 - level
        offset = flat[:, None] - signal[..., None] * self.centres
        weight = torch.softmax(-(offset**2).sum(2) / (2 * variance), 1)
        eps = noise / variance * (weight[..., None] * offset).sum(1)
        x_0 = (flat - noise * eps) / signal
        v = signal * eps - noise * x_0
        return {"eps": eps, "x_0": x_0, "v": v}[self.prediction].view_as(x)
