"""What an evaluation does for one cell after the other: sample it, score it; by all its processes."""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, NumericsError, RequestError
from ddimctl.files.atomic import clean_temporaries, make_folder, write_json
from ddimctl.files.dataset.cache import hash_json
from ddimctl.files.dataset.reference_file import save_reference
from ddimctl.jobs.evaluate.cells import Cell
from ddimctl.jobs.evaluate.reference import (
    Measured,
    Preparation,
    check_preparation,
    few_pictures,
    measure_pictures,
    measure_samples,
    open_reference,
)
from ddimctl.jobs.events import Event, Progress, retold
from ddimctl.jobs.sample.auto_timesteps import with_timesteps
from ddimctl.jobs.sample.job import LAYOUT
from ddimctl.jobs.sample.manifest import NAME as MANIFEST
from ddimctl.jobs.sample.manifest import read_manifest
from ddimctl.jobs.sample.plan import make_plan
from ddimctl.jobs.sample.sampler import decode
from ddimctl.metrics.measure import Measure, scores
from ddimctl.runtime.ranks import Ranks

CELLS: Final = "cells"
REFERENCE: Final = "reference.safetensors"
SCORE: Final = "score.json"

Scores = dict[str, float]
R = TypeVar("R")


@dataclass(frozen=True)
class Work:
    """What all cells share.

    out: the evaluation's folder.  how: what is done to the pictures of both sides.
    check: raises where a signal, or another process, has ended the evaluation.
    """

    out: Path
    checkpoint: Checkpoint
    device: torch.device
    precision: str
    how: Preparation
    measure: Measure
    ranks: Ranks
    check: Callable[[], None]


def open_target(
    data: Path | None, reference: Path | None, resume: bool, work: Work
) -> Generator[Event, None, Measured]:
    """What the samples are compared with: a reference file, or the data.

    The data's is kept, and used again by a resumed run. The first process measures, the others
    read what it kept. Raises as measure_pictures and open_reference do.
    """
    ranks, kept = work.ranks.part("target"), work.out / REFERENCE
    if not ranks.first:
        ranks.wait("kept", 1, work.check)
    elif data is not None:
        yield from _keep_reference(data, kept, resume, work)
    ranks.add("kept", 1)
    found = open_reference(reference or kept, work.measure)
    check_preparation(reference or kept, found, work.how)
    yield from few_pictures(found.facts["pictures"], "the data")
    return found


def sample_cell(cell: Cell, work: Work) -> Generator[Event, None, None]:
    """Make the cell's pictures, or what is missing of them, as `ddimctl sample` would.

    Raises as decode does; NumericsError names the cell, too.
    """
    folder, ranks = work.out / CELLS / cell.name, work.ranks.part(cell.name)
    request, recorded = replace(cell.request, out=folder), None
    if ranks.first:
        make_folder(folder)
        clean_temporaries(folder)
        recorded = read_manifest(request, LAYOUT)
    if recorded:
        request = replace(request, batch_size=recorded["settings"]["batch_size"])
    plan = make_plan(request, work.checkpoint, None, work.device, work.precision)
    plan = plan.in_batches(ranks.share("batch size", plan.batch_size))
    if plan.searched and cell.timesteps is not None:
        plan = with_timesteps(plan, cell.timesteps)
    walk = decode(
        request, plan, work.checkpoint, work.device, LAYOUT, recorded, ranks, named=work.out
    )
    try:
        yield from followed(walk, cell.name)
    except NumericsError as error:
        raise NumericsError(f"{cell.name}: {error.cause}", error.remedy) from error


def score_cells(
    cells: Sequence[Cell], target: Measured, work: Work
) -> Generator[Event, None, list[Scores]]:
    """The scores of cells that are sampled, as many as there are processes or fewer: one each.

    Each process returns all. What was scored before is not scored again.
    """
    ranks = work.ranks.part(f"scores from {cells[0].name}")
    identities = [_identity(cell, target, work) for cell in cells] if ranks.first else []
    identities = ranks.share("identities", identities)
    mine: Scores = {}
    if ranks.rank < len(cells):
        mine = yield from _score(cells[ranks.rank], identities[ranks.rank], target, work)
        ranks.add("scored", 1)
    ranks.wait("scored", len(cells), work.check)
    return [ranks.share(cell.name, mine, rank) for rank, cell in enumerate(cells)]


def followed(
    job: Generator[Event, None, R], cell: str = "", check: Callable[[], None] = lambda: None
) -> Generator[Event, None, R]:
    """The job, with a check after each event; its progress says of which cell it is."""

    def tell(event: Event) -> Event:
        if isinstance(event, Progress) and cell:
            return replace(event, facts={"cell": cell, **event.facts})
        return event

    return (yield from retold(job, tell, check))


def _keep_reference(
    data: Path, kept: Path, resume: bool, work: Work
) -> Generator[Event, None, None]:
    known = None
    if resume and kept.exists():
        try:
            known = open_reference(kept, work.measure)
        except (DataError, RequestError):  # of other metrics, or damaged: measured again
            known = None
    job = measure_pictures(data, work.how, work.measure, work.device, known=known)
    found = yield from followed(job, check=work.check)
    if found is not known:
        save_reference(kept, found.summary, found.facts)


def _identity(cell: Cell, target: Measured, work: Work) -> str:
    """What a score is of: the pictures and what they are compared with."""
    manifest = json.loads((work.out / CELLS / cell.name / MANIFEST).read_text("utf-8"))
    return hash_json([manifest["images"], target.facts, asdict(work.how)])


def _score(
    cell: Cell, identity: str, target: Measured, work: Work
) -> Generator[Event, None, Scores]:
    folder = work.out / CELLS / cell.name
    known = _read_score(folder / SCORE, identity)
    if known is not None:
        return known
    count = len(cell.request.seeds)
    job = measure_samples(folder / "images", work.how, work.measure, work.device, count)
    found = yield from followed(job, cell.name, work.check)
    score = scores(work.measure, found, target.summary)
    write_json(folder / SCORE, {"identity": identity, "scores": score})
    return score


def _read_score(path: Path, identity: str) -> Scores | None:
    try:
        known = json.loads(path.read_text("utf-8"))
        return dict(known["scores"]) if known["identity"] == identity else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
