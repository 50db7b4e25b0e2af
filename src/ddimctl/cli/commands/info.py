"""`ddimctl info`: what a checkpoint is."""

from ddimctl.cli.options import common as o
from ddimctl.cli.options import parse
from ddimctl.cli.output.console import print_result
from ddimctl.cli.output.listing import listing


def info(
    ckpt: o.CkptArgument = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    size: o.TrainedSize = None,
    allow_nonfinite: o.AllowNonfinite = False,
    json: o.Json = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Show what a checkpoint holds: family, sizes, prediction, schedule, classes, hash."""
    flags = dict(parse.parse_flags(model_flags))
    trained = parse.parse_size(size, "--size") if size is not None else None
    from ddimctl.checkpoints import load_checkpoint
    from ddimctl.jobs.info import describe

    checkpoint = load_checkpoint(
        ckpt,
        revision=revision,
        variant=variant,
        weights=weights,
        size=trained,
        flags=flags,
        allow_nonfinite=allow_nonfinite,
    )
    record = describe(checkpoint)
    print_result(listing(record), record, json)
