"""`ddimctl invert`: input images in, their latents out."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.errors import DataError
from ddimctl.jobs.invert.request import InvertRequest

if TYPE_CHECKING:
    from ddimctl.jobs.invert.job import InvertResult


def invert(
    request: InvertRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Invert images: find the latents x_T that sample back to them.

    `ddimctl sample --latents NAME.pt` reproduces an image.
    """
    from ddimctl.jobs.invert.job import invert as job

    result = run_job(job, request)
    record = asdict(result) | {"failed": dict(result.failed)}
    record["pictures"] = record.pop("images")  # its name since version 0.1
    if result.images or json:
        print_result(_lines(result, request.output.dry_run), record, json)
    if result.failed:
        count = len(result.failed) + len(result.images)
        raise DataError(f"{len(result.failed)} of {count} images could not be inverted.")


def _lines(result: "InvertResult", dry_run: bool) -> list[str]:
    if dry_run:
        names = {record["picture"]: record["latents"] for record in result.images}
        return listing({"images": names, "settings": result.settings})
    return [record[kind] for record in result.images for kind in ("latents", "comparison")]
