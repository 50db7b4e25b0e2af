"""Quality measured: samples of a checkpoint at several eta and S, scored against a data set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ddimctl.errors import NumericsError, Stopped
from ddimctl.files.atomic import clean_temporaries, make_folder
from ddimctl.files.own_output import check_output
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import Model, open_model
from ddimctl.jobs.evaluate.cells import Cell, check_size, differences, make_cells, table_rows
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Row
from ddimctl.jobs.evaluate.reference import Preparation, few_images, make_measure
from ddimctl.jobs.evaluate.report import FILES, SHOWN, ReportFolder, combine, write_report
from ddimctl.jobs.evaluate.request import EvaluateRequest, check_target
from ddimctl.jobs.evaluate.score_cells import (
    CELLS,
    Scores,
    Work,
    open_target,
    score_cells,
    tagged,
)
from ddimctl.jobs.events import Notice, Progress, Report, ignore
from ddimctl.jobs.requests import consecutive_seeds
from ddimctl.jobs.sample.auto_timesteps import Search, find_timesteps
from ddimctl.jobs.sample.batches import default_batch_size
from ddimctl.jobs.sample.folder import RunFolder, go_on, run_folder
from ddimctl.jobs.sample.manifest import read_manifest
from ddimctl.jobs.sample.outputs import SAMPLES
from ddimctl.jobs.sample.plan import (
    SamplerSettings,
    image_labels,
    image_shape,
    make_plan,
    pixels_per_latent,
)
from ddimctl.jobs.sample.prompts import Prompted, prompted
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.jobs.sample.sampler import decode
from ddimctl.metrics.measure import Measure
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.distributed import Ranks, joined
from ddimctl.runtime.signals import StopRequest, stop_on_signals


@dataclass(frozen=True)
class EvaluateResult:
    """out: the folder; with --dry-run None. rows: of the table, plain values by column."""

    out: Path | None
    rows: tuple[JsonObject, ...]
    settings: JsonObject


def evaluate(request: EvaluateRequest, report: Report = ignore) -> EvaluateResult:
    """Sample every cell, score it, and write the report, which grows with the finished cells.

    Raises RequestError (before anything is sampled, where a cell cannot be), DataError, and as
    sample does; Stopped when a signal ended it, which --resume continues. Under torchrun the
    processes sample each cell together and score a cell each; each returns the result.
    """
    check_target(request.scoring)
    output = request.output
    with (
        joined() as ranks,
        run_folder(output, "evaluate", ranks) as out,
        memory_errors("Use --precision bf16 or another --device."),
    ):
        return _evaluate(request, out, ranks, report)


def _evaluate(
    request: EvaluateRequest, out: Path | None, ranks: Ranks, report: Report
) -> EvaluateResult:
    output, preset, images = request.output, request.table.preset, request.images
    if ranks.first:
        _check_room(request, out)
    model = open_model(request.checkpoint, request.device, report, ranks=ranks, size=images.size)
    shape = image_shape(images.size, model.checkpoint)
    size = images.size or model.checkpoint.picture_shape[1:]
    every_seed = consecutive_seeds(images.seed, request.count * request.table.repeats)
    text = prompted(model.checkpoint, request.prompt, {}, every_seed, size, report)
    model = replace(model, checkpoint=text.checkpoint)
    image_labels(images.classes, {}, model.checkpoint, request.seeds[:1])  # raises for unknown ones

    def find(sampler: SamplerSettings) -> SamplerSettings:
        search = Search(request.device.batch_size, output.dry_run, None, ranks)
        return find_timesteps(sampler, model, shape, search, report)

    cells = make_cells(request, model.checkpoint, find)
    if preset:
        check_size(preset, size)
    settings = _settings(request, model, cells, text, size)
    if preset and settings["evaluations"] != settings["steps"]:
        report(
            Notice(
                f"the paper's timesteps for S = {_listed(settings['steps'])} number "
                f"{_listed(settings['evaluations'])}: repeated timesteps are left out."
            )
        )
    few_images(request.count, "each cell", report)
    if output.dry_run or out is None:
        return EvaluateResult(None, (), settings)
    background = request.scoring.background or model.checkpoint.background or (0, 0, 0)
    how = Preparation(size, model.checkpoint.picture_shape[0], background)
    measure = _shared_measure(request, model.device, ranks)
    with stop_on_signals(once=ranks.count == 1) as stop:
        check = _check_of(stop, out, ranks)
        work = Work(request, out, model, text, shape, how, measure, ranks, check)
        rows, settings = _fill(cells, settings, work, report)
    return EvaluateResult(out, tuple(rows), settings)


def _fill(
    cells: Sequence[Cell], settings: JsonObject, work: Work, report: Report
) -> tuple[list[JsonObject], JsonObject]:
    """The table, cell by cell, as many at a time as there are processes to score them."""
    request, preset = work.request, work.request.table.preset
    target = open_target(work, report)
    settings = settings | {"reference": target.facts}
    unlike: list[str] = []
    if preset:
        unlike = differences(preset, work.model.checkpoint, request, target.facts["pictures"])
        settings["unlike_the_paper"] = unlike
    if unlike:
        report(
            Notice(
                f"this is not the paper's experiment: {'; '.join(unlike)}. The paper's numbers are "
                "shown for comparison only."
            )
        )
    found: dict[tuple[Row, int], list[Scores]] = {}
    rows: list[JsonObject] = []
    for start in range(0, len(cells), work.ranks.count):
        batch = cells[start : start + work.ranks.count]
        for number, cell in enumerate(batch, start):
            report(Progress("cells", number, len(cells), "cells"))
            work.check()
            _sample_cell(cell, work, report)
        for cell, score in zip(batch, score_cells(batch, target, work, report), strict=True):
            found.setdefault(cell.key, []).append(score)
        rows = [
            _row(cell, request, found[cell.key], judged=not unlike)
            for cell in cells
            if cell.repeat == 0 and cell.key in found
        ]
        if work.ranks.first:
            shown = _shown(work.out, cells[: start + len(batch)], request.seeds)
            write_report(
                ReportFolder(work.out, settings, preset, request.table.plot_format), rows, shown
            )
    report(Progress("cells", len(cells), len(cells), "cells"))
    return rows, settings


def _sample_cell(cell: Cell, work: Work, report: Report) -> None:
    """Make the cell's images, or what is missing of them, as `ddimctl sample` would.

    Raises as decode does; NumericsError names the cell, too.
    """
    folder, ranks = work.out / CELLS / cell.name, work.ranks
    output, device, recorded = work.request.output, work.request.device, None
    if ranks.first:
        make_folder(folder)
        clean_temporaries(folder)
        recorded = read_manifest(folder, SAMPLES, output)
    model, shape, sampler = work.model, work.shape, cell.sampler
    batch_size = recorded["settings"]["batch_size"] if recorded else device.batch_size
    labels = image_labels(work.request.images.classes, {}, model.checkpoint, cell.seeds)
    prompts = None
    if work.text.prompts is not None and work.text.labels is not None:
        places = [seed - work.request.seeds[0] for seed in cell.seeds]
        labels = tuple(work.text.labels[i] for i in places)
        prompts = tuple(work.text.prompts[i] for i in places)
    plan = make_plan(
        sampler,
        shape,
        cell.seeds,
        labels,
        precision=model.precision,
        batch_size=batch_size
        or default_batch_size(model.checkpoint, shape, model.device, sampler.guidance),
        factor=pixels_per_latent(model.checkpoint),
        prompts=prompts,
        negative=work.text.negative,
    )
    plan = plan.in_batches(ranks.share(plan.batch_size))
    outputs = OutputSettings(
        save=("grid", "images"), deterministic=device.deterministic, compile=device.compile
    )
    run = RunFolder(folder, SAMPLES, outputs, recorded, output.force, named=work.out)
    try:
        decode(run, plan, model.checkpoint, model.device, tagged(report, cell.name), ranks)
    except NumericsError as error:
        raise NumericsError(f"{cell.name}: {error.cause}", error.remedy) from error


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
    model: Model,
    cells: Sequence[Cell],
    text: Prompted,
    size: tuple[int, int],
) -> JsonObject:
    """What the cells share, as plain values."""
    columns = {cell.steps: cell for cell in cells}
    first = cells[0].sampler
    return {
        "checkpoint": model.checkpoint.provenance.record(),
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
        "size": list(size),
        "clip": first.clip,
        "guidance": first.guidance,
        **({} if text.prompts is None else {"prompts": list(dict.fromkeys(text.prompts))}),
        **({} if text.negative is None else {"negative": text.negative}),
        "precision": model.precision,
        "pictures": request.count,
        "first_seed": request.seeds[0],
        "repeats": request.table.repeats,
        "metrics": list(request.metrics),
        "evaluations_in_all": sum(cell.evaluations * request.count for cell in cells),
    }


def _shared_measure(request: EvaluateRequest, device: torch.device, ranks: Ranks) -> Measure:
    """The metrics; the first process has downloaded their network before the others load it."""
    measure = (
        make_measure(request.metrics, request.scoring.inception, device) if ranks.first else None
    )
    ranks.barrier()
    return measure or make_measure(request.metrics, request.scoring.inception, device)


def _check_of(stop: StopRequest, out: Path, ranks: Ranks) -> Callable[[], None]:
    """Raises where the evaluation is to end; while a cell is sampled, decode looks to that."""

    def check() -> None:
        if stop:
            raise Stopped(f"{stop.name}: stopped while scoring.", go_on(out))
        ranks.check()

    return check


def _row(
    cell: Cell, request: EvaluateRequest, found: Sequence[Scores], *, judged: bool
) -> JsonObject:
    """The table's row of a cell, from the scores of its repeats."""
    is_eta, preset = isinstance(cell.row, float), request.table.preset
    row: JsonObject = {
        "eta": cell.row if is_eta else None,
        "variance": "eta" if is_eta else cell.row,
        "steps": cell.steps,
        "evaluations": cell.evaluations,
        "pictures": request.count,
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
