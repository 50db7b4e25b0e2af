"""Interpolation: latents, images or seeds in, a folder of the frames between them out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.diffusion import paths
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.statistics import is_atypical, latent_statistics
from ddimctl.errors import RequestError
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.files.pictures.video import check_video
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import Model, open_model, other_checkpoint
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.interpolate.inputs import (
    Input,
    agree,
    common_label,
    differences,
    read_inputs,
)
from ddimctl.jobs.interpolate.prompts import frame_prompts, repeated
from ddimctl.jobs.interpolate.request import InterpolateRequest
from ddimctl.jobs.invert.cached_latents import check_invertible, image_latents
from ddimctl.jobs.invert.request import DEFAULT_STEPS
from ddimctl.jobs.option import check_choices
from ddimctl.jobs.requests import SamplerOptions, StepOptions
from ddimctl.jobs.sample.auto_timesteps import Search, find_timesteps
from ddimctl.jobs.sample.batches import default_batch_size
from ddimctl.jobs.sample.folder import RunFolder, run_folder
from ddimctl.jobs.sample.manifest import latent_sha256, read_manifest
from ddimctl.jobs.sample.outputs import FRAMES, Layout
from ddimctl.jobs.sample.plan import (
    Plan,
    image_shape,
    make_plan,
    pixels_per_latent,
    resolve_sampler,
)
from ddimctl.jobs.sample.prompts import prompts_of
from ddimctl.jobs.sample.request import OutputSettings
from ddimctl.jobs.sample.sampler import decode
from ddimctl.runtime.device import memory_errors

_ONE_ROW: Final = 16  # so many frames are one row of the grid
_HOLD_LAST: Final = 1.0  # seconds before an animation that is no loop begins again


@dataclass(frozen=True)
class InterpolateResult:
    """As SampleResult; inputs: what the frames lead through, in order."""

    out: Path | None
    outputs: dict[str, Path]
    settings: JsonObject
    inputs: tuple[str, ...]
    frames: int
    seconds: float


def interpolate(request: InterpolateRequest, report: Report = ignore) -> InterpolateResult:
    """Decode the frames on a path between inputs and store them, a grid, and their latents.

    Raises as sampling does; RequestError also for inputs that do not go together, naming them.
    """
    _check(request)
    output = request.output
    with (
        run_folder(output, FRAMES.command) as out,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _interpolate(request, out, report)


def _interpolate(
    request: InterpolateRequest, out: Path | None, report: Report
) -> InterpolateResult:
    started = time.monotonic()
    output, tour = request.output, request.tour
    recorded = read_manifest(out, FRAMES, output)
    inputs = read_inputs(request.files, request.ends.seeds)
    inputs = repeated(inputs, prompts_of(request.prompt))
    captions = tuple(i.caption for i in inputs)
    if tour.grid is None:
        paths.frame_positions(len(inputs), tour.count, tour.loop)
    else:
        paths.check_grid(len(inputs), *tour.grid)
    metadata = agree(inputs, request.checkpoint.ckpt)
    options = _sampler_options(request.sampler, inputs, metadata)
    flags = {**vars(options), "tau": options.timesteps, "precision": request.device.precision}
    notify(report, differences(inputs, flags))
    model = open_model(
        request.checkpoint,
        request.device,
        report,
        latent_metadata=metadata,
        size=request.ends.size,
        download=request.ends.yes,
        exact=_has_images(inputs),
    )
    records = [i.latent_metadata.get("checkpoint") for i in inputs]
    notes = {note for record in records for note in other_checkpoint(model.checkpoint, record)}
    notify(report, sorted(notes))
    model, plan = _plan(request, options, inputs, metadata, model, recorded, report)
    if _has_images(inputs):
        check_invertible(plan, model.checkpoint)
    if output.dry_run or out is None:
        return InterpolateResult(out, {}, plan.record(), captions, plan.count, 0.0)

    latents = _latents(inputs, plan, model, report)
    plan = replace(plan, x_T=_frames(request, inputs, latents))
    run = RunFolder(
        out, _layout(request, captions, latents), _outputs(request), recorded, output.force
    )
    outputs = decode(run, plan, model.checkpoint, model.device, report)
    seconds = time.monotonic() - started
    return InterpolateResult(out, outputs, plan.record(), captions, plan.count, seconds)


def _check(request: InterpolateRequest) -> None:
    tour, output = request.tour, request.output
    check_choices(request)
    if output.video is not None:
        check_video(output.video, output.fps)
    if tour.grid is not None and tour.grid[0] * tour.grid[1] > GRID_LIMIT:
        raise RequestError(
            f"--grid shows at most {GRID_LIMIT} images.", "Ask for 16x16 or smaller."
        )


def _sampler_options(
    options: StepOptions, inputs: Sequence[Input], metadata: Mapping[str, Any]
) -> SamplerOptions:
    """How the frames are sampled: without noise.

    Input images are inverted and decoded in as many steps as `invert` takes, if nothing else says.
    """
    steps = options.steps
    is_set = isinstance(options.timesteps, tuple) or "timesteps" in metadata or "steps" in metadata
    if _has_images(inputs) and not is_set:
        steps = steps or DEFAULT_STEPS
    own = {**vars(options), "steps": steps}
    if _has_images(inputs) and "guidance" not in metadata:
        own["guidance"] = 1.0 if options.guidance is None else options.guidance
    return SamplerOptions(**own, eta=0.0, variance="eta")


def _outputs(request: InterpolateRequest) -> OutputSettings:
    """Everything is saved; few frames are one row of the grid."""
    output, tour = request.output, request.tour
    columns = output.columns
    if columns is None and tour.grid is not None:
        columns = tour.grid[1]
    elif columns is None and tour.count <= _ONE_ROW:
        columns = tour.count
    return OutputSettings(
        scale=output.scale,
        columns=columns,
        metadata=not output.no_metadata,
        deterministic=request.device.deterministic,
        compile=request.device.compile,
    )


def _has_images(inputs: Sequence[Input]) -> bool:
    return any(isinstance(i.source, Path) for i in inputs)


def _plan(
    request: InterpolateRequest,
    options: SamplerOptions,
    inputs: Sequence[Input],
    metadata: JsonObject,
    model: Model,
    recorded: JsonObject | None,
    report: Report,
) -> tuple[Model, Plan]:
    """How the frames are decoded, still without their x_T; and the model with their prompts."""
    count, factor = request.tour.count, pixels_per_latent(model.checkpoint)
    latent = next((i.source[None] for i in inputs if isinstance(i.source, Tensor)), None)
    shape = image_shape(request.ends.size, model.checkpoint, latent)
    size = (shape[1] * factor, shape[2] * factor)
    text = frame_prompts(
        model.checkpoint, request.prompt, inputs, metadata, request.tour, size, report
    )
    checkpoint, labels = text.checkpoint, text.labels
    model = replace(model, checkpoint=checkpoint)
    if labels is None:
        label = common_label(inputs, request.ends.classes, checkpoint)
        labels = None if label is None else (label,) * count
    sampler = resolve_sampler(options, metadata, checkpoint)
    batch_size = recorded["settings"].get("batch_size") if recorded else request.device.batch_size
    search = Search(batch_size, request.output.dry_run, recorded)
    sampler = find_timesteps(sampler, model, shape, search, report)
    plan = make_plan(
        sampler,
        shape,
        range(count),
        labels,
        precision=model.precision,
        batch_size=batch_size
        or default_batch_size(checkpoint, shape, model.device, sampler.guidance),
        method=request.tour.path,
        factor=factor,
        prompts=text.prompts,
        negative=text.negative,
    )
    return model, plan


def _latents(
    inputs: Sequence[Input],
    plan: Plan,
    model: Model,
    report: Report,
) -> Tensor:
    """The latents (K, C, H, W) of all inputs, float32, with a warning for atypical ones."""
    images = [i.source for i in inputs if isinstance(i.source, Path)]
    inverted: dict[Path, Tensor] = {}
    if images:
        found = image_latents(images, plan, model, report)
        inverted = dict(zip(images, found, strict=True))
    latents = torch.stack([_latent(i.source, plan, inverted) for i in inputs])
    means, stds = latent_statistics(latents)
    for i, mean, std, odd in zip(inputs, means, stds, is_atypical(latents), strict=True):
        if odd:
            report(
                Notice(
                    f"{i.name} is unlike noise (mean {mean:.2f}, deviation {std:.2f}, not 0 and 1): "
                    "images near it may look odd."
                )
            )
    return latents


def _latent(source: Tensor | Path | int, plan: Plan, inverted: Mapping[Path, Tensor]) -> Tensor:
    if isinstance(source, Path):
        return inverted[source]
    return seeded_noise([source], plan.shape)[0] if isinstance(source, int) else source


def _frames(request: InterpolateRequest, inputs: Sequence[Input], latents: Tensor) -> Tensor:
    """The frames' latents (F, C, H, W); where two inputs have no path, the error names them."""
    path = paths.PATHS[request.tour.path]
    places = []
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3)]  # the sides of a grid
    if request.tour.grid is None:
        places = paths.frame_positions(len(inputs), request.tour.count, request.tour.loop)
        pairs = list(dict.fromkeys((place.start, place.end) for place in places))
    for start, end in pairs:
        try:
            path(latents[start], latents[end], 0.5)
        except RequestError as error:
            raise RequestError(
                f"from {inputs[start].name} to {inputs[end].name}: {error.cause}", error.remedy
            ) from error
    if request.tour.grid is not None:
        return paths.grid(latents, *request.tour.grid, path)
    return paths.tour(latents, places, path)


def _layout(request: InterpolateRequest, captions: Sequence[str], latents: Tensor) -> Layout:
    """The frames' names, captions and records: who they are between, or where in the grid."""
    details: JsonObject = {
        "path": request.tour.path,
        "inputs": [
            {"name": caption, "latent_sha256": latent_sha256(latent)}
            for caption, latent in zip(captions, latents, strict=True)
        ],
    }
    if request.tour.grid is not None:
        rows, columns = request.tour.grid
        return replace(
            FRAMES,
            captions=(),
            details=details | {"grid": [rows, columns]},
            records=[
                {"row": row, "column": column}
                for row, column in product(range(rows), range(columns))
            ],
        )
    places = paths.frame_positions(len(captions), request.tour.count, request.tour.loop)
    holds = {i: request.output.hold for i, place in enumerate(places) if place.shows is not None}
    if not request.tour.loop and request.output.video != "mp4":
        holds[len(places) - 1] = max(_HOLD_LAST, request.output.hold)
    return replace(
        FRAMES,
        captions=tuple("" if p.shows is None else captions[p.shows] for p in places),
        video=request.output.video,
        fps=request.output.fps,
        holds=holds,
        details=details | {"loop": request.tour.loop},
        records=[{"from": p.start, "to": p.end, "weight": p.weight} for p in places],
    )
