"""The options of `ddimctl replay`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ddimctl.jobs.option import argument, flag
from ddimctl.jobs.requests import DEVICE, FORCE, MAIN, OUT, RESUME, YES


@dataclass(frozen=True)
class ReplayRequest:
    """What to make again.

    source: a run's folder, its manifest, or one of its images.
    ckpt: None for the recorded checkpoint, which is downloaded only with `yes`.
    device: "recorded" is the CPU for what was made on one, else auto.
    """

    source: Annotated[
        Path,
        argument(
            "RUN",
            "Output folder of sample or interpolate, its manifest.json, or one of its images.",
        ),
    ]
    ckpt: Annotated[
        str | None,
        flag(
            "--ckpt",
            "Checkpoint: a folder, a file or a hub id.",
            MAIN,
            metavar="CKPT",
            default="the recorded one",
        ),
    ] = None
    yes: Annotated[bool, YES] = False
    out: Annotated[Path | None, OUT] = None
    resume: Annotated[bool, RESUME] = False
    force: Annotated[bool, FORCE] = False
    device: Annotated[
        str,
        flag(
            "--device",
            "Device: cpu, cuda, cuda:1, auto, or recorded (cpu for images sampled on a CPU, else "
            "auto).",
            DEVICE,
            metavar="NAME",
        ),
    ] = "recorded"
