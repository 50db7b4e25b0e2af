"""The cells of an evaluation's table: which runs of `sample` it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Row, paper_timesteps
from ddimctl.jobs.events import Report
from ddimctl.jobs.sample.auto_timesteps import resolve_timesteps
from ddimctl.jobs.sample.plan import Plan, SampleRequest, make_plan
from ddimctl.runtime.ranks import Ranks


@dataclass(frozen=True)
class Cell:
    """One run: a place in the table, and which of its repeats, from 0.

    row: an eta, "large" or "learned".  steps: S, as asked for.
    timesteps: tau; None where a dry run would have to search for it, or it is not settled yet.
    """

    row: Row
    steps: int
    repeat: int
    request: SampleRequest
    timesteps: tuple[int, ...] | None = None

    @property
    def key(self) -> tuple[Row, int]:
        """Its place in the table."""
        return self.row, self.steps

    @property
    def evaluations(self) -> int:
        """How often it asks the network for each picture."""
        return self.steps if self.timesteps is None else len(self.timesteps)

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = self.row if isinstance(self.row, str) else f"eta{self.row:g}"
        return f"{kind}-S{self.steps}" + (f"-repeat{self.repeat + 1}" if self.repeat else "")


def make_cells(
    sampling: SampleRequest,
    rows: Sequence[Row],
    steps: Sequence[int],
    repeats: int,
    preset: str | None,
    num_train_timesteps: int,
) -> list[Cell]:
    """Every run: those of few steps first, and all of a column before the next.

    sampling: what they share; its seeds are the first repeat's, and each next one has the seeds
    that follow. Raises RequestError for steps that the preset's timesteps cannot have.
    """
    paper = PRESETS[preset] if preset else None
    count = len(sampling.seeds)
    seeds = [tuple(seed + k * count for seed in sampling.seeds) for k in range(repeats)]
    cells: list[Cell] = []
    for S in steps:
        if paper:
            tau = paper_timesteps(paper.squared, S, num_train_timesteps)
            column = replace(sampling, tau=tau, steps=None)
        else:
            column = replace(sampling, steps=S)
        for row in rows:
            eta, variance = (None, row) if isinstance(row, str) else (row, None)
            own = replace(column, save=("grid", "images"), eta=eta, variance=variance)
            if paper and row == "large" and sampling.clip is None:
                own = replace(own, clip="static")  # as the sampler that those numbers are of
            cells += [
                Cell(row, S, repeat, replace(own, seeds=seeds[repeat])) for repeat in range(repeats)
            ]
    return cells


def resolve_cells(
    cells: Sequence[Cell],
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
    ranks: Ranks,
    report: Report,
) -> tuple[list[Cell], dict[str, Any]]:
    """The cells with their timesteps, searched for where they have to be; and the first's settings.

    Raises RequestError where one of them cannot be.
    """
    plans = [make_plan(cell.request, checkpoint, None, device, precision) for cell in cells]
    found: dict[int, tuple[int, ...] | None] = {}
    for cell, plan in zip(cells, plans, strict=True):
        if cell.steps not in found:
            own = ranks.part(f"S = {cell.steps}")
            settled: Plan = resolve_timesteps(cell.request, plan, checkpoint, device, report, own)
            found[cell.steps] = None if settled.searched else settled.tau
    return [replace(cell, timesteps=found[cell.steps]) for cell in cells], plans[0].settings
