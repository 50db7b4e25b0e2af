"""Quality measured: samples of a checkpoint at several eta and S, scored against a data set."""

import json
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import DataError, RequestError
from ddimctl.files.atomic import PREFIX, create_numbered_folder, make_folder, write_json
from ddimctl.files.dataset_cache import hash_json
from ddimctl.files.reference import save_reference
from ddimctl.jobs.evaluation_cells import Cell, make_cells
from ddimctl.jobs.evaluation_report import FILES, SHOWN, Report, combine, write_report
from ddimctl.jobs.events import Event, Notice, Progress
from ddimctl.jobs.measuring import (
    Measured,
    Preparation,
    check_preparation,
    few_pictures,
    make_measure,
    measure_pictures,
    open_reference,
)
from ddimctl.jobs.presets import PRESETS, Row
from ddimctl.jobs.recall import open_checkpoint
from ddimctl.jobs.sample import sample
from ddimctl.jobs.sampling_plan import SampleRequest, make_plan
from ddimctl.metrics.measure import Measure, scores
from ddimctl.runtime.device import resolve_device, resolve_precision
from ddimctl.runtime.ranks import refuse_several

CELLS: Final = "cells"
REFERENCE: Final = "reference.safetensors"
SCORE: Final = "score.json"
_PIXELS: Final = f"{PREFIX}pixels"


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


