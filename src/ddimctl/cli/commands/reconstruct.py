"""`ddimctl reconstruct`: how well images come back from their latents, as a table."""

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.cli.output.listing import listing
from ddimctl.cli.output.table import table_lines
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.invert.request import ReconstructRequest


def reconstruct(
    request: ReconstructRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Measure the reconstruction error of inverted images (the paper's Table 2).

    Writes table.csv, .json, .md and .tex, and plot.png.
    """
    from ddimctl.jobs.invert.reconstruct import reconstruct as job
    from ddimctl.jobs.invert.reconstruct import table_cells

    result = run_job(job, request)
    record: JsonObject = {
        "out": None if result.out is None else str(result.out),
        "pictures": result.images,
        "settings": result.settings,
        "rows": list(result.rows),
    }
    dry_run = request.output.dry_run
    shown = listing(record) if dry_run else table_lines(table_cells(result.rows))
    print_result(shown, record, json)
    if result.out is not None:
        say(
            "wrote",
            f"{result.out} (table.csv, .json, .md, .tex; plot.{request.output.plot_format})",
        )
