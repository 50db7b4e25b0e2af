"""`ddimctl reference`: what `evaluate` needs to know of a data set, in one file."""

from typing import Any, get_args

from ddimctl.cli.options import common as o
from ddimctl.cli.options import evaluate as own
from ddimctl.cli.options import parse
from ddimctl.cli.options.train import ChannelCount
from ddimctl.cli.output.console import print_result, run_job


def reference(
    data: own.DataArgument,
    metric: own.ReferenceMetrics = "swd",
    inception: own.Inception = None,
    size: own.Size = None,
    channels: ChannelCount = "3",
    background: own.ColourUnder = "black",
    out: own.Out = None,
    force: o.Force = False,
    json: o.Json = False,
    device: o.Device = "auto",
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Keep a data set's statistics, with how it was prepared, for evaluate --reference.

    The pictures are then not needed any more.
    """
    settings: dict[str, Any] = {
        "metrics": parse.parse_choices(metric, "--metric", get_args(own.Metric)),
    }
    shape = parse.parse_size(size, "--size") if size is not None else None
    colour = parse.parse_colour(background, "--background")
    from ddimctl.jobs.evaluate.reference import Preparation, ReferenceRequest, make_reference

    request = ReferenceRequest(
        data,
        out,
        Preparation(shape, int(channels), colour),
        inception=inception,
        device=device,
        force=force,
        **settings,
    )
    path, found = run_job(make_reference, request)
    print_result([str(path)], {"out": str(path), **found.facts}, json)
