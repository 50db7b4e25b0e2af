"""What an inversion reports of an input image: figures, a sentence, warnings, a comparison."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from ddimctl.diffusion.statistics import latent_statistics
from ddimctl.files.pictures.grids import make_grid
from ddimctl.files.pictures.images import encode_image
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.invert.round_trip import HALF_A_LEVEL, Fidelity, RoundTrip
from ddimctl.jobs.sample.plan import Plan

_CELL: Final = 256  # small images are enlarged to about that many pixels
_NAMED_STEPS: Final = 5  # in a warning about steps that were not solved


def figures_of(found: Fidelity, trip: RoundTrip, i: int, atypical: bool) -> JsonObject:
    """Plain values by name, of the i-th image of a round trip."""
    mean, std = latent_statistics(trip.latents[i : i + 1])
    residuals = [r if math.isfinite(r) else None for r in trip.residuals[i].tolist()]
    return {
        **asdict(found),
        "evaluations": int(trip.evaluations[i]),
        "residuals": residuals,
        "latent_mean": float(mean[0]),
        "latent_std": float(std[0]),
        "atypical": atypical,
    }


def sentence(figures: JsonObject) -> str:
    """The figures in words."""
    psnr = "exact" if figures["psnr"] is None else f"PSNR {figures['psnr']:.1f} dB"
    coded = figures.get("autoencoder")
    lost = (
        "" if coded is None else f"; the autoencoder alone loses PSNR {coded['psnr'] or 0:.1f} dB"
    )
    return (
        f"MSE {figures['mse']:.2g}, {psnr}, worst level {figures['worst_level']} of 255, "
        f"{100 * figures['exact_pixels']:.4g} % of pixels exact, "
        f"{figures['evaluations']} evaluations, latent mean {figures['latent_mean']:.3f}, "
        f"deviation {figures['latent_std']:.3f}{lost}"
    )


def warnings(
    path: Path, plan: Plan, found: Fidelity, residuals: Tensor, figures: JsonObject
) -> Iterator[str]:
    """What the user should know of an inverted image besides its figures."""
    if plan.method != "naive" and found.largest_error > HALF_A_LEVEL * 255 / 2:
        by_size = sorted(zip(residuals.tolist(), plan.timesteps, strict=True), reverse=True)
        left = ", ".join(f"{r * 255 / 2:.2g} at t = {t}" for r, t in by_size[:_NAMED_STEPS])
        yield (
            f"{path}: the decoded image is off by up to {found.largest_error:.2g} levels of 255; "
            f"unsolved steps leave residuals of {left}. An image unlike the training data may have "
            "no exact latent; more --steps are more accurate."
        )
    if figures["atypical"]:
        yield (
            f"{path}: its latent is unlike noise (mean {figures['latent_mean']:.2f}, deviation "
            f"{figures['latent_std']:.2f}, not 0 and 1): interpolations near it may look odd."
        )


def inversion_sheet(original: Tensor, decoded: Tensor, steps: int, text: dict[str, str]) -> bytes:
    """A PNG of three images, labelled: both (H, W, C), uint8, and their absolute difference.

    The difference is multiplied until its worst level (of 255) can be seen; the label gives both.
    """
    difference = (original.int() - decoded.int()).abs()
    worst = int(difference.max())
    factor = 255 // worst if worst else 1
    found = f"difference x {factor}" if factor > 1 else "difference"
    labels = (
        "input image, fitted",
        f"decoded in {steps} step{'s' if steps > 1 else ''}",
        f"{found}, worst {worst}" if worst else "no difference",
    )
    pixels = torch.stack((original, decoded, (difference * factor).to(torch.uint8)))
    scale = max(1, _CELL // max(original.shape[:2]))
    return encode_image(make_grid(pixels, 3, scale, labels), "png", text)
