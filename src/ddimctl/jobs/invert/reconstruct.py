"""The reconstruction table (the paper's Table 2): images inverted and decoded at several S."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.errors import DataError, NumericsError, RequestError
from ddimctl.files.atomic import write_bytes, write_json
from ddimctl.files.dataset.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.files.own_output import check_output
from ddimctl.files.pictures.plots import Plot, encode_plots
from ddimctl.files.tables import latex_table, markdown_table
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import Model, open_model
from ddimctl.jobs.events import Notice, Report, counted, ignore, notify
from ddimctl.jobs.invert.request import (
    InversionOptions,
    ReconstructionOptions,
    ReconstructRequest,
)
from ddimctl.jobs.invert.round_trip import (
    Fidelity,
    Steps,
    decode_latents,
    fidelity,
    input_text,
    inversion_plan,
    round_trip,
)
from ddimctl.jobs.requests import OutputOptions, PromptOptions
from ddimctl.jobs.sample.folder import run_folder
from ddimctl.jobs.sample.plan import Plan
from ddimctl.runtime.device import memory_errors

FILES: Final = ("table.csv", "table.json", "table.md", "table.tex", "plot.png", "plot.svg")
TITLE: Final = "Reconstruction error"
_HEADS: Final = {
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
_SEED: Final = 0  # of the choice of images


@dataclass(frozen=True)
class ReconstructResult:
    """out: the folder; with --dry-run None. rows: of the table, plain values by column."""

    out: Path | None
    rows: tuple[JsonObject, ...]
    images: int
    settings: JsonObject


def reconstruct(request: ReconstructRequest, report: Report = ignore) -> ReconstructResult:
    """Invert and decode the images at every S by every method; FILES, with the plot in one format.

    The table on disk grows with each finished row. Raises as invert does.
    """
    output = request.output
    with (
        run_folder(OutputOptions(output.out, dry_run=output.dry_run), "reconstruct") as out,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _reconstruct(request, out, report)


def _reconstruct(
    request: ReconstructRequest, out: Path | None, report: Report
) -> ReconstructResult:
    table = request.reconstruction
    _check_room(out, request)
    model = open_model(
        request.checkpoint,
        request.device,
        report,
        size=request.images.size,
        exact="exact" in table.methods,
    )
    data = _load(request, model.checkpoint, report)
    chosen = _choose(data, table)
    images = replace(request.images, size=data.sample_shape[1:])
    text = input_text(PromptOptions(), images, model.checkpoint, len(chosen), report)
    checkpoint = text.checkpoint
    model = replace(model, checkpoint=checkpoint)
    plans = [
        inversion_plan(
            images,
            InversionOptions(S, table.timesteps, method=method, tolerance=table.tolerance),
            model,
            text,
            len(chosen),
            request.device.batch_size,
        )
        for method in table.methods
        for S in table.steps
    ]
    lists = [_decode_lists(table, plan, checkpoint) for plan in plans]
    varying = ("steps", "timesteps")
    settings = {key: value for key, value in plans[0].record().items() if key not in varying}
    settings |= {"tolerance": table.tolerance, "data": data.fingerprint}
    if request.output.dry_run or out is None:
        return ReconstructResult(None, (), len(chosen), settings)

    rows: list[JsonObject] = []
    batches = -(-len(chosen) // plans[0].batch_size)
    total, done = sum(len(plan.timesteps) for plan in plans) * batches, 0
    for plan, decodes in zip(plans, lists, strict=True):
        progress = Steps(done, total, {"method": plan.method, "S": str(len(plan.timesteps))})
        rows += _measure(table.tolerance, model, plan, decodes, data, chosen, progress, report)
        done += len(plan.timesteps) * batches
        about = {"checkpoint": checkpoint.provenance.record(), "settings": settings}
        _write(out, about, rows, request.output.plot_format)
    return ReconstructResult(out, tuple(rows), len(chosen), settings)


def _check_room(out: Path | None, request: ReconstructRequest) -> None:
    if out is not None:
        held = "a table" if any((out / name).exists() for name in FILES) else None
        force = request.output.force
        check_output(out, held, force=force, resumable=False, data=request.data)


def _load(request: ReconstructRequest, checkpoint: Checkpoint, report: Report) -> Dataset:
    channels, *native = checkpoint.picture_shape
    height, width = request.images.size or native
    data = load_dataset(
        request.data,
        image_size=(height, width),
        channels=channels,
        background=checkpoint.background or (0, 0, 0),
        holdout=request.reconstruction.holdout or 0.0,
        on_progress=counted(report, "reading", "pictures"),
    )
    for name, reason in data.skipped:
        report(Notice(f"left out: {name}: {reason}"))
    notify(report, data.notes)
    return data


def _choose(data: Dataset, table: ReconstructionOptions) -> Tensor:
    """Indices (n,) of the images: those asked for, in a random order that is always the same."""
    among = data.training if table.holdout is None else data.held_out
    if not len(among):
        raise DataError(f"--holdout {table.holdout:g} keeps no image aside.", "Use a larger share.")
    count = min(table.limit or len(among), len(among))
    return among[sample_indices(_SEED, 0, count, len(among))]


def _decode_lists(
    table: ReconstructionOptions, plan: Plan, checkpoint: Checkpoint
) -> list[tuple[int, ...]]:
    """The timesteps to decode in. Raises RequestError for a list that ends elsewhere."""
    T, kind = checkpoint.schedule.num_train_timesteps, plan.sampler.kind
    lists = [timesteps(kind, S, T) for S in table.decode_steps or (len(plan.timesteps),)]
    for tau in lists:
        if tau[-1] != plan.timesteps[-1]:
            raise RequestError(
                f"--tau {kind} in {len(tau)} steps ends at {tau[-1]}, in {len(plan.timesteps)} at "
                f"{plan.timesteps[-1]}.",
                "Decode in other numbers of steps with linspace or trailing.",
            )
    return lists


def _measure(
    tolerance: float,
    model: Model,
    plan: Plan,
    taus: Sequence[tuple[int, ...]],
    data: Dataset,
    chosen: Tensor,
    progress: Steps,
    report: Report,
) -> list[JsonObject]:
    """The rows of one method and S: one for each list of timesteps to decode in."""
    found: list[list[Fidelity]] = [[] for _ in taus]
    evaluations, checkpoint = 0, model.checkpoint
    for number, batch in enumerate(torch.split(chosen, plan.batch_size)):
        x_0 = checkpoint.encode(gather(data.pixels, batch, device=model.device))
        target = checkpoint.decode(x_0)
        own = replace(progress, before=progress.before + number * len(plan.timesteps))
        trip = round_trip(checkpoint, plan, x_0, tolerance, report, own)
        evaluations += int(trip.evaluations.sum())
        for tau, fidelities in zip(taus, found, strict=True):
            decoded = trip.decoded
            if tau != plan.timesteps:
                decoded = decode_latents(checkpoint, plan, trip.latents, tau)
            if not bool(trip.finite.all() and decoded.isfinite().all()):
                raise NumericsError(
                    f"{plan.method} in {len(plan.timesteps)} steps: a latent or its decoded image is "
                    "not finite.",
                    "Try --method exact, or more --steps.",
                )
            fidelities += fidelity(target, checkpoint.decode(decoded))
    return [_row(plan, tau, each, evaluations) for tau, each in zip(taus, found, strict=True)]


def _row(plan: Plan, tau: Sequence[int], found: Sequence[Fidelity], evaluations: int) -> JsonObject:
    count = len(found)
    mse = sum(one.mse for one in found) / count
    return {
        "method": plan.method,
        "steps": len(plan.timesteps),
        "decode_steps": len(tau),
        "pictures": count,
        "mse": mse,
        "psnr": -10 * math.log10(mse) if mse > 0 else None,
        "worst_level": max(one.worst_level for one in found),
        "within_one_level": sum(one.worst_level <= 1 for one in found) / count,
        "exact_pixels": sum(one.exact_pixels for one in found) / count,
        "evaluations": evaluations / count,
        "evaluations_per_step": evaluations / count / len(plan.timesteps),
    }


def table_cells(rows: Sequence[JsonObject]) -> list[list[str]]:
    """The table as it is shown: its heads, and then a line for each row."""
    return [list(_HEADS.values()), *([_cell(name, row[name]) for name in _HEADS] for row in rows)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("within_one_level", "exact_pixels"):
        return f"{100 * value:.1f} %"
    if name == "mse":
        return f"{value:.2g}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _write(out: Path, head: JsonObject, rows: Sequence[JsonObject], plot_format: str) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(out / "table.csv", text.getvalue().encode())
    write_json(out / "table.json", head | {"rows": list(rows)})
    columns, *lines = table_cells(rows)
    write_bytes(out / "table.md", markdown_table(TITLE, columns, lines).encode())
    write_bytes(out / "table.tex", latex_table(TITLE, columns, lines).encode())
    error = Plot(
        dict(_series(rows, "mse")),
        "steps",
        "error: MSE per dimension, images in [0, 1]",
        log_x=True,
    )
    cost = Plot(
        dict(_series(rows, "evaluations")), "steps", "cost: evaluations an image", log_x=True
    )
    write_bytes(out / f"plot.{plot_format}", encode_plots((error, cost), plot_format))


def _series(
    rows: Sequence[JsonObject], column: str
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The lines of a plot: each method, and each number of decoding steps that is another."""
    names: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = row["method"]
        if column == "mse" and row["decode_steps"] != row["steps"]:
            name += f", decoded in {row['decode_steps']}"
        names.setdefault(name, []).append((row["steps"], row[column]))
    yield from names.items()
