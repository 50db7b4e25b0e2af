"""Data x_0 ~ N(0, s^2), for which everything about DDIM is known in closed form."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddimctl.diffusion.schedules import Schedule, make_schedule


@dataclass
class GaussianModel:
    """The ideal network for one-dimensional Gaussian data of standard deviation `deviation`."""

    schedule: Schedule = field(default_factory=make_schedule)
    prediction: str = "eps"
    deviation: float = 0.5
    learned_variance: bool = False
    self_conditioned: bool = False
    null_class: int | None = None

    def variance(self, alpha_bar: float | Tensor) -> float | Tensor:
        """Of x at that level."""
        return alpha_bar * self.deviation**2 + 1 - alpha_bar

    def network(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        alpha_bar = self.schedule.alpha_bar[t].view(-1, 1, 1, 1).to(x.dtype)
        score = x / self.variance(alpha_bar)
        eps = (1 - alpha_bar).sqrt() * score
        x_0 = alpha_bar.sqrt() * self.deviation**2 * score
        if self.prediction == "eps":
            return eps
        if self.prediction == "x_0":
            return x_0
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0

    def exact_flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """The solution of eq. 14: for Gaussian data the flow keeps x / its standard deviation."""
        return x * (self.variance(end) / self.variance(start)) ** 0.5


def continuous_schedule(levels: int) -> Schedule:
    """alpha_bar on a grid even in the angle of (signal, noise), stopped well above no noise."""
    angle = torch.linspace(0.3, 1.5, levels, dtype=torch.float64)
    return Schedule(angle.cos() ** 2, {"kind": "angle"})
