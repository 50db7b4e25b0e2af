"""`ddimctl info`: what a checkpoint is."""

from ddimctl.cli import options as o
from ddimctl.cli.console import print_result
from ddimctl.cli.listing import listing


def info(
    ckpt: o.CkptArgument = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Show what a checkpoint holds: family, sizes, prediction, schedule, classes, hash."""
    from ddimctl.checkpoints import load_checkpoint
    from ddimctl.jobs.info import describe

    checkpoint = load_checkpoint(ckpt, revision=revision, variant=variant, weights=weights)
    record = describe(checkpoint)
    print_result(listing(record), record, json)
