"""`ddimctl interpolate`: latents, pictures or seeds in, the frames between them out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli.options import common as o
from ddimctl.cli.options import interpolate as own
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as s
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.errors import RequestError

if TYPE_CHECKING:
    from ddimctl.jobs.interpolate.job import InterpolateResult

DEFAULT_FRAMES = 16


def interpolate(
    inputs: own.Inputs = None,
    ckpt: o.Ckpt = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    allow_nonfinite: o.AllowNonfinite = False,
    seeds: own.EndSeeds = None,
    classes: own.Class = None,
    size: s.Size = None,
    yes: s.Yes = False,
    frames: own.Frames = None,
    path: own.PathOf = "slerp",
    loop: own.Loop = False,
    grid: own.Grid = None,
    steps: s.Steps = None,
    tau: s.Tau = None,
    solver: s.SolverOf = None,
    clip: s.ClipTo = None,
    guidance: s.Guidance = None,
    out: s.Out = None,
    video: own.Video = None,
    fps: own.FramesPerSecond = 12.0,
    scale: s.Scale = None,
    columns: s.Columns = None,
    no_metadata: s.NoMetadata = False,
    resume: s.Resume = False,
    force: o.Force = False,
    dry_run: s.DryRun = False,
    json: o.Json = False,
    batch_size: s.BatchSize = None,
    device: o.Device = "auto",
    precision: o.Compute = None,
    deterministic: s.Deterministic = False,
    compile: o.Compile = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Draw what lies between latents, pictures or seeds.

    The first and the last frame are the inputs' own pictures.
    Settings not given are those that the latents record.
    """
    _check_path(inputs, seeds, frames, grid, loop, video)
    ends: dict[str, Any] = {
        "files": tuple(inputs or ()),
        "seeds": parse.parse_seeds(seeds) if seeds is not None else (),
        "grid": parse.parse_size(grid, "--grid") if grid is not None else None,
    }
    settings: dict[str, Any] = {
        "flags": parse.parse_flags(model_flags),
        "tau": parse.parse_tau(tau, steps) if tau is not None else None,
        "classes": parse.parse_classes(classes) if classes is not None else None,
        "size": parse.parse_size(size, "--size") if size is not None else None,
    }
    from ddimctl.jobs.interpolate.job import InterpolateRequest
    from ddimctl.jobs.interpolate.job import interpolate as job
    from ddimctl.jobs.sample.plan import SampleRequest

    decoding = SampleRequest(
        out=out,
        ckpt=ckpt,
        revision=revision,
        variant=variant,
        weights=weights,
        allow_nonfinite=allow_nonfinite,
        steps=steps,
        solver=solver,
        clip=clip,
        batch_size=batch_size,
        guidance=guidance,
        yes=yes,
        device=device,
        precision=precision,
        scale=scale,
        columns=columns,
        metadata=not no_metadata,
        resume=resume,
        force=force,
        dry_run=dry_run,
        deterministic=deterministic,
        compile=compile,
        **settings,
    )
    request = InterpolateRequest(
        frames=frames or DEFAULT_FRAMES,
        path=path,
        loop=loop,
        video=video,
        fps=fps,
        decoding=decoding,
        **ends,
    )
    result = run_job(job, request)
    record = _record(result)
    if dry_run:
        del record["outputs"], record["seconds"]
    lines = listing(record) if dry_run else [str(path) for path in result.outputs.values()]
    print_result(lines, record, json)


def _check_path(
    inputs: list[Path] | None,
    seeds: str | None,
    frames: int | None,
    grid: str | None,
    loop: bool,
    video: str | None,
) -> None:
    """The job's own checks, before the seconds that its imports take."""
    if not inputs and seeds is None:
        raise RequestError(
            "there is nothing to interpolate between.",
            "Name two latents or pictures, or seeds with --seeds 3,9.",
        )
    if grid is not None:
        given = {"--frames": frames is not None, "--loop": loop, "--video": video is not None}
        for option in (name for name, present in given.items() if present):
            raise RequestError(
                f"{option} is for a path, not for a --grid.", f"Leave {option} or --grid out."
            )


def _record(result: "InterpolateResult") -> dict[str, Any]:
    return {
        "out": None if result.out is None else str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "inputs": list(result.inputs),
        "frames": result.frames,
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }
