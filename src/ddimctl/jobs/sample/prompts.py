"""Prompts: which text each image gets, and a checkpoint whose labels are the rows of their table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ddimctl.checkpoints import Checkpoint
from ddimctl.errors import RequestError
from ddimctl.jobs.events import Report, notify
from ddimctl.jobs.parse import read_prompts
from ddimctl.jobs.requests import PromptOptions


class Prompted(NamedTuple):
    """prompts: one per image; None for a checkpoint without text.  labels: their rows.

    negative: as asked for, or as the latents record it; None is the checkpoint's own.
    """

    checkpoint: Checkpoint
    prompts: tuple[str, ...] | None = None
    labels: tuple[int, ...] | None = None
    negative: str | None = None


def prompts_of(options: PromptOptions) -> tuple[str, ...]:
    """The prompts asked for, on the command line or in a file. Raises RequestError for a bad file."""
    return options.prompts if options.prompt_file is None else read_prompts(options.prompt_file)


def prompted(
    checkpoint: Checkpoint,
    options: PromptOptions,
    metadata: Mapping[str, Any],
    order: Sequence[int],
    size: tuple[int, int],
    report: Report,
    otherwise: str | None = None,
) -> Prompted:
    """The checkpoint with a table of the prompts asked for, else of those that latents record.

    order: one number per image, which chooses among the prompts asked for.  size: (H, W) in pixels.
    otherwise: the prompt where there is none. Raises RequestError where there is none, and where the
    checkpoint does not take text.
    """
    asked = prompts_of(options)
    if checkpoint.conditioner is None:
        if asked or options.negative is not None:
            name = "--prompt" if asked else "--negative"
            raise RequestError(f"{name}: this checkpoint does not take text.", f"Leave {name} out.")
        return Prompted(checkpoint)
    recorded = metadata.get("prompts")
    if asked:
        prompts = tuple(asked[i % len(asked)] for i in order)
    elif recorded and len(recorded) == len(order):
        prompts = tuple(recorded)
    elif otherwise is not None:
        prompts = (otherwise,) * len(order)
    else:
        raise RequestError(
            "this checkpoint needs a prompt.", 'Name one, such as --prompt "a red fox".'
        )
    negative = metadata.get("negative") if options.negative is None else options.negative
    distinct = tuple(dict.fromkeys(prompts))
    with_text = checkpoint.with_prompts(distinct, negative, size)
    if with_text.table is not None:
        notify(report, with_text.table.notices)
    rows = {prompt: row for row, prompt in enumerate(distinct)}
    return Prompted(with_text, prompts, tuple(rows[prompt] for prompt in prompts), negative)
