"""`ddimctl evaluate`: how good samples are, as a table over eta and S (the paper's Table 1)."""

import os
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from ddimctl.cli.options import common as o
from ddimctl.cli.options import evaluate as own
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as s
from ddimctl.cli.options.config import CKPT
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.cli.output.listing import listing
from ddimctl.cli.output.table import table_lines, terminal_width
from ddimctl.errors import RequestError

if TYPE_CHECKING:
    from ddimctl.jobs.evaluate.job import EvaluateResult

NUMBER: Final = 10_000
STEPS: Final = "10,20,50,100"
STEPS_OF_AUTO: Final = "10,20,50"
ETAS: Final = "0,0.2,0.5,1"
_NAMES: Final = {"swd": "swd (not FID)"}
# Options that SampleRequest takes as they are.
_AS_GIVEN: Final = (
    *("out", "ckpt", "revision", "variant", "weights", "allow_nonfinite", "tau", "solver", "clip"),
    *("guidance", "batch_size", "device", "precision", "resume", "force", "dry_run"),
    *("deterministic", "compile"),
)
# Those that --samples lets stand: what it heeds, and those of the device, which a configuration may
# set for all commands.
_OF_SCORING: Final = (
    *("data", "reference", "samples", "metric", "inception", "background", "num", "size"),
    *("device", "batch_size", "precision", "deterministic", "compile", "json", "config", "debug"),
)


def evaluate(
    data: own.Data = None,
    reference: own.Reference = None,
    samples: own.Samples = None,
    metric: own.Metrics = None,
    inception: own.Inception = None,
    background: own.Background = None,
    repeats: own.Repeats = 1,
    ckpt: o.Ckpt = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    allow_nonfinite: o.AllowNonfinite = False,
    num: own.Number = None,
    seed: s.Seed = None,
    classes: s.Classes = None,
    size: s.Size = None,
    preset: own.Preset = None,
    steps: own.StepsList = None,
    eta: own.Etas = None,
    variance: own.Variances = None,
    tau: own.TauKind = None,
    solver: s.SolverOf = None,
    clip: s.ClipTo = None,
    guidance: s.Guidance = None,
    out: s.Out = None,
    resume: own.Resume = False,
    force: o.Force = False,
    dry_run: s.DryRun = False,
    json: o.Json = False,
    batch_size: s.BatchSize = None,
    device: o.Device = "auto",
    precision: o.Compute = None,
    deterministic: s.Deterministic = False,
    compile: o.Compile = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Sample at several eta and S and score against a data set (the paper's Table 1).

    Writes the samples, table.csv, table.json, curve.png, seeds.png and index.html.
    With --samples, scores pictures that exist already.
    """
    given = dict(locals())
    if (data is None) == (reference is None):
        raise RequestError(
            "there must be one thing to compare with.", "Name --data or --reference."
        )
    common: dict[str, Any] = {
        "data": data,
        "reference": reference,
        "metrics": parse.parse_choices(
            metric or ("swd,fid,kid" if preset else "swd"), "--metric", get_args(own.Metric)
        ),
        "inception": inception,
        "background": parse.parse_colour(background, "--background") if background else None,
    }
    shape = parse.parse_size(size, "--size") if size is not None else None
    if samples is not None:
        _refuse_sampling(given)
        _score(samples, num, shape, device, json, common)
        return
    if preset and not (ckpt or os.environ.get(CKPT)):
        _ask_for_checkpoint(preset)
    if preset and tau:
        raise RequestError(
            "--preset brings the paper's own timesteps; --tau names others.", "Leave one out."
        )
    count, first = num or (50_000 if preset else NUMBER), seed or 0
    if first + count * repeats - 1 > parse.MAX_SEED:
        raise RequestError(f"--seed {first}: seeds end at 2^63 - 1.", "Begin lower.")
    table: dict[str, Any] = {
        "steps": parse.parse_counts(
            steps or (STEPS_OF_AUTO if tau == "auto" else STEPS), "--steps"
        ),
        "rows": _rows(eta or ("0" if solver not in (None, "ddim") else None), variance, preset),
        "repeats": repeats,
        "preset": preset,
    }
    settings = {name: given[name] for name in _AS_GIVEN} | {
        "flags": parse.parse_flags(model_flags),
        "classes": parse.parse_classes(classes) if classes is not None else None,
        "seeds": tuple(range(first, first + count)),
        "size": shape,
    }
    from ddimctl.jobs.evaluate.job import EvaluateRequest
    from ddimctl.jobs.evaluate.job import evaluate as job
    from ddimctl.jobs.sample.plan import SampleRequest

    result = run_job(job, EvaluateRequest(SampleRequest(**settings), **table, **common))
    _show(result, json)


def _show(result: "EvaluateResult", json: bool) -> None:
    record: dict[str, Any] = {
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
    say("wrote", f"{result.out} (index.html, table.csv, table.json, curve.png, seeds.png, cells)")


def _rows(eta: str | None, variance: str | None, preset: str | None) -> tuple[float | str, ...]:
    """The table's rows: --eta and --variance, else the preset's, else the paper's etas."""
    if preset and eta is None and variance is None:
        from ddimctl.jobs.evaluate.paper_tables import PRESETS

        return (*PRESETS[preset].etas, *PRESETS[preset].variances)
    etas = parse.parse_numbers(eta or ETAS, "--eta", 0, 1)
    if variance is None:
        return etas
    return (*etas, *parse.parse_choices(variance, "--variance", get_args(own.AddedVariance)))


def _ask_for_checkpoint(preset: str) -> None:
    from ddimctl.jobs.evaluate.paper_tables import PRESETS

    found = PRESETS[preset]
    raise RequestError(
        f"--preset {preset} needs the checkpoint of those numbers, and as data {found.data}.",
        f"Name it with --ckpt: {found.checkpoint}.",
    )


def _refuse_sampling(given: Mapping[str, Any]) -> None:
    for name, parameter in signature(evaluate).parameters.items():
        if name not in _OF_SCORING and given[name] != parameter.default:
            flag = "class" if name == "classes" else name.replace("_", "-")
            raise RequestError(
                f"--samples scores pictures that exist already; --{flag} is about making them.",
                "Leave one side out.",
            )


def _score(
    samples: Path,
    count: int | None,
    size: tuple[int, int] | None,
    device: str,
    json: bool,
    common: Mapping[str, Any],
) -> None:
    from ddimctl.jobs.evaluate.score import ScoreRequest
    from ddimctl.jobs.evaluate.score import score as job

    result = run_job(job, ScoreRequest(samples, count=count, size=size, device=device, **common))
    record = {
        "scores": result.scores,
        "samples": result.samples,
        "reference": result.reference,
    }
    shown = {_NAMES.get(name, name): f"{value:.4g}" for name, value in result.scores.items()}
    print_result(listing(shown), record, json)
