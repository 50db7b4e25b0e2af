"""What an evaluation does for one cell after the other: sample it, score it; by all its processes."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import write_json
from ddimctl.files.dataset.cache import hash_json
from ddimctl.files.dataset.reference_file import save_reference
from ddimctl.files.own_output import MANIFEST
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import read_json
from ddimctl.jobs.checkpoint import Model
from ddimctl.jobs.evaluate.cells import Cell
from ddimctl.jobs.evaluate.reference import (
    Measured,
    Preparation,
    check_preparation,
    few_images,
    measure_images,
    measure_samples,
    open_reference,
)
from ddimctl.jobs.evaluate.request import EvaluateRequest
from ddimctl.jobs.events import Event, Progress, Report
from ddimctl.jobs.sample.manifest import load_manifest
from ddimctl.jobs.sample.plan import Shape
from ddimctl.jobs.sample.prompts import Prompted
from ddimctl.metrics.measure import Measure, scores
from ddimctl.runtime.distributed import Ranks

CELLS: Final = "cells"
REFERENCE: Final = "reference.safetensors"
SCORE: Final = "score.json"

Scores = dict[str, float]


@dataclass(frozen=True)
class Work:
    """What all cells share.

    out: the evaluation's folder.  text: the prompts of all seeds.  shape: (C, H, W) of x_T.  how: what is done to the images of both sides.
    check: raises where a signal, or another process, has ended the evaluation.
    """

    request: EvaluateRequest
    out: Path
    model: Model
    text: Prompted
    shape: Shape
    how: Preparation
    measure: Measure
    ranks: Ranks
    check: Callable[[], None]


def open_target(work: Work, report: Report) -> Measured:
    """What the samples are compared with: a reference file, or the data.

    The data's is kept, and used again by a resumed run. The first process measures, the others
    read what it kept. Raises as measure_images and open_reference do.
    """
    kept = work.out / REFERENCE
    data, reference = work.request.scoring.data, work.request.scoring.reference
    if work.ranks.first and data is not None:
        _keep_reference(data, kept, work, report)
    work.ranks.barrier(work.check)
    found = open_reference(reference or kept, work.measure)
    check_preparation(reference or kept, found, work.how)
    few_images(found.facts["pictures"], "the data", report)
    return found


def score_cells(
    cells: Sequence[Cell], target: Measured, work: Work, report: Report
) -> list[Scores]:
    """The scores of cells that are sampled, as many as there are processes or fewer: one each.

    Each process returns all. What was scored before is not scored again.
    """
    ranks, mine = work.ranks, Scores()
    identities = ranks.share(
        [_identity(cell, target, work) for cell in cells] if ranks.first else []
    )
    if ranks.rank < len(cells):
        mine = _score(cells[ranks.rank], identities[ranks.rank], target, work, report)
    return ranks.share(ranks.gather(mine, work.check))[: len(cells)]


def tagged(report: Report, cell: str, check: Callable[[], None] = lambda: None) -> Report:
    """A report whose progress names the cell, with a check after each event."""

    def tagged_report(event: Event) -> None:
        if isinstance(event, Progress) and cell:
            event = replace(event, facts={"cell": cell, **event.facts})
        report(event)
        check()

    return tagged_report


def _keep_reference(data: Path, kept: Path, work: Work, report: Report) -> None:
    earlier = None
    if work.request.output.resume and kept.exists():
        with suppress(DataError, RequestError):  # of other metrics, or damaged: measured again
            earlier = open_reference(kept, work.measure)
    checked = tagged(report, "", work.check)
    found = measure_images(
        data, work.how, work.measure, work.model.device, checked, earlier=earlier
    )
    if found is not earlier:
        save_reference(kept, found.summary, found.facts)


def _identity(cell: Cell, target: Measured, work: Work) -> str:
    """What a score is of: the images and what they are compared with."""
    path = work.out / CELLS / cell.name / MANIFEST
    manifest = load_manifest(path)
    if manifest is None:
        raise DataError(f"{path} was changed while its images were scored.")
    return hash_json([manifest["images"], target.facts, asdict(work.how)])


def _score(cell: Cell, identity: str, target: Measured, work: Work, report: Report) -> Scores:
    folder = work.out / CELLS / cell.name
    earlier = _read_score(folder / SCORE, identity)
    if earlier is not None:
        return earlier
    count = len(cell.seeds)
    named = tagged(report, cell.name, work.check)
    found = measure_samples(
        folder / "images", work.how, work.measure, work.model.device, count, named
    )
    score = scores(work.measure, found, target.summary)
    write_json(folder / SCORE, {"identity": identity, "scores": score})
    return score


def _read_score(path: Path, identity: str) -> Scores | None:
    try:
        found = read_json(path)
        return dict(found["scores"]) if found["identity"] == identity else None
    except (Refused, OSError, ValueError, LookupError, TypeError):
        return None
