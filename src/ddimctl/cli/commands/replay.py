"""`ddimctl replay`: recorded pictures made once more, and compared."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument

from ddimctl.cli.options import common as o
from ddimctl.cli.options import sample as s
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.errors import DataError

if TYPE_CHECKING:
    from ddimctl.jobs.replay.job import ReplayResult

_NAMED = 3  # pictures that an error names

Source = Annotated[
    Path,
    Argument(
        metavar="RUN",
        callback=o.reachable,
        help="The folder of a run of sample or interpolate, its manifest.json, or a picture of it.",
    ),
]
RecordedDevice = Annotated[
    str,
    o.option(
        "--device",
        panel=o.MACHINE,
        metavar="NAME",
        text="cpu, cuda, cuda:1, auto; recorded is cpu for what was made on it, else auto.",
    ),
]
RecordedCkpt = Annotated[
    str | None,
    o.option(
        "--ckpt",
        panel=o.MODEL,
        metavar="CKPT",
        show_default="the recorded one",
        text="A folder, a file or a hub id.",
    ),
]


def replay(
    source: Source,
    ckpt: RecordedCkpt = None,
    yes: s.Yes = False,
    out: s.Out = None,
    resume: s.Resume = False,
    force: o.Force = False,
    json: o.Json = False,
    device: RecordedDevice = "recorded",
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Make recorded pictures again and compare them with the old ones.

    Settings, batch size and threads are the recorded ones.
    Exit code 1 when a picture differs by more than a level of 255,
    or differs and the old one is not there to measure.
    """
    from ddimctl.jobs.replay.job import OTHER, UNKNOWN, ReplayRequest
    from ddimctl.jobs.replay.job import replay as job

    result = run_job(job, ReplayRequest(source, out, ckpt, yes, device, resume, force))
    print_result([*_summary(result), str(result.outputs["manifest"])], _record(result), json)
    bad = [image for image in result.images if image.found in (OTHER, UNKNOWN)]
    if bad:
        named = ", ".join(f"{i.name} ({_levels(i.levels)})" for i in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        remedy = " ".join(result.changes) or "Make both with --deterministic where it is CUDA."
        raise DataError(
            f"{len(bad)} of {len(result.images)} pictures differ: {named}{more}.", remedy
        )


def _summary(result: "ReplayResult") -> list[str]:
    """A sentence for each way in which pictures compare."""
    from ddimctl.jobs.replay.job import BYTES, LEVEL, OTHER, SAME, UNKNOWN

    sentences = {
        SAME: "have the same bytes",
        BYTES: "are equal pixel for pixel in other bytes (another zlib, Pillow or version in them)",
        LEVEL: "are equal within one level of 255",
        OTHER: "differ by more than one level of 255",
        UNKNOWN: "have other bytes, and the old ones are not there to be measured",
        None: "have no recorded hash to compare with",
    }
    counts = Counter(image.found for image in result.images)
    return [
        f"{counts[found]} of {len(result.images)} pictures {sentence}."
        for found, sentence in sentences.items()
        if counts[found]
    ]


def _levels(levels: int | None) -> str:
    return "the old one is not there" if levels is None else f"by up to {levels} levels"


def _record(result: "ReplayResult") -> dict[str, Any]:
    return {
        "out": str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "images": [image._asdict() for image in result.images],
        "changes": list(result.changes),
        "seconds": round(result.seconds, 3),
    }
