"""Quality measured: samples of a checkpoint at several eta and S, scored against a data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError, Stopped
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.evaluate.cells import Cell, make_cells, resolve_cells
from ddimctl.jobs.evaluate.paper_checks import check_size, differences
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Row
from ddimctl.jobs.evaluate.reference import Preparation, few_pictures, make_measure
from ddimctl.jobs.evaluate.report import FILES, SHOWN, ReportFolder, combine, write_report
from ddimctl.jobs.evaluate.sample_and_score import (
    CELLS,
    Scores,
    Work,
    open_target,
    sample_cell,
    score_cells,
)
from ddimctl.jobs.events import Notice, Progress, Report, ignore, notify
from ddimctl.jobs.sample.folder import go_on, run_folder
from ddimctl.jobs.sample.plan import SampleRequest
from ddimctl.metrics.measure import Measure
from ddimctl.runtime.device import make_deterministic, memory_errors, resolve_precision
from ddimctl.runtime.ranks import Ranks, joined
from ddimctl.runtime.signals import StopRequest, stop_on_signals


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate, at which settings, and against what.

    sampling: the checkpoint and what all cells share; its seeds are the first repeat's, its folder
    the whole command's.  rows: etas, and "large" or "learned".  data or reference: a folder or
    zip, or a file that make_reference wrote.  repeats: as many runs of a cell, of further seeds.
    preset: of PRESETS, for its timesteps and the paper's numbers.
    background: under transparent pixels; None is the checkpoint's, else black.
    """

    sampling: SampleRequest = field(default_factory=SampleRequest)
    data: Path | None = None
    reference: Path | None = None
    steps: tuple[int, ...] = (10, 20, 50, 100)
    rows: tuple[Row, ...] = (0.0, 0.2, 0.5, 1.0)
    metrics: tuple[str, ...] = ("swd",)
    inception: Path | None = None
    background: tuple[int, ...] | None = None
    repeats: int = 1
    preset: str | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """out: the folder; with --dry-run None. rows: of the table, plain values by column."""

    out: Path | None
    rows: tuple[dict[str, Any], ...]
    settings: dict[str, Any]


