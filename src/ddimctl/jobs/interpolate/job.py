"""Interpolation: latents, pictures or seeds in, a folder of the frames between them out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion import paths
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.statistics import is_atypical, latent_statistics
from ddimctl.errors import RequestError
from ddimctl.files.latents import LatentFile
from ddimctl.files.pictures.grids import GRID_LIMIT
from ddimctl.files.pictures.video import check_video
from ddimctl.jobs.checkpoint import open_checkpoint
from ddimctl.jobs.events import Notice, Report, ignore, notify
from ddimctl.jobs.interpolate.inputs import (
    Input,
    agree,
    common_label,
    differences,
    read_inputs,
)
from ddimctl.jobs.invert.cached_latents import METHOD, check_invertible, picture_latents
from ddimctl.jobs.invert.round_trip import DEFAULT_STEPS, inversion_precision
from ddimctl.jobs.sample.auto_timesteps import resolve_timesteps
from ddimctl.jobs.sample.folder import run_folder
from ddimctl.jobs.sample.manifest import Layout, read_manifest
from ddimctl.jobs.sample.plan import Plan, SampleRequest, make_plan
from ddimctl.jobs.sample.records import latent_sha256
from ddimctl.jobs.sample.sampler import decode
from ddimctl.runtime.device import (
    make_deterministic,
    memory_errors,
    resolve_device,
    resolve_precision,
)

LAYOUT: Final = Layout("interpolate", "frames", 4)
_ONE_ROW: Final = 16  # so many frames are one row of the grid


@dataclass(frozen=True)
class InterpolateRequest:
    """What to interpolate between, and what to make of it.

    files: latent files and pictures; seeds: the noise of these comes after them.
    frames: in all, every input included; grid: (rows, columns) between four inputs instead.
    loop: back to the first input.  video: None, gif, webp or mp4, of fps frames a second.
    decoding: checkpoint, settings, device and folder, as for sampling latents. Its seeds, latents,
    eta, variance and save are not used: frames are decoded without noise, and all is saved.
    """

    files: tuple[Path, ...] = ()
    seeds: tuple[int, ...] = ()
    frames: int = 16
    path: str = "slerp"
    loop: bool = False
    grid: tuple[int, int] | None = None
    video: str | None = None
    fps: float = 12.0
    decoding: SampleRequest = field(default_factory=SampleRequest)


@dataclass(frozen=True)
class InterpolateResult:
    """As SampleResult; inputs: what the frames lead through, in order."""

    out: Path | None
    outputs: dict[str, Path]
    settings: dict[str, Any]
    inputs: tuple[str, ...]
    frames: int
    seconds: float


def interpolate(request: InterpolateRequest, report: Report = ignore) -> InterpolateResult:
    """Decode the frames on a path between inputs and store them, a grid, and their latents.

    Raises as sampling does; RequestError also for inputs that do not go together, naming them.
    """
    _check(request)
    with (
        run_folder(request.decoding, LAYOUT.command) as decoding,
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _interpolate(replace(request, decoding=decoding), report)


def _interpolate(request: InterpolateRequest, report: Report) -> InterpolateResult:
    started = time.monotonic()
    recorded = read_manifest(request.decoding, LAYOUT)
    inputs = read_inputs(request.files, request.seeds)
    captions = tuple(i.caption for i in inputs)
    if request.grid is None:
        paths.frame_positions(len(inputs), request.frames, request.loop)
    else:
        paths.check_grid(len(inputs), *request.grid)
    known = agree(inputs, request.decoding.ckpt)
    decoding = _decoding(request, inputs, known, recorded)
    notify(report, differences(inputs, vars(decoding)))

    device = resolve_device(decoding.device)
    if decoding.deterministic:
        make_deterministic()
    if _has_pictures(inputs):
        precision = inversion_precision(decoding.precision, METHOD, device)
    else:
        precision = resolve_precision(
            decoding.precision or known.get("precision") or "auto", device
        )
    checkpoint = open_checkpoint(decoding, known, device, precision)
    notify(report, checkpoint.provenance.notes)
    plan = _plan(request, decoding, inputs, known, checkpoint, device, precision)
    plan = resolve_timesteps(decoding, plan, checkpoint, device, report, recorded=recorded)
    if _has_pictures(inputs):
        check_invertible(plan, checkpoint)
    if decoding.dry_run:
        return InterpolateResult(decoding.out, {}, plan.settings, captions, plan.count, 0.0)

    latents = _latents(inputs, plan, checkpoint, device, report)
    plan = replace(plan, x_T=_frames(request, inputs, latents))
    layout = _layout(request, captions, latents)
    out, outputs = decode(decoding, plan, checkpoint, device, layout, recorded, report)
    seconds = time.monotonic() - started
    return InterpolateResult(out, outputs, plan.settings, captions, plan.count, seconds)


def _check(request: InterpolateRequest) -> None:
    if request.path not in paths.PATHS:
        raise RequestError(
            f"unknown path '{request.path}'.", f"Choose one of {', '.join(paths.PATHS)}."
        )
    if request.video is not None:
        check_video(request.video, request.fps)
    if request.grid is None:
        return
    if request.grid[0] * request.grid[1] > GRID_LIMIT:
        raise RequestError(
            f"--grid shows at most {GRID_LIMIT} images.", "Ask for 16x16 or smaller."
        )
    if request.loop or request.video:
        option = "--loop" if request.loop else "--video"
        raise RequestError(f"{option} is for a path, not for a --grid.", f"Leave {option} out.")


def _decoding(
    request: InterpolateRequest,
    inputs: Sequence[Input],
    known: Mapping[str, Any],
    recorded: dict[str, Any] | None,
) -> SampleRequest:
    """The request for sampling that the frames are, without noise and with everything saved.

    Pictures are inverted and decoded in as many steps as `invert` takes, if nothing else says.
    """
    asked = request.decoding
    steps = asked.steps
    told = isinstance(asked.tau, tuple) or "timesteps" in known or "steps" in known
    if _has_pictures(inputs) and not told:
        steps = steps or DEFAULT_STEPS
    columns = asked.columns
    if columns is None and request.grid is not None:
        columns = request.grid[1]
    elif columns is None and request.frames <= _ONE_ROW:
        columns = request.frames
    batch_size = recorded["settings"].get("batch_size") if recorded else asked.batch_size
    return replace(
        asked,
        steps=steps,
        eta=0.0,
        variance="eta",
        latents=None,
        save=("grid", "images", "latents"),
        format="png",
        columns=columns,
        batch_size=batch_size,
    )


def _has_pictures(inputs: Sequence[Input]) -> bool:
    return any(isinstance(i.source, Path) for i in inputs)


def _plan(
    request: InterpolateRequest,
    decoding: SampleRequest,
    inputs: Sequence[Input],
    known: dict[str, Any],
    checkpoint: Checkpoint,
    device: torch.device,
    precision: str,
) -> Plan:
    """The decoding, settled; its x_T is a stand-in of the right shape."""
    rows, columns = request.grid or (1, request.frames)
    count = rows * columns
    shape = next((i.source.shape for i in inputs if isinstance(i.source, Tensor)), None)
    channels, *native = checkpoint.sample_shape
    stand_in = torch.zeros(()).expand(count, *(shape or (channels, *(decoding.size or native))))
    label = common_label(inputs, decoding.classes, checkpoint)
    known = known | {"method": request.path}
    if label is not None:
        known["labels"] = [label] * count
    return make_plan(decoding, checkpoint, LatentFile(stand_in, known), device, precision)


def _latents(
    inputs: Sequence[Input],
    plan: Plan,
    checkpoint: Checkpoint,
    device: torch.device,
    report: Report,
) -> Tensor:
    """The latents (K, C, H, W) of all inputs, float32, with a warning for atypical ones."""
    pictures = [i.source for i in inputs if isinstance(i.source, Path)]
    inverted: dict[Path, Tensor] = {}
    if pictures:
        found = picture_latents(pictures, plan, checkpoint, device, report)
        inverted = dict(zip(pictures, found, strict=True))
    latents = torch.stack([_latent(i.source, plan, inverted) for i in inputs])
    means, stds = latent_statistics(latents)
    for i, mean, std, odd in zip(inputs, means, stds, is_atypical(latents), strict=True):
        if odd:
            report(
                Notice(
                    f"{i.name} is unlike noise (mean {mean:.2f}, deviation {std:.2f}, not 0 and 1): "
                    "the pictures near it may be unlike the model's."
                )
            )
    return latents


def _latent(source: Tensor | Path | int, plan: Plan, inverted: Mapping[Path, Tensor]) -> Tensor:
    if isinstance(source, Path):
        return inverted[source]
    return seeded_noise([source], plan.shape)[0] if isinstance(source, int) else source


def _frames(request: InterpolateRequest, inputs: Sequence[Input], latents: Tensor) -> Tensor:
    """The frames' latents (F, C, H, W); where two inputs have no path, the error names them."""
    path = paths.PATHS[request.path]
    places = []
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3)]  # the sides of a grid
    if request.grid is None:
        places = paths.frame_positions(len(inputs), request.frames, request.loop)
        pairs = list(dict.fromkeys((place.start, place.end) for place in places))
    for start, end in pairs:
        try:
            path(latents[start], latents[end], 0.5)
        except RequestError as error:
            raise RequestError(
                f"from {inputs[start].name} to {inputs[end].name}: {error.cause}", error.remedy
            ) from error
    if request.grid is not None:
        return paths.grid(latents, *request.grid, path)
    return paths.tour(latents, places, path)


def _layout(request: InterpolateRequest, captions: Sequence[str], latents: Tensor) -> Layout:
    """The frames' names, captions and records: who they are between, or where in the grid."""
    details: dict[str, Any] = {
        "path": request.path,
        "inputs": [
            {"name": caption, "latent_sha256": latent_sha256(latent)}
            for caption, latent in zip(captions, latents, strict=True)
        ],
    }
    if request.grid is not None:
        rows, columns = request.grid
        return replace(
            LAYOUT,
            captions=(),
            details=details | {"grid": [rows, columns]},
            records=[
                {"row": row, "column": column}
                for row, column in product(range(rows), range(columns))
            ],
        )
    places = paths.frame_positions(len(captions), request.frames, request.loop)
    return replace(
        LAYOUT,
        captions=tuple("" if p.shows is None else captions[p.shows] for p in places),
        video=request.video,
        fps=request.fps,
        loop=request.loop,
        details=details | {"loop": request.loop},
        records=[{"from": p.start, "to": p.end, "weight": p.weight} for p in places],
    )
