"""`ddimctl invert`: photos in, their latents out."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ddimctl.cli.options import common as o
from ddimctl.cli.options import invert as own
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as s
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.errors import DataError

if TYPE_CHECKING:
    from ddimctl.jobs.invert.job import InvertResult


def invert(
    photos: own.Photos,
    ckpt: o.Ckpt = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    allow_nonfinite: o.AllowNonfinite = False,
    fit: own.FitTo = "crop",
    size: s.Size = None,
    classes: own.Class = None,
    steps: own.Steps = None,
    tau: own.Tau = None,
    method: own.MethodOf = "exact",
    tolerance: own.Tolerance = 1e-6,
    out: own.Out = None,
    resume: s.Resume = False,
    force: own.Overwrite = False,
    dry_run: s.DryRun = False,
    json: o.Json = False,
    batch_size: s.BatchSize = None,
    device: o.Device = "auto",
    precision: own.NetworkPrecision = "fp32",
    deterministic: s.Deterministic = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Find the latents that pictures are decoded from.

    `ddimctl sample --latents NAME.pt` gives the picture back.
    """
    settings: dict[str, Any] = {
        "flags": parse.parse_flags(model_flags),
        "tau": parse.parse_tau(tau, steps) if tau is not None else None,
        "classes": parse.parse_classes(classes) if classes is not None else None,
        "size": parse.parse_size(size, "--size") if size is not None else None,
    }
    from ddimctl.jobs.invert.job import InvertRequest
    from ddimctl.jobs.invert.job import invert as job
    from ddimctl.jobs.sample.plan import SampleRequest

    decoding = SampleRequest(
        out=out,
        ckpt=ckpt,
        revision=revision,
        variant=variant,
        weights=weights,
        allow_nonfinite=allow_nonfinite,
        steps=steps,
        batch_size=batch_size,
        device=device,
        precision=precision,
        resume=resume,
        force=force,
        dry_run=dry_run,
        deterministic=deterministic,
        **settings,
    )
    result = run_job(job, InvertRequest(tuple(photos), method, tolerance, fit, decoding))
    record = asdict(result) | {"failed": dict(result.failed)}
    if result.pictures or json:
        print_result(_lines(result, dry_run), record, json)
    if result.failed:
        count = len(result.failed) + len(result.pictures)
        raise DataError(f"{len(result.failed)} of {count} pictures could not be inverted.")


def _lines(result: "InvertResult", dry_run: bool) -> list[str]:
    if dry_run:
        names = {record["picture"]: record["latents"] for record in result.pictures}
        return listing({"pictures": names, "settings": result.settings})
    return [record[kind] for record in result.pictures for kind in ("latents", "comparison")]
