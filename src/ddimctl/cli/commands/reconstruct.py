"""`ddimctl reconstruct`: how well pictures come back from their latents, as a table."""

from typing import Any, get_args

from ddimctl.cli.options import common as o
from ddimctl.cli.options import invert as own
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as s
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.cli.output.listing import listing

_HEADS = {
    "method": "method",
    "steps": "steps",
    "decode_steps": "decoded in",
    "mse": "MSE",
    "psnr": "PSNR dB",
    "worst_level": "worst level",
    "within_one_level": "within 1 level",
    "exact_pixels": "pixels exact",
    "evaluations_per_step": "evals/step",
}


def reconstruct(
    data: own.Data,
    ckpt: o.Ckpt = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    allow_nonfinite: o.AllowNonfinite = False,
    limit: own.Limit = None,
    holdout: own.Holdout = None,
    size: s.Size = None,
    classes: own.Class = None,
    steps: own.StepsList = "10,20,50,100",
    decode_steps: own.DecodeSteps = None,
    tau: own.TauKind = "linspace",
    method: own.Methods = "exact,naive",
    tolerance: own.Tolerance = 1e-6,
    out: s.Out = None,
    force: o.Force = False,
    dry_run: s.DryRun = False,
    json: o.Json = False,
    batch_size: s.BatchSize = None,
    device: o.Device = "auto",
    precision: own.NetworkPrecision = "fp32",
    deterministic: s.Deterministic = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Invert and decode the pictures of a data set, and tabulate the error (the paper's Table 2).

    Writes table.csv, table.json and plot.png.
    """
    settings: dict[str, Any] = {
        "steps": parse.parse_counts(steps, "--steps"),
        "decode_steps": parse.parse_counts(decode_steps, "--decode-steps")
        if decode_steps is not None
        else None,
        "methods": parse.parse_choices(method, "--method", get_args(own.Method)),
        "holdout": parse.parse_fraction(holdout, "--holdout") if holdout is not None else None,
    }
    how: dict[str, Any] = {
        "flags": parse.parse_flags(model_flags),
        "classes": parse.parse_classes(classes) if classes is not None else None,
        "size": parse.parse_size(size, "--size") if size is not None else None,
    }
    from ddimctl.jobs.invert.reconstruct import ReconstructRequest
    from ddimctl.jobs.invert.reconstruct import reconstruct as job
    from ddimctl.jobs.sample.plan import SampleRequest

    decoding = SampleRequest(
        out=out,
        ckpt=ckpt,
        revision=revision,
        variant=variant,
        weights=weights,
        allow_nonfinite=allow_nonfinite,
        tau=tau,
        batch_size=batch_size,
        device=device,
        precision=precision,
        force=force,
        dry_run=dry_run,
        deterministic=deterministic,
        **how,
    )
    request = ReconstructRequest(
        data, tolerance=tolerance, limit=limit, decoding=decoding, **settings
    )
    result = run_job(job, request)
    record: dict[str, Any] = {
        "out": None if result.out is None else str(result.out),
        "pictures": result.pictures,
        "settings": result.settings,
        "rows": list(result.rows),
    }
    print_result(listing(record) if dry_run else _table(result.rows), record, json)
    if result.out is not None:
        say("wrote", f"{result.out} (table.csv, table.json, plot.png)")


def _table(rows: tuple[dict[str, Any], ...]) -> list[str]:
    """The rows in aligned columns, under their heads."""
    cells = [list(_HEADS.values()), *([_cell(name, row[name]) for name in _HEADS] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("within_one_level", "exact_pixels"):
        return f"{100 * value:.1f} %"
    if name == "mse":
        return f"{value:.2g}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
