"""--tau auto: timesteps chosen for a checkpoint, by a probe that is kept in the user's cache.

The checkpoint in the package has its timesteps beside it: examples/bundled_timesteps.py makes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.checkpoints.load import BUNDLED
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.tau_search import Probe, choose_timesteps, probe, probe_evaluations
from ddimctl.diffusion.timesteps import explicit_timesteps
from ddimctl.errors import StorageError
from ddimctl.files.atomic import write_json
from ddimctl.files.cache import make_room, mark_used
from ddimctl.files.dataset.datasets import user_cache
from ddimctl.jobs.events import Notice, Progress, Report
from ddimctl.jobs.sample.batch_size import default_batch_size
from ddimctl.jobs.sample.plan import Plan, SampleRequest, drawn_labels
from ddimctl.jobs.sample.records import sha256_hex
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.ranks import Ranks

BUNDLED_FILE: Final = BUNDLED / "timesteps.json"
IMAGES: Final = 32
_FIRST_SEED: Final = 2**32  # away from those that pictures are made of
_DIGITS: Final = 9
_VERSION: Final = 1


def resolve_timesteps(
    request: SampleRequest,
    plan: Plan,
    checkpoint: Checkpoint,
    device: torch.device,
    report: Report,
    ranks: Ranks | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Plan:
    """The plan with the timesteps of --tau auto, looked up or found; any other plan as it is.

    recorded: the manifest of the run to go on with, which has them. With request.dry_run they are
    only looked up, and left out where they are not known. Of several processes the first finds
    them, for all.
    """
    if not plan.searched:
        return plan
    ranks = ranks or Ranks()
    tau = None
    if ranks.first:
        tau = _recorded_timesteps(recorded, plan)
        tau = tau or _find_timesteps(request, plan, checkpoint, device, report)
    tau = ranks.share("timesteps", tau)
    if tau is None:
        settings = {k: v for k, v in plan.settings.items() if k != "timesteps"}
        return replace(plan, settings=settings)
    return with_timesteps(plan, tau)


def with_timesteps(plan: Plan, tau: Sequence[int]) -> Plan:
    """The plan, in which timesteps only stood in for these."""
    settings = plan.settings | {"timesteps": list(tau)}
    return replace(plan, settings=settings, tau=tuple(tau), searched=False)


def _find_timesteps(
    request: SampleRequest, plan: Plan, checkpoint: Checkpoint, device: torch.device, report: Report
) -> tuple[int, ...] | None:
    """The timesteps, or None where a dry run would have to search for them."""
    key, solver, steps = search_key(plan, checkpoint), plan.settings["solver"], len(plan.tau)
    T = checkpoint.schedule.num_train_timesteps
    if tau := _bundled_timesteps(key, solver, steps, T):
        return tau
    cache = user_cache() / "timesteps" / f"{key}.json" if key else None
    found = None if cache is None else _kept(cache)
    if found is None:
        evaluations = IMAGES * probe_evaluations(T)
        does = "takes" if request.dry_run else "is found once, with"
        report(Notice(f"--tau auto {does} {evaluations} evaluations for this checkpoint."))
        if request.dry_run:
            return None
        guidance = plan.settings["guidance"]
        batch_size = request.batch_size or default_batch_size(
            checkpoint, plan.shape, device, guidance
        )
        with memory_errors("Use a smaller --batch-size."):
            found = probe_checkpoint(plan, checkpoint, batch_size, device, report)
        if cache is not None:
            _keep(cache, found)
    return choose_timesteps(found, checkpoint.schedule, steps, solver)


def probe_checkpoint(
    plan: Plan, checkpoint: Checkpoint, batch_size: int, device: torch.device, report: Report
) -> Probe:
    """Probe the checkpoint with the plan's guidance, clipping and size, of classes as drawn."""
    seeds = [_FIRST_SEED + i for i in range(IMAGES)]
    labels = None if checkpoint.num_classes is None else drawn_labels(seeds, checkpoint)

    def start(images: range) -> tuple[Tensor, Tensor | None]:
        x_T = seeded_noise([seeds[i] for i in images], plan.shape, device=device)
        own = None if labels is None else torch.tensor([labels[i] for i in images], device=device)
        return x_T, own

    denoise = make_denoiser(checkpoint, plan.settings["guidance"], plan.settings["clip"])
    batches = -(-IMAGES // batch_size)
    total = batches * probe_evaluations(checkpoint.schedule.num_train_timesteps)
    with torch.inference_mode(), ieee_float32():
        found = probe(
            denoise,
            checkpoint.schedule,
            start,
            IMAGES,
            batch_size,
            on_step=lambda done: report(Progress("choosing timesteps", done, total, "steps")),
        )
    return _rounded(found)  # as it will be read again


def search_key(plan: Plan, checkpoint: Checkpoint) -> str:
    """The hash of all that a probe depends on; empty for a network that is in no file."""
    if not checkpoint.provenance.sha256:
        return ""
    depends = {
        "version": _VERSION,
        "checkpoint": checkpoint.provenance.sha256,
        "weights": checkpoint.provenance.weights,
        "flags": dict(checkpoint.provenance.flags),
        "schedule": checkpoint.schedule.settings,
        "prediction": checkpoint.prediction,
        **{name: plan.settings[name] for name in ("guidance", "clip", "size")},
    }
    return sha256_hex(json.dumps(depends, sort_keys=True).encode())


def _recorded_timesteps(recorded: Mapping[str, Any] | None, plan: Plan) -> tuple[int, ...] | None:
    """Those that the run began with: another machine's rounding might choose others."""
    settings = (recorded or {}).get("settings", {})
    tau, T = settings.get("timesteps"), plan.tau[-1] + 1  # what stands in ends at T - 1
    same = all(settings.get(name) == plan.settings[name] for name in ("tau", "steps", "solver"))
    if not same or not isinstance(tau, list) or not all(type(t) is int for t in tau):
        return None
    return explicit_timesteps(tau, T) if len(tau) == len(plan.tau) else None


def _bundled_timesteps(key: str, solver: str, steps: int, T: int) -> tuple[int, ...] | None:
    """Those in the package for the probe of this key, or None."""
    known = json.loads(BUNDLED_FILE.read_text("utf-8"))
    if known["key"] != key or str(steps) not in known["timesteps"][solver]:
        return None
    return explicit_timesteps(known["timesteps"][solver][str(steps)], T)


def _kept(path: Path) -> Probe | None:
    """The probe in the cache, or None where it is missing or damaged: it is made again."""
    try:
        known = json.loads(path.read_text("utf-8"))
        timesteps = tuple(map(int, known["timesteps"]))
        products = torch.tensor(known["products"], dtype=torch.float64)
        response = torch.tensor(known["response"], dtype=torch.float64)
    except (OSError, LookupError, TypeError, ValueError):
        return None
    N = len(timesteps)
    mark_used(path)
    fits = products.shape == (2 * N, 2 * N) and response.shape == (N,)
    return Probe(timesteps, products, response) if fits else None


def _keep(path: Path, found: Probe) -> None:
    try:
        write_json(
            path,
            {
                "timesteps": list(found.timesteps),
                "products": found.products.tolist(),
                "response": found.response.tolist(),
            },
        )
        make_room(path)
    except StorageError:  # a read-only home: the next run makes it again
        return


def _rounded(found: Probe) -> Probe:
    def each(numbers: Tensor) -> Tensor:
        short = [float(f"{x:.{_DIGITS}g}") for x in numbers.flatten().tolist()]
        return torch.tensor(short, dtype=torch.float64).view_as(numbers)

    return Probe(found.timesteps, each(found.products), each(found.response))
