"""`ddimctl sample`: seeds or latents in, images out."""

from typing import TYPE_CHECKING

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.sample.request import SampleRequest

if TYPE_CHECKING:
    from ddimctl.jobs.sample.job import SampleResult


def sample(
    request: SampleRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Sample images from a checkpoint. A seed gives the same image whatever the batch size."""
    from ddimctl.jobs.sample.job import sample as job

    result = run_job(job, request)
    record = _record(result)
    if request.output.dry_run:
        del record["outputs"], record["seconds"]
        print_result(listing(record), record, json)
    else:
        print_result(_paths(result), record, json)


def _paths(result: "SampleResult") -> list[str]:
    """The outputs' paths; grid and manifest last, where one looks."""
    last = [kind for kind in ("grid", "manifest") if kind in result.outputs]
    kinds = [kind for kind in result.outputs if kind not in last]
    return [str(result.outputs[kind]) for kind in (*kinds, *last)]


def _record(result: "SampleResult") -> JsonObject:
    return {
        "out": None if result.out is None else str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "seeds": list(result.seeds),
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }
