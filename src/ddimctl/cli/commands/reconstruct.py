"""`ddimctl reconstruct`: how well images come back from their latents, as a table."""

from typing import Any

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.cli.output.listing import listing
from ddimctl.cli.output.table import table_lines
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.invert.request import ReconstructRequest

_HEADS = {
    "method": "method",
    "steps": "steps",
    "decode_steps": "decoded in",
    "mse": "MSE",
    "psnr": "PSNR dB",
    "worst_level": "worst level",
    "within_one_level": "within 1 level",
    "exact_pixels": "pixels exact",
    "evaluations_per_step": "evals/step",
}


def reconstruct(
    request: ReconstructRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Measure the reconstruction error of inverted images (the paper's Table 2).

    Writes table.csv, table.json and plot.png.
    """
    from ddimctl.jobs.invert.reconstruct import reconstruct as job

    result = run_job(job, request)
    record: JsonObject = {
        "out": None if result.out is None else str(result.out),
        "pictures": result.images,
        "settings": result.settings,
        "rows": list(result.rows),
    }
    dry_run = request.output.dry_run
    print_result(listing(record) if dry_run else _table(result.rows), record, json)
    if result.out is not None:
        say("wrote", f"{result.out} (table.csv, table.json, plot.png)")


def _table(rows: tuple[JsonObject, ...]) -> list[str]:
    cells = [list(_HEADS.values()), *([_cell(name, row[name]) for name in _HEADS] for row in rows)]
    return table_lines(cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("within_one_level", "exact_pixels"):
        return f"{100 * value:.1f} %"
    if name == "mse":
        return f"{value:.2g}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
