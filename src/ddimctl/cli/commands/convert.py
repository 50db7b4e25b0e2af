"""`ddimctl convert`: any checkpoint as a diffusers folder."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from ddimctl.cli.options import common as o
from ddimctl.cli.options import parse
from ddimctl.cli.options.train import SavedWeights
from ddimctl.cli.output.console import print_result, run_job

Source = Annotated[
    str, Argument(metavar="SRC", show_default=False, help="A folder, a file or a hub id.")
]
Destination = Annotated[
    Path, Argument(metavar="DST", show_default=False, help="The folder to write.")
]


def convert(
    source: Source,
    out: Destination,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    size: o.TrainedSize = None,
    allow_nonfinite: o.AllowNonfinite = False,
    weights_dtype: SavedWeights = "fp32",
    force: o.Force = False,
    json: o.Json = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Write a checkpoint of any family as a folder that diffusers reads."""
    flags = parse.parse_flags(model_flags)
    trained = parse.parse_size(size, "--size") if size is not None else None
    from ddimctl.jobs.convert import ConvertRequest
    from ddimctl.jobs.convert import convert as job

    request = ConvertRequest(
        source=source,
        out=out,
        revision=revision,
        variant=variant,
        weights=weights,
        flags=flags,
        size=trained,
        allow_nonfinite=allow_nonfinite,
        weights_dtype=weights_dtype,
        force=force,
    )
    result = run_job(job, request)
    record = {"out": str(result.out), "checkpoint": result.checkpoint}
    print_result([str(result.out)], record, json)