def evaluate(request: EvaluateRequest, report: Report = ignore) -> EvaluateResult:
    """Sample every cell, score it, and write the report, which grows with the finished cells.

    Raises RequestError (before anything is sampled, where a cell cannot be), DataError, and as
    sample does; Stopped when a signal ended it, which --resume goes on with. Under torchrun the
    processes sample each cell together and score a cell each; each returns the result.
    """
    if (request.data is None) == (request.reference is None):
        raise RequestError(
            "there must be one thing to compare with.", "Name --data or --reference."
        )
    with (
        joined() as ranks,
        run_folder(request.sampling, "evaluate", ranks) as sampling,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _evaluate(replace(request, sampling=sampling), ranks, report)


def _evaluate(request: EvaluateRequest, ranks: Ranks, report: Report) -> EvaluateResult:
    sampling, preset = request.sampling, request.preset
    if ranks.first:
        _check_room(sampling)
    device = ranks.device(sampling.device)
    if sampling.deterministic:
        make_deterministic()
    precision = resolve_precision(sampling.precision or "auto", device)
    checkpoint = open_checkpoint(sampling, {}, device, precision)
    notify(report, checkpoint.provenance.notes)
    cells = make_cells(
        sampling,
        request.rows,
        request.steps,
        request.repeats,
        preset,
        checkpoint.schedule.num_train_timesteps,
    )
    cells, first = resolve_cells(cells, checkpoint, device, precision, ranks, report)
    if preset:
        check_size(preset, first["size"])
    settings = _settings(request, checkpoint, cells, first)
    if preset and settings["evaluations"] != settings["steps"]:
        report(
            Notice(
                f"the paper's timesteps for S = {_listed(settings['steps'])} are "
                f"{_listed(settings['evaluations'])}: repeated ones are left out."
            )
        )
    few_pictures(len(sampling.seeds), "each cell", report)
    if sampling.dry_run or sampling.out is None:
        return EvaluateResult(None, (), settings)

    how = Preparation(
        (first["size"][0], first["size"][1]),
        checkpoint.sample_shape[0],
        request.background or checkpoint.background or (0, 0, 0),
    )
    measure = _shared_measure(request, device, ranks)
    with stop_on_signals(once=ranks.count == 1) as stop:
        check = _check_of(stop, sampling.out, ranks)
        work = Work(sampling.out, checkpoint, device, precision, how, measure, ranks, check)
        rows, settings = _fill(request, cells, settings, work, report)
    return EvaluateResult(sampling.out, tuple(rows), settings)


def _fill(
    request: EvaluateRequest,
    cells: Sequence[Cell],
    settings: dict[str, Any],
    work: Work,
    report: Report,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The table, cell by cell, as many at a time as there are processes to score them."""
    preset, seeds = request.preset, request.sampling.seeds
    target = open_target(request.data, request.reference, request.sampling.resume, work, report)
    settings = settings | {"reference": target.facts}
    unlike: list[str] = []
    if preset:
        unlike = differences(preset, work.checkpoint, request.sampling, target.facts["pictures"])
        settings["unlike_the_paper"] = unlike
    if unlike:
        report(
            Notice(f"unlike the paper's: {'; '.join(unlike)}. Its numbers are shown, not judged.")
        )
    folder = ReportFolder(work.out, settings, preset)
    found: dict[tuple[Row, int], list[Scores]] = {}
    rows: list[dict[str, Any]] = []
    at_once = work.ranks.count
    for start in range(0, len(cells), at_once):
        batch = cells[start : start + at_once]
        for number, cell in enumerate(batch, start):
            report(Progress("cells", number, len(cells), "cells"))
            work.check()
            sample_cell(cell, work, report)
        scores = score_cells(batch, target, work, report)
        for cell, score in zip(batch, scores, strict=True):
            found.setdefault(cell.key, []).append(score)
        rows = [
            _row(cell, len(seeds), found[cell.key], preset, not unlike)
            for cell in cells
            if cell.repeat == 0 and cell.key in found
        ]
        if work.ranks.first:
            write_report(folder, rows, _shown(work.out, cells[: start + at_once], seeds))
    report(Progress("cells", len(cells), len(cells), "cells"))
    return rows, settings


def _check_room(sampling: SampleRequest) -> None:
    out = sampling.out
    taken = out is not None and any((out / name).exists() for name in (*FILES, CELLS))
    if taken and not (sampling.resume or sampling.force):
        raise RequestError(
            f"{out} holds an evaluation already.",
            "Go on with --resume, write over it with --force, or name another --out.",
        )


def _settings(
    request: EvaluateRequest,
    checkpoint: Checkpoint,
    cells: Sequence[Cell],
    first: Mapping[str, Any],
) -> dict[str, Any]:
    """What the cells share, as plain values. first: the settings of the first cell."""
    seeds = request.sampling.seeds
    columns = {cell.steps: cell for cell in cells}
    return {
        "checkpoint": checkpoint.provenance.record(),
        "preset": request.preset,
        "steps": list(request.steps),
        "evaluations": [cell.evaluations for cell in columns.values()],
        "rows": list(request.rows),
        "tau": "the paper's" if request.preset else first["tau"],
        "timesteps": {
            f"S = {steps}": list(cell.timesteps)
            for steps, cell in columns.items()
            if cell.timesteps is not None
        },
        **{name: first[name] for name in ("solver", "size", "clip", "guidance", "precision")},
        "pictures": len(seeds),
        "first_seed": seeds[0],
        "repeats": request.repeats,
        "metrics": list(request.metrics),
        "evaluations_in_all": sum(cell.evaluations * len(seeds) for cell in cells),
    }


def _shared_measure(request: EvaluateRequest, device: torch.device, ranks: Ranks) -> Measure:
    """The metrics; the first process has fetched their network before the others look for it."""
    measure = make_measure(request.metrics, request.inception, device) if ranks.first else None
    ranks.share("metrics", None)
    return measure or make_measure(request.metrics, request.inception, device)


def _check_of(stop: StopRequest, out: Path, ranks: Ranks) -> Callable[[], None]:
    """Raises where the evaluation is to end; while a cell is sampled, decode looks to that."""

    def check() -> None:
        if stop:
            raise Stopped(f"{stop.name}: stopped while scoring.", go_on(out))
        ranks.check()

    return check


def _row(
    cell: Cell, pictures: int, found: Sequence[Scores], preset: str | None, judged: bool
) -> dict[str, Any]:
    """The table's row of a cell, from the scores of its repeats."""
    is_eta = isinstance(cell.row, float)
    row: dict[str, Any] = {
        "eta": cell.row if is_eta else None,
        "variance": "eta" if is_eta else cell.row,
        "steps": cell.steps,
        "evaluations": cell.evaluations,
        "pictures": pictures,
        "repeats": len(found),
    }
    paper = PRESETS[preset].fid.get(cell.row, {}).get(cell.steps) if preset else None
    return row | combine(found, paper, judged)


def _shown(
    out: Path, cells: Sequence[Cell], seeds: Sequence[int]
) -> Iterator[tuple[Row, int, list[Path]]]:
    """(row, S, files): the pictures of the first seeds in each cell."""
    names = [f"{seed:06d}" for seed in seeds[:SHOWN]]
    for cell in cells:
        if cell.repeat == 0:
            images = out / CELLS / cell.name / "images"
            files = [images / f"{name}.{cell.request.format}" for name in names]
            yield cell.row, cell.steps, files


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
