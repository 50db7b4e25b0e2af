"""`ddimctl info`: what a checkpoint is."""

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.jobs.checkpoint_requests import InfoRequest


def info(
    request: InfoRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Show the properties of a checkpoint: family, sizes, prediction, schedule, classes, hash."""
    from ddimctl.jobs.info import info as job

    record = run_job(job, request)
    print_result(listing(record), record, json)
