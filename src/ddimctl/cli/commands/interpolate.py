"""`ddimctl interpolate`: latents, images or seeds in, the frames between them out."""

from typing import TYPE_CHECKING

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.interpolate.request import InterpolateRequest

if TYPE_CHECKING:
    from ddimctl.jobs.interpolate.job import InterpolateResult


def interpolate(
    request: InterpolateRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Sample the frames between latents, input images or seeds.

    The first and the last frame are the images of the inputs themselves.
    The latents' recorded settings are the defaults.
    """
    from ddimctl.jobs.interpolate.job import interpolate as job

    result = run_job(job, request)
    record = _record(result)
    if request.output.dry_run:
        del record["outputs"], record["seconds"]
        print_result(listing(record), record, json)
    else:
        print_result([str(path) for path in result.outputs.values()], record, json)


def _record(result: "InterpolateResult") -> JsonObject:
    return {
        "out": None if result.out is None else str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "inputs": list(result.inputs),
        "frames": result.frames,
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }
