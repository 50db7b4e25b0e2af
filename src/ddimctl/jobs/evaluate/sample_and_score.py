"""What an evaluation does for one cell after the other: sample it, score it; by all its processes."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, NumericsError, RequestError
from ddimctl.files.atomic import clean_temporaries, make_folder, write_json
from ddimctl.files.dataset.cache import hash_json
from ddimctl.files.dataset.reference_file import save_reference
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import read_json
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
from ddimctl.jobs.sample.batch_size import default_batch_size
from ddimctl.jobs.sample.folder import RunFolder
from ddimctl.jobs.sample.job import LAYOUT
from ddimctl.jobs.sample.manifest import NAME as MANIFEST
from ddimctl.jobs.sample.manifest import load_manifest, read_manifest
from ddimctl.jobs.sample.plan import Shape, image_labels, make_plan
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.jobs.sample.sampler import decode
from ddimctl.metrics.measure import Measure, scores
from ddimctl.runtime.ranks import Ranks

CELLS: Final = "cells"
REFERENCE: Final = "reference.safetensors"
SCORE: Final = "score.json"

Scores = dict[str, float]


@dataclass(frozen=True)
class Work:
    """What all cells share.

    request: what all were asked for.  out: the evaluation's folder.  shape: (C, H, W).  how: what is done to the images of both sides.
    check: raises where a signal, or another process, has ended the evaluation.
    """

    request: EvaluateRequest
    out: Path
    checkpoint: Checkpoint
    shape: Shape
    device: torch.device
    precision: str
    how: Preparation
    measure: Measure
    ranks: Ranks
    check: Callable[[], None]


def open_target(work: Work, report: Report) -> Measured:
    """What the samples are compared with: a reference file, or the data.

    The data's is kept, and used again by a resumed run. The first process measures, the others
    read what it kept. Raises as measure_images and open_reference do.
    """
    ranks, kept = work.ranks.part("target"), work.out / REFERENCE
    data, reference = work.request.scoring.data, work.request.scoring.reference
    if not ranks.first:
        ranks.wait("kept", 1, work.check)
    elif data is not None:
        _keep_reference(data, kept, work, report)
    ranks.add("kept", 1)
    found = open_reference(reference or kept, work.measure)
    check_preparation(reference or kept, found, work.how)
    few_images(found.facts["pictures"], "the data", report)
    return found


def sample_cell(cell: Cell, work: Work, report: Report) -> None:
    """Make the cell's images, or what is missing of them, as `ddimctl sample` would.

    Raises as decode does; NumericsError names the cell, too.
    """
    folder, ranks = work.out / CELLS / cell.name, work.ranks.part(cell.name)
    output, device, recorded = work.request.output, work.request.device, None
    if ranks.first:
        make_folder(folder)
        clean_temporaries(folder)
        recorded = read_manifest(folder, LAYOUT, resume=output.resume, force=output.force)
    batch_size = recorded["settings"]["batch_size"] if recorded else device.batch_size
    plan = make_plan(
        cell.sampler,
        shape=work.shape,
        seeds=cell.seeds,
        labels=image_labels(work.request.images.classes, {}, work.checkpoint, cell.seeds),
        precision=work.precision,
        batch_size=batch_size
        or default_batch_size(work.checkpoint, work.shape, work.device, cell.sampler.guidance),
    )
    plan = plan.in_batches(ranks.share("batch size", plan.batch_size))
    outputs = OutputSettings(
        save=("grid", "images"), deterministic=device.deterministic, compile=device.compile
    )
    run = RunFolder(folder, LAYOUT, outputs, recorded, output.force, named=work.out)
    try:
        decode(run, plan, work.checkpoint, work.device, tagged(report, cell.name), ranks)
    except NumericsError as error:
        raise NumericsError(f"{cell.name}: {error.cause}", error.remedy) from error


def score_cells(
    cells: Sequence[Cell], target: Measured, work: Work, report: Report
) -> list[Scores]:
    """The scores of cells that are sampled, as many as there are processes or fewer: one each.

    Each process returns all. What was scored before is not scored again.
    """
    ranks = work.ranks.part(f"scores from {cells[0].name}")
    identities = [_identity(cell, target, work) for cell in cells] if ranks.first else []
    identities = ranks.share("identities", identities)
    mine: Scores = {}
    if ranks.rank < len(cells):
        mine = _score(cells[ranks.rank], identities[ranks.rank], target, work, report)
        ranks.add("scored", 1)
    ranks.wait("scored", len(cells), work.check)
    return [ranks.share(cell.name, mine, rank) for rank, cell in enumerate(cells)]


def tagged(report: Report, cell: str, check: Callable[[], None] = lambda: None) -> Report:
    """A report whose progress names the cell, with a check after each event."""

    def tagged_report(event: Event) -> None:
        if isinstance(event, Progress) and cell:
            event = replace(event, facts={"cell": cell, **event.facts})
        report(event)
        check()

    return tagged_report


def _keep_reference(data: Path, kept: Path, work: Work, report: Report) -> None:
    known = None
    if work.request.output.resume and kept.exists():
        try:
            known = open_reference(kept, work.measure)
        except (DataError, RequestError):  # of other metrics, or damaged: measured again
            known = None
    checked = tagged(report, "", work.check)
    found = measure_images(data, work.how, work.measure, work.device, checked, known=known)
    if found is not known:
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
    known = _read_score(folder / SCORE, identity)
    if known is not None:
        return known
    count = len(cell.seeds)
    named = tagged(report, cell.name, work.check)
    found = measure_samples(folder / "images", work.how, work.measure, work.device, count, named)
    score = scores(work.measure, found, target.summary)
    write_json(folder / SCORE, {"identity": identity, "scores": score})
    return score


def _read_score(path: Path, identity: str) -> Scores | None:
    try:
        known = read_json(path)
        return dict(known["scores"]) if known["identity"] == identity else None
    except (Refused, OSError, ValueError, LookupError, TypeError):
        return None
