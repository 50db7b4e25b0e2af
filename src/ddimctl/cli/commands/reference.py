"""`ddimctl reference`: what `evaluate` needs to know of a data set, in one file."""

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.jobs.evaluate.request import ReferenceRequest


def reference(
    request: ReferenceRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Compute the statistics of a data set once, for `evaluate --reference`.

    `evaluate` then does not need the images.
    """
    from ddimctl.jobs.evaluate.reference import make_reference as job

    path, found = run_job(job, request)
    print_result([str(path)], {"out": str(path), **found.facts}, json)
