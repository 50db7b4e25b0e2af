"""--tau auto: timesteps chosen for a checkpoint, by a probe that is kept in the user's cache.

The checkpoint in the package has its timesteps beside it: examples/bundled_timesteps.py makes them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from ddimctl.files.untrusted.guards import Refused
from ddimctl.files.untrusted.settings import JsonObject, read_json
from ddimctl.jobs.checkpoint import Model
from ddimctl.jobs.events import Notice, Progress, Report
from ddimctl.jobs.sample.batches import default_batch_size
from ddimctl.jobs.sample.manifest import sha256_hex
from ddimctl.jobs.sample.plan import SamplerSettings, Shape, drawn_labels
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.distributed import Ranks

BUNDLED_FILE: Final = BUNDLED / "timesteps.json"
IMAGES: Final = 32
_FIRST_SEED: Final = 2**32  # away from those that images are made of
_DIGITS: Final = 9
_VERSION: Final = 1


@dataclass(frozen=True)
class Search:
    """How the timesteps of --tau auto are found. batch_size None: by device.

    recorded: the manifest of the run to continue, which has them.  ranks: the processes of the run.
    """

    batch_size: int | None = None
    dry_run: bool = False
    recorded: JsonObject | None = None
    ranks: Ranks = field(default_factory=Ranks)


def find_timesteps(
    sampler: SamplerSettings,
    model: Model,
    shape: Shape,
    search: Search,
    report: Report,
) -> SamplerSettings:
    """The settings with the timesteps of --tau auto, looked up or found; any others as they are.

    shape: (C, H, W). In a dry run they are only looked up, and left out where they are not known.
    Of several processes the first finds them, for all.
    """
    if sampler.timesteps is not None:
        return sampler
    found, ranks = None, search.ranks
    if ranks.first:
        found = _recorded_timesteps(search.recorded, sampler, model.checkpoint)
        found = found or _search(sampler, model, shape, search, report)
    found = ranks.share(found)
    return sampler if found is None else replace(sampler, timesteps=tuple(found))


def _search(
    sampler: SamplerSettings,
    model: Model,
    shape: Shape,
    search: Search,
    report: Report,
) -> tuple[int, ...] | None:
    """The timesteps, or None where a dry run would have to search for them."""
    checkpoint, device = model.checkpoint, model.device
    key = search_key(sampler, checkpoint, shape)
    T = checkpoint.schedule.num_train_timesteps
    if bundled := _bundled_timesteps(key, sampler.solver, sampler.steps, T):
        return bundled
    cache = user_cache() / "timesteps" / f"{key}.json" if key else None
    found = None if cache is None else _kept(cache)
    if found is None:
        evaluations = IMAGES * probe_evaluations(T)
        cost = f"{evaluations} evaluations of this checkpoint"
        report(Notice(f"--tau auto searches once for its timesteps, which takes {cost}."))
        if search.dry_run:
            return None
        size = search.batch_size or default_batch_size(checkpoint, shape, device, sampler.guidance)
        with memory_errors("Use a smaller --batch-size."):
            found = probe_checkpoint(sampler, checkpoint, shape, size, device, report)
        if cache is not None:
            _keep(cache, found)
    return choose_timesteps(found, checkpoint.schedule, sampler.steps, sampler.solver)


def probe_checkpoint(
    sampler: SamplerSettings,
    checkpoint: Checkpoint,
    shape: Shape,
    batch_size: int,
    device: torch.device,
    report: Report,
) -> Probe:
    """Probe the checkpoint with these settings' guidance and clipping, of classes as drawn."""
    seeds = [_FIRST_SEED + i for i in range(IMAGES)]
    labels = None if checkpoint.num_classes is None else drawn_labels(seeds, checkpoint)

    def start(images: range) -> tuple[Tensor, Tensor | None]:
        x_T = seeded_noise([seeds[i] for i in images], shape, device=device)
        own = None if labels is None else torch.tensor([labels[i] for i in images], device=device)
        return x_T, own

    denoise = make_denoiser(checkpoint, sampler.guidance, sampler.clip)
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


def search_key(sampler: SamplerSettings, checkpoint: Checkpoint, shape: Shape) -> str:
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
        "guidance": sampler.guidance,
        "clip": sampler.clip,
        "size": list(shape[1:]),
    }
    return sha256_hex(json.dumps(depends, sort_keys=True).encode())


def _recorded_timesteps(
    recorded: Mapping[str, Any] | None, sampler: SamplerSettings, checkpoint: Checkpoint
) -> tuple[int, ...] | None:
    """Those that the run began with: another machine's rounding might choose others."""
    settings, now = (recorded or {}).get("settings", {}), sampler.record()
    found = settings.get("timesteps")
    same = all(settings.get(name) == now[name] for name in ("tau", "steps", "solver"))
    if not same or not isinstance(found, list) or not all(type(t) is int for t in found):
        return None
    if len(found) != sampler.steps:
        return None
    return explicit_timesteps(found, checkpoint.schedule.num_train_timesteps)


def _bundled_timesteps(key: str, solver: str, steps: int, T: int) -> tuple[int, ...] | None:
    """Those in the package for the probe of this key, or None."""
    bundled = json.loads(BUNDLED_FILE.read_text("utf-8"))
    if bundled["key"] != key or str(steps) not in bundled["timesteps"][solver]:
        return None
    return explicit_timesteps(bundled["timesteps"][solver][str(steps)], T)


def _kept(path: Path) -> Probe | None:
    """The probe in the cache, or None where it is missing or damaged: it is made again."""
    try:
        found = read_json(path)
        timesteps = tuple(map(int, found["timesteps"]))
        products = torch.tensor(found["products"], dtype=torch.float64)
        response = torch.tensor(found["response"], dtype=torch.float64)
    except (Refused, OSError, LookupError, TypeError, ValueError):
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
