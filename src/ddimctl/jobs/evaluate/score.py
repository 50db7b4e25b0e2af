"""Scores of pictures that exist already, whoever made them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddimctl.errors import RequestError
from ddimctl.jobs.evaluate.reference import (
    Preparation,
    check_preparation,
    few_pictures,
    make_measure,
    measure_pictures,
    open_reference,
)
from ddimctl.jobs.events import Report, ignore
from ddimctl.metrics.measure import scores
from ddimctl.runtime.device import resolve_device


@dataclass(frozen=True)
class ScoreRequest:
    """Which pictures to compare with which.

    samples, data: folders or zips; instead of data, reference, a file that make_reference wrote.
    count: exactly so many of the samples, the first by name; None is all.
    size: (H, W) for both sides; None is the reference's, else the samples' own.
    channels, background: None is the reference's, else 3 and black.
    """

    samples: Path
    data: Path | None = None
    reference: Path | None = None
    count: int | None = None
    size: tuple[int, int] | None = None
    channels: int | None = None
    background: tuple[int, ...] | None = None
    metrics: tuple[str, ...] = ("swd",)
    inception: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class ScoreResult:
    """scores: by metric. samples, reference: what was compared, and how it was prepared."""

    scores: dict[str, float]
    samples: dict[str, Any]
    reference: dict[str, Any]


def score(request: ScoreRequest, report: Report = ignore) -> ScoreResult:
    """Compare pictures with a data set or a reference to one.

    Raises RequestError, DataError (fewer samples than asked for, unreadable ones).
    """
    if (request.data is None) == (request.reference is None):
        raise RequestError(
            "there must be one thing to compare with.", "Name --data or --reference."
        )
    device = resolve_device(request.device)
    measure = make_measure(request.metrics, request.inception, device)
    how = Preparation(request.size, request.channels or 3, request.background or (0, 0, 0))
    target = None
    if request.reference is not None:
        target = open_reference(request.reference, measure)
        own = target.preparation
        how = Preparation(
            request.size or own.size,
            request.channels or own.channels,
            request.background or own.background,
        )
        check_preparation(request.reference, target, how)
    found = measure_pictures(request.samples, how, measure, device, report, limit=request.count)
    few_pictures(found.facts["pictures"], "the samples", report)
    if target is None:
        assert request.data is not None
        target = measure_pictures(request.data, found.preparation, measure, device, report)
    few_pictures(target.facts["pictures"], "the data", report)
    return ScoreResult(scores(measure, found.summary, target.summary), found.facts, target.facts)
