"""The reconstruction table (the paper's Table 2): images inverted and decoded at several S."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.errors import DataError, NumericsError, RequestError
from ddimctl.files.atomic import write_bytes, write_json
from ddimctl.files.dataset.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.files.own_output import check_output
from ddimctl.files.pictures.images import encode_image
from ddimctl.files.pictures.plots import line_plot, stack_plots
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
    inversion_plan,
    open_for_inversion,
    round_trip,
)
from ddimctl.jobs.sample.folder import run_folder
from ddimctl.jobs.sample.plan import Plan
from ddimctl.runtime.device import memory_errors

FILES: Final = ("table.csv", "table.json", "plot.png")
_SEED: Final = 0  # of the choice of images


@dataclass(frozen=True)
class ReconstructResult:
    """out: the folder; with --dry-run None. rows: of the table, plain values by column."""

    out: Path | None
    rows: tuple[dict[str, Any], ...]
    images: int
    settings: dict[str, Any]


def reconstruct(request: ReconstructRequest, report: Report = ignore) -> ReconstructResult:
    """Invert and decode the images at every S by every method; table.csv, table.json, plot.png.

    The table on disk grows with each finished row. Raises as invert does.
    """
    output = request.output
    with (
        run_folder(output.out, "reconstruct", dry_run=output.dry_run) as out,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _reconstruct(request, out, report)


def _reconstruct(
    request: ReconstructRequest, out: Path | None, report: Report
) -> ReconstructResult:
    table = request.reconstruction
    _check_room(out, request)
    strictest = "exact" if "exact" in table.methods else table.methods[0]
    checkpoint, device, precision = open_for_inversion(
        request.checkpoint, request.device, strictest, request.images.size
    )
    notify(report, checkpoint.provenance.notes)
    data = _load(request, checkpoint, report)
    chosen = _choose(data, table)
    plans = [
        inversion_plan(
            replace(request.images, size=(data.sample_shape[1], data.sample_shape[2])),
            InversionOptions(S, table.timesteps, method, table.tolerance),
            checkpoint,
            len(chosen),
            device,
            precision,
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

    head = {"checkpoint": checkpoint.provenance.record(), "settings": settings}
    rows: list[dict[str, Any]] = []
    total = sum(len(plan.timesteps) for plan in plans) * -(-len(chosen) // plans[0].batch_size)
    done = 0
    for plan, decodes in zip(plans, lists, strict=True):
        rows += _measure(
            table.tolerance, checkpoint, plan, decodes, data, chosen, done, total, report
        )
        done += len(plan.timesteps) * -(-len(chosen) // plan.batch_size)
        _write(out, head, rows)
    return ReconstructResult(out, tuple(rows), len(chosen), settings)


def _check_room(out: Path | None, request: ReconstructRequest) -> None:
    if out is not None:
        held = "a table" if any((out / name).exists() for name in FILES) else None
        force = request.output.force
        check_output(out, held, force=force, resumable=False, data=request.data)


def _load(request: ReconstructRequest, checkpoint: Checkpoint, report: Report) -> Dataset:
    channels, *native = checkpoint.sample_shape
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
        raise DataError(f"--holdout {table.holdout:g} keeps none of the images aside.", "Raise it.")
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
    checkpoint: Checkpoint,
    plan: Plan,
    taus: Sequence[tuple[int, ...]],
    data: Dataset,
    chosen: Tensor,
    done: int,
    total: int,
    report: Report,
) -> list[dict[str, Any]]:
    """The rows of one method and S: one for each list of timesteps to decode in."""
    found: list[list[Fidelity]] = [[] for _ in taus]
    evaluations = 0
    device = next(checkpoint.unet.parameters()).device
    facts = {"method": plan.method, "S": str(len(plan.timesteps))}
    for start in range(0, len(chosen), plan.batch_size):
        x_0 = gather(data.pixels, chosen[start : start + plan.batch_size], device=device)
        before = done + start // plan.batch_size * len(plan.timesteps)
        progress = Steps(before, total, facts)
        trip = round_trip(checkpoint, plan, x_0, tolerance, report, progress)
        evaluations += int(trip.evaluations.sum())
        for tau, list_of in zip(taus, found, strict=True):
            own = tau == plan.timesteps
            decoded = trip.decoded if own else decode_latents(checkpoint, plan, trip.latents, tau)
            if not bool(trip.finite.all() and decoded.isfinite().all()):
                raise NumericsError(
                    f"{plan.method} in {len(plan.timesteps)} steps: a latent, or what it decodes to, is "
                    "not finite.",
                    "Try --method exact, or more --steps.",
                )
            list_of += fidelity(x_0, decoded)
    return [_row(plan, tau, list_of, evaluations) for tau, list_of in zip(taus, found, strict=True)]


def _row(
    plan: Plan, tau: Sequence[int], found: Sequence[Fidelity], evaluations: int
) -> dict[str, Any]:
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


def _write(out: Path, head: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_bytes(out / "table.csv", text.getvalue().encode())
    write_json(out / "table.json", head | {"rows": list(rows)})
    error = line_plot(
        dict(_series(rows, "mse")),
        "steps",
        "error: MSE per dimension, images in [0, 1]",
        log_x=True,
    )
    cost = line_plot(
        dict(_series(rows, "evaluations")), "steps", "cost: evaluations an image", log_x=True
    )
    write_bytes(out / "plot.png", encode_image(stack_plots((error, cost))))


def _series(
    rows: Sequence[dict[str, Any]], column: str
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """The lines of a plot: each method, and each number of decoding steps that is another."""
    names: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = row["method"]
        if column == "mse" and row["decode_steps"] != row["steps"]:
            name += f", decoded in {row['decode_steps']}"
        names.setdefault(name, []).append((row["steps"], row[column]))
    yield from names.items()
