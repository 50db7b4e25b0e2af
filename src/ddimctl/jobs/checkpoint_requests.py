"""The options of `ddimctl info` and `ddimctl convert`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ddimctl.jobs.option import argument, flag
from ddimctl.jobs.requests import (
    CKPT_DEFAULT,
    CKPT_HELP,
    FORCE,
    OUTPUT,
    CheckpointFileOptions,
    SavedPrecision,
    TrainedSize,
)


@dataclass(frozen=True)
class InfoRequest:
    """Which checkpoint to describe. ckpt None: the default."""

    ckpt: Annotated[str | None, argument("CKPT", CKPT_HELP, default=CKPT_DEFAULT)] = None
    files: CheckpointFileOptions = field(default_factory=CheckpointFileOptions)
    trained: TrainedSize = field(default_factory=TrainedSize)


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert, and where to. source: what load_checkpoint takes.  out: the folder to write."""

    source: Annotated[str, argument("SRC", "Checkpoint: a folder, a file or a hub id.")]
    out: Annotated[Path, argument("DST", "Output folder.")]
    files: CheckpointFileOptions = field(default_factory=CheckpointFileOptions)
    trained: TrainedSize = field(default_factory=TrainedSize)
    weights_dtype: Annotated[
        SavedPrecision, flag("--weights-dtype", "Precision of the saved weights.", OUTPUT)
    ] = "fp32"
    force: Annotated[bool, FORCE] = False
