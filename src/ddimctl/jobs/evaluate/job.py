"""Quality measured: samples of a checkpoint at several eta and S, scored against a data set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import Stopped
from ddimctl.files.own_output import check_output
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.evaluate.cells import Cell, make_cells, table_rows
from ddimctl.jobs.evaluate.paper_checks import check_size, differences
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Row
from ddimctl.jobs.evaluate.reference import Preparation, few_images, make_measure
from ddimctl.jobs.evaluate.report import FILES, SHOWN, ReportFolder, combine, write_report
from ddimctl.jobs.evaluate.request import EvaluateRequest, check_target
from ddimctl.jobs.evaluate.sample_and_score import (
    CELLS,
    Scores,
    Work,
    open_target,
    sample_cell,
    score_cells,
)
from ddimctl.jobs.events import Notice, Progress, Report, ignore, notify
from ddimctl.jobs.sample.auto_timesteps import find_timesteps
from ddimctl.jobs.sample.folder import go_on, run_folder
from ddimctl.jobs.sample.plan import SamplerSettings, Shape, image_labels, image_shape
from ddimctl.metrics.measure import Measure
from ddimctl.runtime.device import make_deterministic, memory_errors, resolve_precision
from ddimctl.runtime.ranks import Ranks, joined
from ddimctl.runtime.signals import StopRequest, stop_on_signals


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
    check_target(request.scoring)
    output = request.output
    with (
        joined() as ranks,
        run_folder(
            output.out, "evaluate", resume=output.resume, dry_run=output.dry_run, ranks=ranks
        ) as out,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _evaluate(request, out, ranks, report)


def _evaluate(
    request: EvaluateRequest, out: Path | None, ranks: Ranks, report: Report
) -> EvaluateResult:
    output, preset = request.output, request.table.preset
    if ranks.first:
        _check_room(request, out)
    device = ranks.device(request.device.device)
    if request.device.deterministic:
        make_deterministic()
    precision = resolve_precision(request.device.precision or "auto", device)
    checkpoint = open_checkpoint(
        request.checkpoint,
        {},
        device,
        precision,
        size=request.images.size,
        compiled=request.device.compile,
    )
    notify(report, checkpoint.provenance.notes)
    shape = image_shape(request.images.size, checkpoint)
    image_labels(
        request.images.classes, {}, checkpoint, request.seeds[:1]
    )  # there are such classes

    def find(sampler: SamplerSettings) -> SamplerSettings:
        return find_timesteps(
            sampler,
            checkpoint,
            shape,
            device,
            report,
            batch_size=request.device.batch_size,
            dry_run=output.dry_run,
            ranks=ranks.part(f"S = {sampler.steps}"),
        )

    cells = make_cells(request, checkpoint, find)
    if preset:
        check_size(preset, shape[1:])
    settings = _settings(request, checkpoint, cells, precision, shape)
    if preset and settings["evaluations"] != settings["steps"]:
        report(
            Notice(
                f"the paper's timesteps for S = {_listed(settings['steps'])} are "
                f"{_listed(settings['evaluations'])}: repeated ones are left out."
            )
        )
    few_images(request.count, "each cell", report)
    if output.dry_run or out is None:
        return EvaluateResult(None, (), settings)

    how = Preparation(
        shape[1:],
        checkpoint.sample_shape[0],
        request.scoring.background or checkpoint.background or (0, 0, 0),
    )
    measure = _shared_measure(request, device, ranks)
    with stop_on_signals(once=ranks.count == 1) as stop:
        check = _check_of(stop, out, ranks)
        work = Work(request, out, checkpoint, shape, device, precision, how, measure, ranks, check)
        rows, settings = _fill(request, cells, settings, work, report)
    return EvaluateResult(out, tuple(rows), settings)


def _fill(
    request: EvaluateRequest,
    cells: Sequence[Cell],
    settings: dict[str, Any],
    work: Work,
    report: Report,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The table, cell by cell, as many at a time as there are processes to score them."""
    preset, seeds = request.table.preset, request.seeds
    target = open_target(work, report)
    settings = settings | {"reference": target.facts}
    unlike: list[str] = []
    if preset:
        unlike = differences(preset, work.checkpoint, request, target.facts["pictures"])
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


def _check_room(request: EvaluateRequest, out: Path | None) -> None:
    if out is not None:
        output = request.output
        held = any((out / name).exists() for name in (*FILES, CELLS))
        check_output(
            out,
            "an evaluation" if held else None,
            resume=output.resume,
            force=output.force,
            data=request.scoring.data,
        )


def _settings(
    request: EvaluateRequest,
    checkpoint: Checkpoint,
    cells: Sequence[Cell],
    precision: str,
    shape: Shape,
) -> dict[str, Any]:
    """What the cells share, as plain values."""
    columns = {cell.steps: cell for cell in cells}
    first = cells[0].sampler
    return {
        "checkpoint": checkpoint.provenance.record(),
        "preset": request.table.preset,
        "steps": list(request.steps),
        "evaluations": [cell.evaluations for cell in columns.values()],
        "rows": list(table_rows(request)),
        "tau": "the paper's" if request.table.preset else first.kind,
        "timesteps": {
            f"S = {steps}": list(cell.sampler.timesteps)
            for steps, cell in columns.items()
            if cell.sampler.timesteps is not None
        },
        "solver": first.solver,
        "size": list(shape[1:]),
        "clip": first.clip,
        "guidance": first.guidance,
        "precision": precision,
        "pictures": request.count,
        "first_seed": request.seeds[0],
        "repeats": request.table.repeats,
        "metrics": list(request.metrics),
        "evaluations_in_all": sum(cell.evaluations * request.count for cell in cells),
    }


def _shared_measure(request: EvaluateRequest, device: torch.device, ranks: Ranks) -> Measure:
    """The metrics; the first process has fetched their network before the others look for it."""
    measure = (
        make_measure(request.metrics, request.scoring.inception, device) if ranks.first else None
    )
    ranks.share("metrics", None)
    return measure or make_measure(request.metrics, request.scoring.inception, device)


def _check_of(stop: StopRequest, out: Path, ranks: Ranks) -> Callable[[], None]:
    """Raises where the evaluation is to end; while a cell is sampled, decode looks to that."""

    def check() -> None:
        if stop:
            raise Stopped(f"{stop.name}: stopped while scoring.", go_on(out))
        ranks.check()

    return check


def _row(
    cell: Cell, images: int, found: Sequence[Scores], preset: str | None, judged: bool
) -> dict[str, Any]:
    """The table's row of a cell, from the scores of its repeats."""
    is_eta = isinstance(cell.row, float)
    row: dict[str, Any] = {
        "eta": cell.row if is_eta else None,
        "variance": "eta" if is_eta else cell.row,
        "steps": cell.steps,
        "evaluations": cell.evaluations,
        "pictures": images,
        "repeats": len(found),
    }
    paper = PRESETS[preset].fid.get(cell.row, {}).get(cell.steps) if preset else None
    return row | combine(found, paper, judged)


def _shown(
    out: Path, cells: Sequence[Cell], seeds: Sequence[int]
) -> Iterator[tuple[Row, int, list[Path]]]:
    """(row, S, files): the images of the first seeds in each cell."""
    names = [f"{seed:06d}" for seed in seeds[:SHOWN]]
    for cell in cells:
        if cell.repeat == 0:
            images = out / CELLS / cell.name / "images"
            files = [images / f"{name}.png" for name in names]
            yield cell.row, cell.steps, files


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
