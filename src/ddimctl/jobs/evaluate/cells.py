"""The cells of an evaluation's table: which runs of `sample` it takes, and whether they are the paper's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import RequestError
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.evaluate.paper_tables import IMAGES, PRESETS, Row, paper_timesteps
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
    own: JsonObject = vars(common) | {"timesteps": table.timesteps, "steps": steps}
    own |= {"variance": row} if isinstance(row, str) else {"eta": row}
    if table.preset:
        own |= {"timesteps": paper_timesteps(PRESETS[table.preset].squared, steps, T)}
        own["steps"] = None
        if row == "large" and common.clip is None:
            own["clip"] = "static"  # as the sampler that those numbers are of
    return SamplerOptions(**own)


def check_size(name: str, size: Sequence[int]) -> None:
    """Raise RequestError for a checkpoint of another size (H, W) than the preset's."""
    preset, (height, width) = PRESETS[name], size
    if (height, width) != (preset.side, preset.side):
        raise RequestError(
            f"--preset {name} is of {preset.side}x{preset.side} images, the checkpoint "
            f"of {height}x{width}.",
            f"Use its own checkpoint: {preset.checkpoint}.",
        )


def differences(
    name: str, checkpoint: Checkpoint, request: EvaluateRequest, images: int
) -> list[str]:
    """In what an evaluation is not the paper's experiment. images: of the data.

    Whether network and data are those of the paper, they do not tell; this is what can be seen.
    """
    sampler, count = request.sampler, request.count
    preset, schedule, linear = PRESETS[name], checkpoint.schedule, make_schedule("linear")
    same_schedule = len(schedule.alpha_bar) == len(linear.alpha_bar) and torch.allclose(
        schedule.alpha_bar, linear.alpha_bar, rtol=1e-3, atol=0
    )
    found = {
        f"{count:,} images a cell, not {IMAGES:,}": count != IMAGES,
        f"{images:,} images of data, not {preset.images or 0:,}": preset.images
        not in (None, images),
        f"a network that predicts {checkpoint.prediction}, not eps": checkpoint.prediction != "eps",
        "another noise schedule": not same_schedule,
        "a class-conditional network": checkpoint.num_classes is not None,
        "grey images": checkpoint.sample_shape[0] != 3,
        f"--solver {sampler.solver}": sampler.solver not in (None, "ddim"),
        f"--clip {sampler.clip}": sampler.clip is not None,
    }
    return [what for what, holds in found.items() if holds]
