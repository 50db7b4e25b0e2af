"""What the metrics need to know of a set of images, added up batch by batch; and their scores."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ddimctl.diffusion.noise import hash_keys
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.metrics import sliced
from ddimctl.metrics.inception import Extractor
from ddimctl.metrics.inception_distances import (
    frechet_distance,
    kernel_distance,
    mean_and_covariance,
)

METRICS: Final = ("swd", "fid", "kid")
KEPT_FEATURES: Final = 10_000
"""KID compares at most so many images of a set, drawn from all of them."""

_SEED: Final = 0

Summary = Mapping[str, Tensor]
"""What is kept of a set of images, on the CPU.

count: (), int64.  patches: histograms of swd.  total, outer: float64 sums of features and of their
products, for FID.  features: float32 (at most KEPT_FEATURES, D), for KID.
"""


@dataclass(frozen=True)
class Measure:
    """metrics: some of METRICS. extractor: the network of FID and KID; None without either."""

    metrics: tuple[str, ...]
    extractor: Extractor | None = None

    def settings(self) -> dict[str, JsonObject]:
        """By metric: what two summaries must share for a score to mean anything."""
        network = self.extractor.settings if self.extractor else {}
        own = {"swd": sliced.SETTINGS, "fid": network, "kid": network | {"kept": KEPT_FEATURES}}
        return {metric: own[metric] for metric in self.metrics}


def summarize(
    batches: Iterable[Tensor],
    count: int,
    measure: Measure,
    device: torch.device,
    on_batch: Callable[[int], None] | None = None,
) -> Summary:
    """The summary of count images, in batches (n, H, W, C), uint8.

    on_batch: called with how many are done.

    Memory does not grow with the number of images, but for KID's features.
    """
    kept = torch.ones(count, dtype=torch.bool)
    if count > KEPT_FEATURES:
        kept[hash_keys(torch.arange(count), _SEED).argsort()[KEPT_FEATURES:]] = False
    sums: dict[str, Tensor] = {}
    features: list[Tensor] = []
    done = 0
    for batch in batches:
        pixels = batch.to(device).permute(0, 3, 1, 2).contiguous()
        parts: dict[str, Tensor] = {}
        if "swd" in measure.metrics:
            parts["patches"] = sliced.patch_histograms(pixels.float() / 127.5 - 1)
        if measure.extractor is not None:
            colours = pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels
            found = measure.extractor.features(colours)
            if "fid" in measure.metrics:
                exact = found.double()
                parts |= {"total": exact.sum(0), "outer": exact.T @ exact}
            if "kid" in measure.metrics:
                features.append(found.cpu()[kept[done : done + len(batch)]])
        sums = {name: sums[name] + part if sums else part for name, part in parts.items()}
        done += len(batch)
        if on_batch:
            on_batch(done)
    summary = {name: total.cpu() for name, total in sums.items()}
    if features:
        summary["features"] = torch.cat(features)
    return summary | {"count": torch.tensor(done)}


def scores(measure: Measure, first: Summary, second: Summary) -> dict[str, float]:
    """Every metric between two sets: swd, swd_1 (finest level) ..., fid, kid, kid_std.

    swd is the mean over the pyramid's levels. Raises DataError for sets that are too small.
    """
    found: dict[str, float] = {}
    if "swd" in measure.metrics:
        levels = sliced.sliced_wasserstein(first["patches"], second["patches"])
        found["swd"] = sum(levels) / len(levels)
        found |= {f"swd_{at}": value for at, value in enumerate(levels, 1)}
    if "fid" in measure.metrics:
        found["fid"] = frechet_distance(*_gaussian(first), *_gaussian(second))
    if "kid" in measure.metrics:
        found["kid"], found["kid_std"] = kernel_distance(first["features"], second["features"])
    return found


def _gaussian(summary: Summary) -> tuple[Tensor, Tensor]:
    return mean_and_covariance(int(summary["count"]), summary["total"], summary["outer"])
