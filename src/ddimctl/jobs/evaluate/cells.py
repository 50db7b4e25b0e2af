"""The cells of an evaluation's table: which runs of `sample` it takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ddimctl.checkpoints import Checkpoint
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Row, paper_timesteps
from ddimctl.jobs.evaluate.request import EvaluateRequest
from ddimctl.jobs.requests import SamplerOptions
from ddimctl.jobs.sample.plan import SamplerSettings, resolve_sampler


@dataclass(frozen=True)
class Cell:
    """One run: a place in the table, and which of its repeats, from 0.

    row: an eta, "large" or "learned".  steps: S, as asked for.
    timesteps of the settings: None where a dry run would have to search for them.
    """

    row: Row
    steps: int
    repeat: int
    seeds: tuple[int, ...]
    sampler: SamplerSettings

    @property
    def key(self) -> tuple[Row, int]:
        """Its place in the table."""
        return self.row, self.steps

    @property
    def evaluations(self) -> int:
        """How often it asks the network for each image."""
        return self.sampler.steps

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = self.row if isinstance(self.row, str) else f"eta{self.row:g}"
        return f"{kind}-S{self.steps}" + (f"-repeat{self.repeat + 1}" if self.repeat else "")


def table_rows(request: EvaluateRequest) -> tuple[Row, ...]:
    """--eta and --variance, else the preset's rows, else the default etas."""
    table = request.table
    if table.preset and table.eta is None and not table.variance:
        return (*PRESETS[table.preset].etas, *PRESETS[table.preset].variances)
    return (*request.etas, *table.variance)


def make_cells(
    request: EvaluateRequest,
    checkpoint: Checkpoint,
    find: Callable[[SamplerSettings], SamplerSettings],
) -> list[Cell]:
    """Every run: those of few steps first, and all of a column before the next.

    Each next repeat has the seeds that follow. find: gives the settings of --tau auto their
    timesteps. Raises RequestError where one of the runs cannot be.
    """
    T, seeds = checkpoint.schedule.num_train_timesteps, request.seeds
    found: dict[int, tuple[int, ...] | None] = {}
    cells: list[Cell] = []
    options = [
        (row, S, _options(request, row, S, T)) for S in request.steps for row in table_rows(request)
    ]
    resolved = [resolve_sampler(each, {}, checkpoint) for _, _, each in options]
    for (row, S, _), sampler in zip(options, resolved, strict=True):
        if S not in found:
            found[S] = find(sampler).timesteps
        own = replace(sampler, timesteps=found[S])
        cells += [
            Cell(row, S, k, tuple(seed + k * len(seeds) for seed in seeds), own)
            for k in range(request.table.repeats)
        ]
    return cells


def _options(request: EvaluateRequest, row: Row, steps: int, T: int) -> SamplerOptions:
    """How a cell samples."""
    common, table = request.sampler, request.table
    own: dict[str, Any] = vars(common) | {"timesteps": table.timesteps, "steps": steps}
    own |= {"variance": row} if isinstance(row, str) else {"eta": row}
    if table.preset:
        own |= {"timesteps": paper_timesteps(PRESETS[table.preset].squared, steps, T)}
        own["steps"] = None
        if row == "large" and common.clip is None:
            own["clip"] = "static"  # as the sampler that those numbers are of
    return SamplerOptions(**own)
