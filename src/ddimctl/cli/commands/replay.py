"""`ddimctl replay`: recorded images sampled once more, and compared."""

from collections import Counter
from typing import TYPE_CHECKING

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.errors import DataError
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.replay.request import ReplayRequest

if TYPE_CHECKING:
    from ddimctl.jobs.replay.job import ReplayResult

_NAMED = 3  # images that an error names


def replay(
    request: ReplayRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Sample recorded images again and compare them with the old ones.

    Settings, batch size and number of threads are the recorded ones.
    The exit code is 1 if an image differs by more than one level of 255,
    or differs and the old image is missing.
    """
    from ddimctl.jobs.replay.job import OTHER, UNKNOWN
    from ddimctl.jobs.replay.job import replay as job

    result = run_job(job, request)
    print_result([*_summary(result), str(result.outputs["manifest"])], _record(result), json)
    bad = [image for image in result.images if image.found in (OTHER, UNKNOWN)]
    if bad:
        named = ", ".join(f"{i.name} ({_levels(i.levels)})" for i in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        remedy = " ".join(result.changes) or "On CUDA, use --deterministic for both runs."
        raise DataError(f"{len(bad)} of {len(result.images)} images differ: {named}{more}.", remedy)


def _summary(result: "ReplayResult") -> list[str]:
    """A sentence for each way in which images compare."""
    from ddimctl.jobs.replay.job import BYTES, LEVEL, OTHER, SAME, UNKNOWN

    sentences = {
        SAME: "have the same bytes",
        BYTES: "have the same pixels in different bytes (other version of zlib, Pillow or ddimctl)",
        LEVEL: "are equal within one level of 255",
        OTHER: "differ by more than one level of 255",
        UNKNOWN: "have different bytes, and the old images are missing",
        None: "have no recorded hash to compare with",
    }
    counts = Counter(image.found for image in result.images)
    return [
        f"{counts[found]} of {len(result.images)} images {sentence}."
        for found, sentence in sentences.items()
        if counts[found]
    ]


def _levels(levels: int | None) -> str:
    return "old image missing" if levels is None else f"by up to {levels} levels"


def _record(result: "ReplayResult") -> JsonObject:
    return {
        "out": str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "images": [image._asdict() for image in result.images],
        "changes": list(result.changes),
        "seconds": round(result.seconds, 3),
    }
