"""`ddimctl evaluate`: how good samples are, as a table over eta and S (the paper's Table 1)."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from ddimctl.cli.options.config import CKPT
from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.cli.output.listing import listing
from ddimctl.cli.output.table import table_lines, terminal_width
from ddimctl.errors import RequestError
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.evaluate.request import (
    CellImageOptions,
    EvaluateRequest,
    ScoreRequest,
    check_target,
)
from ddimctl.jobs.option import changed_options, flag
from ddimctl.jobs.requests import MAIN

if TYPE_CHECKING:
    from ddimctl.jobs.evaluate.job import EvaluateResult

_NAMES: Final = {"swd": "swd (not FID)"}

Samples = Annotated[
    Path | None,
    flag(
        "--samples",
        "Folder or zip of existing images to score; samples and writes nothing.",
        MAIN,
        metavar="DIR|ZIP",
    ),
]


def evaluate(
    request: EvaluateRequest,
    samples: Samples = None,
    json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Score samples for several values of eta and steps against a data set (the paper's Table 1).

    Writes the samples, table.csv, .json, .md and .tex, curve.png, seeds.png and index.html.
    With --samples, it scores existing images instead.
    """
    check_target(request.scoring)
    if samples is not None:
        _score(_score_request(samples, request), json)
        return
    if request.table.preset and not (request.checkpoint.ckpt or os.environ.get(CKPT)):
        _ask_for_checkpoint(request.table.preset)
    from ddimctl.jobs.evaluate.job import evaluate as job

    _show(run_job(job, request), request.table.plot_format, json)


def _score(request: ScoreRequest, json: bool) -> None:
    from ddimctl.jobs.evaluate.score import score as job

    result = run_job(job, request)
    record = {
        "scores": result.scores,
        "samples": result.samples,
        "reference": result.reference,
    }
    shown = {_NAMES.get(name, name): f"{value:.4g}" for name, value in result.scores.items()}
    print_result(listing(shown), record, json)


def _score_request(samples: Path, request: EvaluateRequest) -> ScoreRequest:
    """Raises RequestError for options of sampling; those of the device may be a configuration's."""
    count, size = request.images.num, request.images.size
    scored = EvaluateRequest(
        scoring=request.scoring,
        images=CellImageOptions(num=count, size=size),
        device=request.device,
    )
    for option in changed_options(request, scored):
        raise RequestError(
            f"--samples scores existing images, but {option} is for sampling.",
            "Leave one of the two out.",
        )
    return ScoreRequest(
        samples, request.scoring, count=count, size=size, device=request.device.device
    )


def _ask_for_checkpoint(preset: str) -> None:
    from ddimctl.jobs.evaluate.paper_tables import PRESETS

    found = PRESETS[preset]
    raise RequestError(
        f"--preset {preset} needs the paper's checkpoint and data ({found.data}).",
        f"Pass --ckpt with {found.checkpoint}.",
    )


def _show(result: "EvaluateResult", plot_format: str, json: bool) -> None:
    record: JsonObject = {
        "out": None if result.out is None else str(result.out),
        "settings": result.settings,
        "rows": list(result.rows),
    }
    if result.out is None:
        print_result(listing(record), record, json)
        return
    from ddimctl.jobs.evaluate.report import tables

    lines: list[str] = []
    for table in tables(result.rows):
        lines += [*([""] if lines else []), table.title]
        lines += table_lines([table.columns, *table.lines], terminal_width())
    if result.settings["tau"] == "auto":
        lines += ["", *listing({"timesteps": result.settings["timesteps"]})]
    print_result(lines, record, json)
    say(
        "wrote",
        f"{result.out} (index.html; table.csv, .json, .md, .tex; curve.{plot_format}, seeds.png, cells)",
    )
