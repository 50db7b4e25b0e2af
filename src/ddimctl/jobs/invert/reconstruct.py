"""The reconstruction table (the paper's Table 2): pictures inverted and decoded at several S."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.inversion import TOLERANCE
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.errors import DataError, NumericsError, RequestError
from ddimctl.files.atomic import write_bytes, write_json
from ddimctl.files.dataset.datasets import Dataset, gather, load_dataset, sample_indices
from ddimctl.files.pictures.images import encode_picture
from ddimctl.files.pictures.plots import line_plot, stack_plots
from ddimctl.jobs.events import Notice, Report, counted, ignore, notify
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
from ddimctl.jobs.sample.plan import Plan, SampleRequest
from ddimctl.runtime.device import memory_errors

FILES: Final = ("table.csv", "table.json", "plot.png")
_SEED: Final = 0  # of the choice of pictures


@dataclass(frozen=True)
class ReconstructRequest:
    """What to reconstruct, and how often.

    data: a folder or a zip.  steps: S of the inversions.  methods: see InvertRequest.
    decode_steps: S of the decodes, each of every inversion; None is the inversion's own.
    limit: at most so many pictures.  holdout: only those that training with it keeps aside.
    decoding: as InvertRequest's; steps are not used, a folder of None is the next numbered one.
    """

    data: Path
    steps: tuple[int, ...] = (10, 20, 50, 100)
    decode_steps: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ("exact", "naive")
    tolerance: float = TOLERANCE
    limit: int | None = None
    holdout: float | None = None
    decoding: SampleRequest = field(default_factory=SampleRequest)


@dataclass(frozen=True)
class ReconstructResult:
    """out: the folder; with --dry-run None. rows: of the table, plain values by column."""

    out: Path | None
    rows: tuple[dict[str, Any], ...]
    pictures: int
    settings: dict[str, Any]


def reconstruct(request: ReconstructRequest, report: Report = ignore) -> ReconstructResult:
    """Invert and decode the pictures at every S by every method; table.csv, table.json, plot.png.

    The table on disk grows with each finished row. Raises as invert does.
    """
    with (
        run_folder(request.decoding, "reconstruct") as decoding,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _reconstruct(replace(request, decoding=decoding), report)


def _reconstruct(request: ReconstructRequest, report: Report) -> ReconstructResult:
    decoding = request.decoding
    _check_room(decoding)
    strictest = "exact" if "exact" in request.methods else request.methods[0]
    checkpoint, device, precision = open_for_inversion(decoding, strictest)
    notify(report, checkpoint.provenance.notes)
    data = _load(request, checkpoint, report)
    chosen = _choose(data, request)
    plans = [
        inversion_plan(
            replace(decoding, steps=S, size=(data.sample_shape[1], data.sample_shape[2])),
            checkpoint,
            len(chosen),
            method,
            request.tolerance,
            device,
            precision,
        )
        for method in request.methods
        for S in request.steps
    ]
    lists = [_decode_lists(request, plan, checkpoint) for plan in plans]
    varying = ("steps", "timesteps")
    settings = {key: value for key, value in plans[0].settings.items() if key not in varying}
    settings |= {"tolerance": request.tolerance, "data": data.fingerprint}
    if decoding.dry_run or decoding.out is None:
        return ReconstructResult(None, (), len(chosen), settings)

    out = decoding.out
    head = {"checkpoint": checkpoint.provenance.record(), "settings": settings}
    rows: list[dict[str, Any]] = []
    total = sum(len(plan.tau) for plan in plans) * -(-len(chosen) // plans[0].batch_size)
    done = 0
    for plan, taus in zip(plans, lists, strict=True):
        found = _measure(request, checkpoint, plan, taus, data, chosen, done, total, report)
        rows += found
        done += len(plan.tau) * -(-len(chosen) // plan.batch_size)
        _write(out, head, rows)
    return ReconstructResult(out, tuple(rows), len(chosen), settings)


def _check_room(decoding: SampleRequest) -> None:
    out = decoding.out
    if out is None or not out.exists():
        return
    if not decoding.force and any((out / name).exists() for name in FILES):
        raise RequestError(
            f"{out} holds a table already.", "Write over it with --force, or name another --out."
        )


def _load(request: ReconstructRequest, checkpoint: Checkpoint, report: Report) -> Dataset:
    channels, *native = checkpoint.sample_shape
    height, width = request.decoding.size or native
    data = load_dataset(
        request.data,
        image_size=(height, width),
        channels=channels,
        background=checkpoint.background or (0, 0, 0),
        holdout=request.holdout or 0.0,
        on_progress=counted(report, "reading", "pictures"),
    )
    for name, reason in data.skipped:
        report(Notice(f"left out: {name}: {reason}"))
    return data


def _choose(data: Dataset, request: ReconstructRequest) -> Tensor:
    """Indices (n,) of the pictures: those asked for, in a random order that is always the same."""
    among = data.training if request.holdout is None else data.held_out
    if not len(among):
        raise DataError(
            f"--holdout {request.holdout:g} keeps none of the pictures aside.", "Raise it."
        )
    count = min(request.limit or len(among), len(among))
    return among[sample_indices(_SEED, 0, count, len(among))]


def _decode_lists(
    request: ReconstructRequest, plan: Plan, checkpoint: Checkpoint
) -> list[tuple[int, ...]]:
    """The timesteps to decode in. Raises RequestError for a list that ends elsewhere."""
    T, kind = checkpoint.schedule.num_train_timesteps, plan.settings["tau"]
    lists = [timesteps(kind, S, T) for S in request.decode_steps or (len(plan.tau),)]
    for tau in lists:
        if tau[-1] != plan.tau[-1]:
            raise RequestError(
                f"--tau {kind} in {len(tau)} steps ends at {tau[-1]}, in {len(plan.tau)} at "
                f"{plan.tau[-1]}.",
                "Decode in other numbers of steps with linspace or trailing.",
            )
    return lists


def _measure(
    request: ReconstructRequest,
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
    facts = {"method": plan.method, "S": str(len(plan.tau))}
    for start in range(0, len(chosen), plan.batch_size):
        x_0 = gather(data.pixels, chosen[start : start + plan.batch_size], device=device)
        before = done + start // plan.batch_size * len(plan.tau)
        progress = Steps(before, total, facts)
        trip = round_trip(checkpoint, plan, x_0, request.tolerance, report, progress)
        evaluations += int(trip.evaluations.sum())
        for tau, list_of in zip(taus, found, strict=True):
            own = tau == plan.tau
            decoded = trip.decoded if own else decode_latents(checkpoint, plan, trip.latents, tau)
            if not bool(trip.finite.all() and decoded.isfinite().all()):
                raise NumericsError(
                    f"{plan.method} in {len(plan.tau)} steps: a latent, or what it decodes to, is "
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
        "steps": len(plan.tau),
        "decode_steps": len(tau),
        "pictures": count,
        "mse": mse,
        "psnr": -10 * math.log10(mse) if mse > 0 else None,
        "worst_level": max(one.worst_level for one in found),
        "within_one_level": sum(one.worst_level <= 1 for one in found) / count,
        "exact_pixels": sum(one.exact_pixels for one in found) / count,
        "evaluations": evaluations / count,
        "evaluations_per_step": evaluations / count / len(plan.tau),
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
        "error: MSE per dimension, pictures in [0, 1]",
        log_x=True,
    )
    cost = line_plot(
        dict(_series(rows, "evaluations")), "steps", "cost: evaluations a picture", log_x=True
    )
    write_bytes(out / "plot.png", encode_picture(stack_plots((error, cost))))


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
