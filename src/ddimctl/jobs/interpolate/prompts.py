"""The prompts of an interpolation: one of all frames, or one for each input, blended between them."""

from collections.abc import Sequence
from pathlib import Path

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion import paths
from ddimctl.errors import RequestError
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.events import Report
from ddimctl.jobs.interpolate.inputs import Input
from ddimctl.jobs.interpolate.request import TourOptions
from ddimctl.jobs.requests import PromptOptions
from ddimctl.jobs.sample.prompts import Prompted, prompted, prompts_of


def repeated(inputs: Sequence[Input], prompts: Sequence[str]) -> list[Input]:
    """The inputs; a single one once for each of several prompts, which then lead from it to it."""
    return list(inputs) * len(prompts) if len(inputs) == 1 and len(prompts) > 1 else list(inputs)


def frame_prompts(
    checkpoint: Checkpoint,
    options: PromptOptions,
    inputs: Sequence[Input],
    metadata: JsonObject,
    tour: TourOptions,
    size: tuple[int, int],
    report: Report,
) -> Prompted:
    """The checkpoint with a table of the frames' prompts: rows of embeddings are blended linearly.

    The prompts asked for, else the latents' own. size: (H, W) in pixels. Raises RequestError for
    numbers of prompts that do not fit the inputs.
    """
    asked = prompts_of(options)
    own = [i.prompt for i in inputs if i.prompt is not None]
    if not asked and own:
        asked = tuple(own) if len(own) == len(inputs) else (own[0],)
    if len(set(asked)) <= 1 or checkpoint.conditioner is None:
        one = PromptOptions(asked[:1], negative=options.negative)
        common = {key: value for key, value in metadata.items() if key != "prompts"}
        return prompted(checkpoint, one, common, range(tour.count), size, report)
    _check(asked, inputs, tour)
    ends = PromptOptions(asked, negative=options.negative)
    at_ends = prompted(checkpoint, ends, metadata, range(len(asked)), size, report)
    rows, table = at_ends.labels or (), at_ends.checkpoint.table
    assert table is not None  # the checkpoint takes text
    places = paths.frame_positions(len(inputs), tour.count, tour.loop)
    blends = [(rows[place.start], rows[place.end], place.weight) for place in places]
    null = len(table) - 1
    names = [
        asked[place.start] if place.shows is not None else _between(asked, place)
        for place in places
    ]
    blended = at_ends.checkpoint.with_table(table.blend([*blends, (null, null, 0.0)]), tuple(names))
    labels = tuple(range(len(places)))
    return Prompted(blended, tuple(names), labels, at_ends.negative)


def _between(prompts: Sequence[str], place: paths.FramePosition) -> str:
    return f"{prompts[place.start]} > {prompts[place.end]} {place.weight:.2f}"


def _check(prompts: Sequence[str], inputs: Sequence[Input], tour: TourOptions) -> None:
    if tour.grid is not None:
        raise RequestError("--grid takes one prompt.", "Name one, or leave --grid out.")
    if len(prompts) != len(inputs):
        raise RequestError(
            f"there are {len(prompts)} prompts for {len(inputs)} inputs.",
            "Name one prompt, or one for each input.",
        )
    if any(isinstance(i.source, Path) for i in inputs):
        raise RequestError(
            "input images are inverted by one prompt.",
            "Invert each with `ddimctl invert --prompt`, and interpolate between the latents.",
        )
