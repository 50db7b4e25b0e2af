"""Scores of images that exist already, whoever made them."""

from dataclasses import dataclass

from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.evaluate.reference import (
    Preparation,
    check_preparation,
    few_images,
    make_measure,
    measure_images,
    open_reference,
)
from ddimctl.jobs.evaluate.request import ScoreRequest, check_target
from ddimctl.jobs.events import Report, ignore
from ddimctl.metrics.measure import scores
from ddimctl.runtime.device import resolve_device


@dataclass(frozen=True)
class ScoreResult:
    """scores: by metric. samples, reference: what was compared, and how it was prepared."""

    scores: dict[str, float]
    samples: JsonObject
    reference: JsonObject


def score(request: ScoreRequest, report: Report = ignore) -> ScoreResult:
    """Compare images with a data set or a reference to one.

    Raises RequestError, DataError (fewer samples than asked for, unreadable ones).
    """
    scoring = request.scoring
    check_target(scoring)
    device = resolve_device(request.device)
    measure = make_measure(scoring.metrics or ("swd",), scoring.inception, device)
    how = Preparation(request.size, request.channels or 3, scoring.background or (0, 0, 0))
    target = None
    if scoring.reference is not None:
        target = open_reference(scoring.reference, measure)
        own = target.preparation
        how = Preparation(
            request.size or own.size,
            request.channels or own.channels,
            scoring.background or own.background,
        )
        check_preparation(scoring.reference, target, how)
    found = measure_images(request.samples, how, measure, device, report, limit=request.count)
    few_images(found.facts["pictures"], "the samples", report)
    if target is None:
        assert scoring.data is not None
        target = measure_images(scoring.data, found.preparation, measure, device, report)
    few_images(target.facts["pictures"], "the data", report)
    return ScoreResult(scores(measure, found.summary, target.summary), found.facts, target.facts)
