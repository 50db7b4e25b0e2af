"""How near few steps come to a thousand: the tables of docs/quality.md, for any checkpoint.

    python benchmarks/quality.py

Images of the same seeds and classes, each compared with what DDIM makes of it in all T steps, by
the root mean square error of images in [0, 1], and by the PSNR that this is; medians. Everything
measured is kept in --keep, so that the same command goes on where it was stopped.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import ddimctl
from ddimctl.checkpoints import Checkpoint
from ddimctl.diffusion.multistep import SOLVERS
from ddimctl.diffusion.tau_search import FINE
from ddimctl.diffusion.timesteps import AUTO, KINDS
from ddimctl.files.atomic import write_json
from ddimctl.files.latents import load_latents, save_samples
from ddimctl.jobs.checkpoint import Model, open_checkpoint
from ddimctl.jobs.events import ignore
from ddimctl.jobs.requests import CheckpointOptions, SamplerOptions
from ddimctl.jobs.sample.auto_timesteps import Search, find_timesteps
from ddimctl.jobs.sample.plan import Plan, image_labels, make_plan, resolve_sampler
from ddimctl.runtime.device import resolve_device

BATCH = 16


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line, by default the process's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ckpt", help="instead of the bundled one")
    parser.add_argument("--seeds", type=int, default=32, help="images compared (32)")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 15, 20, 40, 100])
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--tau", nargs="+", choices=[*KINDS, AUTO], default=[*KINDS, AUTO])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep", type=Path, default=Path("quality"), help="folder (quality/)")
    return parser.parse_args(argv)


def main() -> None:
    options = parse()
    rows = measure(options)
    print(table("RMSE", options.steps, rows, rmse))
    print(table("PSNR, dB", options.steps, rows, psnr))


def rmse(figure: float) -> str:
    return f"{figure:.4f}"


def psnr(figure: float) -> str:
    return f"{-20 * math.log10(figure):.1f}"


def measure(options: argparse.Namespace) -> dict[tuple[str, str], list[float | None]]:
    """The median RMSE by solver and timesteps, for each number of steps; what is kept is not redone."""
    device = resolve_device(options.device)
    seeds = range(options.seeds)
    checkpoint = open_checkpoint(CheckpointOptions(ckpt=options.ckpt), {}, device, "fp32")
    keep = options.keep / (checkpoint.provenance.sha256[:12] or "network")
    reference = thousand_steps(seeds, checkpoint, keep, device)
    rows: dict[tuple[str, str], list[float | None]] = {}
    for solver in options.solvers:
        for tau in options.tau:
            kept = keep / f"{solver}-{tau}-{options.seeds}.json"
            known = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
            for steps in options.steps:
                if str(steps) in known or (tau == AUTO and steps > FINE // 2):
                    continue
                asked = {"solver": solver, "tau": tau, "steps": steps}
                found = images(planned(seeds, checkpoint, device, **asked), checkpoint, device)
                known[str(steps)] = distances(found, reference).median().item()
                write_json(kept, known)
                print(f"{solver} {tau} {steps}: {known[str(steps)]:.4f}", flush=True)
            rows[solver, tau] = [known.get(str(steps)) for steps in options.steps]
    return rows


def thousand_steps(
    seeds: Sequence[int], checkpoint: Checkpoint, keep: Path, device: torch.device
) -> Tensor:
    """The images (N, C, H, W) in [0, 1] that DDIM makes in all T steps."""
    path = keep / f"reference-{len(seeds)}.pt"
    if path.exists():
        return as_images(load_latents(path, key="samples").latents)
    print("the reference, once; minutes on a CPU", flush=True)
    T = checkpoint.schedule.num_train_timesteps
    plan = planned(seeds, checkpoint, device, steps=T, tau="linspace", solver="ddim")
    samples = decode(plan, checkpoint, device)
    save_samples(path, samples, {})
    return as_images(samples)


def planned(
    seeds: Sequence[int],
    checkpoint: Checkpoint,
    device: torch.device,
    steps: int,
    tau: str,
    solver: str,
) -> Plan:
    """As `ddimctl sample` would, timesteps searched for where they have to be."""
    options = SamplerOptions(steps=steps, timesteps=tau, solver=solver)
    shape = checkpoint.sample_shape
    settings = resolve_sampler(options, {}, checkpoint)
    return make_plan(
        find_timesteps(
            settings, Model(checkpoint, device, "fp32"), shape, Search(batch_size=BATCH), ignore
        ),
        shape=shape,
        seeds=seeds,
        labels=image_labels(None, {}, checkpoint, seeds),
        precision="fp32",
        batch_size=BATCH,
    )


def decode(plan: Plan, checkpoint: Checkpoint, device: torch.device) -> Tensor:
    """x_0 (N, C, H, W) of every image of the plan, on the CPU."""
    done = []
    for first in range(0, plan.count, BATCH):
        group = range(first, min(first + BATCH, plan.count))
        labels = None
        if plan.labels is not None:
            labels = torch.tensor([plan.labels[i] for i in group], device=device)
        x_0 = ddimctl.sample(
            checkpoint,
            plan.start(group, device),
            timesteps=plan.timesteps,
            solver=plan.sampler.solver,
            labels=labels,
        )
        done.append(x_0.cpu())
    return torch.cat(done)


def images(plan: Plan, checkpoint: Checkpoint, device: torch.device) -> Tensor:
    return as_images(decode(plan, checkpoint, device))


def as_images(x_0: Tensor) -> Tensor:
    """From [-1, 1] nominal to [0, 1], clamped as files are, not rounded."""
    return (x_0.double().clamp(-1, 1) + 1) / 2


def distances(found: Tensor, reference: Tensor) -> Tensor:
    """(N,): the root mean square error of each image."""
    return (found - reference).square().flatten(1).mean(1).sqrt()


def table(
    what: str,
    steps: Sequence[int],
    rows: Mapping[tuple[str, str], Sequence[float | None]],
    shown: Callable[[float], str],
) -> str:
    """As Markdown; – where there is no figure."""
    lines = [f"{what}:", "", f"| solver | timesteps | {' | '.join(f'S = {S}' for S in steps)} |"]
    lines.append("|---|---|" + "---|" * len(steps))
    for (solver, tau), figures in rows.items():
        cells = ["–" if figure is None else shown(figure) for figure in figures]
        lines.append(f"| {solver} | {tau} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
