"""`ddimctl sample`: seeds or latents in, pictures out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddimctl.cli.options import common as o
from ddimctl.cli.options import parse
from ddimctl.cli.options import sample as own
from ddimctl.cli.output.console import print_result, run_job
from ddimctl.cli.output.listing import listing
from ddimctl.errors import RequestError

if TYPE_CHECKING:
    from ddimctl.jobs.sample.job import SampleResult

DEFAULT_NUMBER = 16


def sample(
    ckpt: o.Ckpt = None,
    revision: o.Revision = None,
    variant: o.Variant = None,
    weights: o.WeightsOf = "auto",
    model_flags: o.ModelFlags = None,
    allow_nonfinite: o.AllowNonfinite = False,
    seeds: own.Seeds = None,
    num: own.Number = None,
    seed: own.Seed = None,
    classes: own.Classes = None,
    latents: own.Latents = None,
    yes: own.Yes = False,
    size: own.Size = None,
    steps: own.Steps = None,
    tau: own.Tau = None,
    eta: own.Eta = None,
    variance: own.VarianceOf = None,
    solver: own.SolverOf = None,
    clip: own.ClipTo = None,
    guidance: own.Guidance = None,
    out: own.Out = None,
    save: own.Save = "grid,images,latents",
    scale: own.Scale = None,
    columns: own.Columns = None,
    format: own.Format = "png",
    no_metadata: own.NoMetadata = False,
    resume: own.Resume = False,
    force: o.Force = False,
    dry_run: own.DryRun = False,
    json: o.Json = False,
    batch_size: own.BatchSize = None,
    device: o.Device = "auto",
    precision: o.Compute = None,
    deterministic: own.Deterministic = False,
    compile: o.Compile = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Draw pictures from a checkpoint.

    The image of a seed is the same whatever the batch and the other seeds.
    """
    settings: dict[str, Any] = {
        "flags": parse.parse_flags(model_flags),
        "seeds": _seeds(seeds, num, seed, latents),
        "classes": parse.parse_classes(classes) if classes is not None else None,
        "size": parse.parse_size(size, "--size") if size is not None else None,
        "tau": parse.parse_tau(tau, steps) if tau is not None else None,
        "save": parse.parse_choices(save, "--save", own.SAVED),
    }
    from ddimctl.jobs.sample.job import sample as job
    from ddimctl.jobs.sample.plan import SampleRequest

    request = SampleRequest(
        out=out,
        ckpt=ckpt,
        revision=revision,
        variant=variant,
        weights=weights,
        allow_nonfinite=allow_nonfinite,
        steps=steps,
        eta=eta,
        variance=variance,
        solver=solver,
        clip=clip,
        batch_size=batch_size,
        guidance=guidance,
        latents=latents,
        yes=yes,
        device=device,
        precision=precision,
        scale=scale,
        columns=columns,
        format=format,
        metadata=not no_metadata,
        resume=resume,
        force=force,
        dry_run=dry_run,
        deterministic=deterministic,
        compile=compile,
        **settings,
    )
    result = run_job(job, request)
    record = _record(result)
    if dry_run:
        del record["outputs"], record["seconds"]
    lines = listing(record) if dry_run else _paths(result)
    print_result(lines, record, json)


def _seeds(
    seeds: str | None, num: int | None, seed: int | None, latents: Path | None
) -> tuple[int, ...]:
    """--seeds, else -n of them from --seed on; none of the three beside --latents."""
    if latents is not None and (seeds, num, seed) != (None, None, None):
        raise RequestError(
            "--latents brings its own images; --seeds, -n and --seed draw others.",
            "Leave one side out.",
        )
    if seeds is None:
        first, count = seed or 0, num or DEFAULT_NUMBER
        if first + count - 1 > parse.MAX_SEED:
            raise RequestError(f"--seed {first}: seeds end at 2^63 - 1.", "Begin lower.")
        return tuple(range(first, first + count))
    if (num, seed) != (None, None):
        raise RequestError(
            "--seeds names every image; -n and --seed count them off.", "Leave one side out."
        )
    return parse.parse_seeds(seeds)


def _paths(result: "SampleResult") -> list[str]:
    """The outputs' paths; grid and manifest last, where one looks."""
    last = [kind for kind in ("grid", "manifest") if kind in result.outputs]
    kinds = [kind for kind in result.outputs if kind not in last]
    return [str(result.outputs[kind]) for kind in (*kinds, *last)]


def _record(result: "SampleResult") -> dict[str, Any]:
    return {
        "out": None if result.out is None else str(result.out),
        "outputs": {kind: str(path) for kind, path in result.outputs.items()},
        "seeds": list(result.seeds),
        "seconds": round(result.seconds, 3),
        "settings": result.settings,
    }
