"""The paper's tables of FID (arXiv 2010.02502, tables 1 and 3): settings and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ddimctl.errors import RequestError

IMAGES: Final = 50_000
"""How many samples the paper's numbers are of."""

_RELATIVE, _ABSOLUTE = 0.05, 0.3
Row = float | str
"""An eta, or the name of another variance."""


@dataclass(frozen=True)
class Preset:
    """A column of the paper's tables.

    checkpoint: where its network is found.  side: pixels.  squared: whether tau is quadratic.
    fid: by row, then S.  images: how many the data has, where that is beyond doubt.
    """

    checkpoint: str
    data: str
    side: int
    squared: bool
    fid: Mapping[Row, Mapping[int, float]]
    images: int | None = None

    @property
    def etas(self) -> tuple[float, ...]:
        return tuple(row for row in self.fid if isinstance(row, float))

    @property
    def variances(self) -> tuple[str, ...]:
        return tuple(row for row in self.fid if isinstance(row, str))


def _fid(rows: Mapping[Row, str]) -> dict[Row, dict[int, float]]:
    steps = (10, 20, 50, 100, 1000)
    values = {row: [float(word) for word in text.split("/")] for row, text in rows.items()}
    return {row: dict(zip(steps, found, strict=False)) for row, found in values.items()}


PRESETS: Final[Mapping[str, Preset]] = {
    "paper-cifar10": Preset(
        "google/ddpm-ema-cifar10-32",
        "the 50,000 training images of CIFAR-10",
        32,
        True,
        _fid(
            {
                0.0: "13.36/6.84/4.67/4.16/4.04",
                0.2: "14.04/7.11/4.77/4.25/4.09",
                0.5: "16.66/8.35/5.25/4.46/4.29",
                1.0: "41.07/18.36/8.01/5.78/4.73",
                "large": "367.43/133.37/32.72/9.99/3.17",
            }
        ),
        images=50_000,
    ),
    "paper-celeba": Preset(
        "the ckpt.pth for CelebA of ermongroup/ddim",
        "CelebA, cropped and resized to 64 x 64 as there",
        64,
        False,
        _fid(
            {
                0.0: "17.33/13.73/9.17/6.53/3.51",
                0.2: "17.66/14.11/9.51/6.79/3.64",
                0.5: "19.86/16.06/11.01/8.09/4.28",
                1.0: "33.12/26.03/18.48/13.93/5.98",
                "large": "299.71/183.83/71.71/45.20/3.26",
            }
        ),
    ),
    "paper-bedroom": Preset(
        "google/ddpm-ema-bedroom-256",
        "LSUN bedrooms at 256 x 256",
        256,
        False,
        _fid({0.0: "16.95/8.89/6.75/6.62", 1.0: "42.78/22.77/10.81/6.81"}),
    ),
    "paper-church": Preset(
        "google/ddpm-ema-church-256",
        "LSUN churches at 256 x 256",
        256,
        False,
        _fid({0.0: "19.45/12.47/10.84/10.58", 1.0: "51.56/23.37/11.16/8.27"}),
    ),
}


def paper_timesteps(squared: bool, steps: int, num_train_timesteps: int) -> tuple[int, ...]:
    """The list that ermongroup/ddim, which the numbers are of, walks for S = steps.

    squared: int(linspace(0, sqrt(0.8 T), S)^2), else range(0, T, T // S). Repeated timesteps are
    left out, which changes no image at eta = 0, so there can be fewer than S; where S does not
    divide T the second has more. Raises RequestError for an S that it cannot walk.
    """
    T, S = num_train_timesteps, steps
    if not 2 <= S <= T:
        raise RequestError(f"--preset: S must be in 2 ... {T}, not {S}.")
    if not squared:
        return tuple(range(0, T, T // S))
    return tuple(sorted({8 * T * i * i // (10 * (S - 1) ** 2) for i in range(S)}))


def is_within_band(found: float, paper: float) -> bool:
    """Whether a FID agrees with the paper's: within 5 % or 0.3, whichever is more."""
    return abs(found - paper) <= max(_ABSOLUTE, _RELATIVE * paper)
