"""`ddimctl convert`: any checkpoint as a diffusers folder."""

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.jobs.checkpoint_requests import ConvertRequest


def convert(
    request: ConvertRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Convert a checkpoint of any family to a diffusers folder."""
    from ddimctl.jobs.convert import convert as job

    result = run_job(job, request)
    record = {"out": str(result.out), "checkpoint": result.checkpoint}
    print_result([str(result.out)], record, json)
