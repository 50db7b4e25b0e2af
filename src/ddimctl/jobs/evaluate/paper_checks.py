"""Whether an evaluation is the paper's experiment, as far as that can be seen."""

from collections.abc import Sequence

import torch

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import RequestError
from ddimctl.jobs.evaluate.paper_tables import IMAGES, PRESETS
from ddimctl.jobs.evaluate.request import EvaluateRequest


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
    preset, schedule, theirs = PRESETS[name], checkpoint.schedule, make_schedule("linear")
    same_schedule = len(schedule.alpha_bar) == len(theirs.alpha_bar) and torch.allclose(
        schedule.alpha_bar, theirs.alpha_bar, rtol=1e-3, atol=0
    )
    found = {
        f"{count:,} images a cell, not {IMAGES:,}": count != IMAGES,
        f"{images:,} images of data, not {preset.images or 0:,}": preset.images
        not in (None, images),
        f"a network that predicts {checkpoint.prediction}, not eps": checkpoint.prediction != "eps",
        "another noise schedule": not same_schedule,
        "a network that knows classes": checkpoint.num_classes is not None,
        "images without colours": checkpoint.sample_shape[0] != 3,
        f"--solver {sampler.solver}": sampler.solver not in (None, "ddim"),
        f"--clip {sampler.clip}": sampler.clip is not None,
    }
    return [what for what, holds in found.items() if holds]