def evaluate(request: EvaluateRequest) -> Generator[Event, None, EvaluateResult]:
    """Sample every cell, score it, and write the report, which grows with each finished cell.

    Raises RequestError (before anything is sampled, where a cell cannot be), DataError, and as
    sample does; Stopped when a signal ended it, which --resume goes on with.
    """
    refuse_several("evaluate")
    sampling = request.sampling
    if (request.data is None) == (request.reference is None):
        raise RequestError(
            "there must be one thing to compare with.", "Name --data or --reference."
        )
    _check_room(sampling)
    device = resolve_device(sampling.device)
    precision = resolve_precision(sampling.precision or "auto", device)
    checkpoint = open_checkpoint(sampling, {}, device, precision)
    yield from map(Notice, checkpoint.provenance.notes)
    cells = make_cells(
        sampling,
        request.rows,
        request.steps,
        request.repeats,
        request.preset,
        checkpoint.schedule.num_train_timesteps,
    )
    settings = _settle(request, checkpoint, cells, device, precision)
    if settings["evaluations"] != settings["steps"]:
        yield Notice(
            f"the paper's timesteps for S = {_listed(settings['steps'])} are "
            f"{_listed(settings['evaluations'])}: repeated ones are left out."
        )
    yield from few_pictures(len(sampling.seeds), "each cell")
    if sampling.dry_run:
        return EvaluateResult(None, (), settings)

    how = Preparation(
        (settings["size"][0], settings["size"][1]),
        checkpoint.sample_shape[0],
        request.background or checkpoint.background or (0, 0, 0),
    )
    del checkpoint  # every cell opens its own
    measure = make_measure(request.metrics, request.inception, device)
    out = sampling.out or create_numbered_folder(Path("runs"), "evaluate")
    make_folder(out)
    target = yield from _target(request, how, measure, device, out)
    report = Report(out, settings | {"reference": target.facts}, request.preset)
    found: dict[tuple[Row, int], list[dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(cells):
        yield Progress("cells", number, len(cells), "cells")
        folder = out / CELLS / cell.name
        score = yield from _score(cell, folder, measure, target, how, device)
        found.setdefault(cell.key, []).append(score)
        rows = [
            _row(first, len(sampling.seeds), found[first.key], request.preset)
            for first in cells
            if first.repeat == 0 and first.key in found
        ]
        write_report(report, rows, _shown(out, cells[: number + 1], sampling.seeds))
    yield Progress("cells", len(cells), len(cells), "cells")
    return EvaluateResult(out, tuple(rows), report.settings)


def _check_room(sampling: SampleRequest) -> None:
    out = sampling.out
    if out is None:
        if sampling.resume:
            raise RequestError("--resume needs the folder to go on in.", "Name it with --out.")
        return
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file.", "Name a folder.")
    taken = out.exists() and any((out / name).exists() for name in (*FILES, CELLS))
    if taken and not (sampling.resume or sampling.force):
        raise RequestError(
            f"{out} holds an evaluation already.",
            "Go on with --resume, write over it with --force, or name another --out.",
        )


def _settle(
    request: EvaluateRequest,
    checkpoint: Checkpoint,
    cells: Sequence[Cell],
    device: torch.device,
    precision: str,
) -> dict[str, Any]:
    """What the cells share, as plain values. Raises RequestError where one of them cannot be."""
    plans = [make_plan(cell.request, checkpoint, None, device, precision) for cell in cells]
    height, width = plans[0].shape[1:]
    preset = PRESETS[request.preset] if request.preset else None
    if preset and (height, width) != (preset.side, preset.side):
        raise RequestError(
            f"--preset {request.preset} is of {preset.side}x{preset.side} pictures, the checkpoint "
            f"of {height}x{width}.",
            f"Use its own checkpoint: {preset.checkpoint}.",
        )
    seeds, tau = request.sampling.seeds, request.sampling.tau
    return {
        "checkpoint": checkpoint.provenance.record(),
        "preset": request.preset,
        "steps": list(request.steps),
        "evaluations": list({cell.steps: cell.evaluations for cell in cells}.values()),
        "rows": list(request.rows),
        "tau": "the paper's" if preset else (tau or "linspace"),
        "solver": plans[0].settings["solver"],
        "size": [height, width],
        "clip": plans[0].settings["clip"],
        "guidance": plans[0].settings["guidance"],
        "precision": precision,
        "pictures": len(seeds),
        "first_seed": seeds[0],
        "repeats": request.repeats,
        "metrics": list(request.metrics),
        "evaluations_in_all": sum(cell.evaluations * len(seeds) for cell in cells),
    }


def _target(
    request: EvaluateRequest, how: Preparation, measure: Measure, device: torch.device, out: Path
) -> Generator[Event, None, Measured]:
    """What the samples are compared with; the data's is kept, and used again by a resumed run."""
    if request.reference is not None:
        found = open_reference(request.reference, measure)
        check_preparation(request.reference, found, how)
    else:
        assert request.data is not None
        known = None
        if request.sampling.resume and (out / REFERENCE).exists():
            try:
                known = open_reference(out / REFERENCE, measure)
            except (DataError, RequestError):  # of other metrics, or damaged: measured again
                known = None
        found = yield from measure_pictures(
            request.data, how, measure, device, known=known, resumable=True
        )
        if found is not known:
            save_reference(out / REFERENCE, found.summary, found.facts)
    yield from few_pictures(found.facts["pictures"], "the data")
    return found


def _score(
    cell: Cell,
    folder: Path,
    measure: Measure,
    target: Measured,
    how: Preparation,
    device: torch.device,
) -> Generator[Event, None, dict[str, float]]:
    """Sample the cell, or what is missing of it, and score exactly its pictures."""
    result = yield from sample(replace(cell.request, out=folder))
    manifest = json.loads(result.outputs["manifest"].read_text("utf-8"))
    identity = hash_json([manifest["images"], target.facts, asdict(how)])
    path = folder / SCORE
    if (known := _read_score(path, identity)) is not None:
        return known
    pixels = folder / _PIXELS  # on a disk that has room for the pictures, and only for so long
    try:
        found = yield from measure_pictures(
            folder / "images",
            how,
            measure,
            device,
            limit=len(cell.request.seeds),
            cache_dir=pixels,
            resumable=True,
        )
    finally:
        shutil.rmtree(pixels, ignore_errors=True)
    score = scores(measure, found.summary, target.summary)
    write_json(path, {"identity": identity, "scores": score})
    return score


def _read_score(path: Path, identity: str) -> dict[str, float] | None:
    try:
        known = json.loads(path.read_text("utf-8"))
        return dict(known["scores"]) if known["identity"] == identity else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _row(
    cell: Cell, pictures: int, found: Sequence[Mapping[str, float]], preset: str | None
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
    return row | combine(found, paper, pictures)


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
