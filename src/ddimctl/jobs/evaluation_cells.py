"""The cells of an evaluation's table: which runs of `sample` it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ddimctl.jobs.presets import PRESETS, Row, paper_timesteps
from ddimctl.jobs.sampling_plan import SampleRequest


@dataclass(frozen=True)
class Cell:
    """One run: a place in the table, and which of its repeats, from 0.

    row: an eta, "large" or "learned".  steps: S, as asked for.  evaluations: the length of tau.
    """

    row: Row
    steps: int
    repeat: int
    evaluations: int
    request: SampleRequest

    @property
    def key(self) -> tuple[Row, int]:
        """Its place in the table."""
        return self.row, self.steps

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
        evaluations = len(tau) if paper else S
        for row in rows:
            eta, variance = (None, row) if isinstance(row, str) else (row, None)
            own = replace(column, save=("grid", "images"), eta=eta, variance=variance)
            if paper and row == "large" and sampling.clip is None:
                own = replace(own, clip="static")  # as the sampler that those numbers are of
            cells += [
                Cell(row, S, repeat, evaluations, replace(own, seeds=seeds[repeat]))
                for repeat in range(repeats)
            ]
    return cells
