"""`make bench`: ddimctl beside a diffusers script and beside its own limits, as ratios of one run.

Every measured command runs several times, ours and theirs in turn; the fastest of each counts.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ddimctl.checkpoints import Checkpoint, Provenance, checkpoint_files
from ddimctl.checkpoints.architectures import architecture, make_unet
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.files.datasets import gather, load_dataset, sample_indices
from ddimctl.jobs.sample import SampleRequest, sample
from ddimctl.jobs.train import train
from ddimctl.jobs.training_request import TrainRequest

HERE = Path(__file__).parent


@dataclass
class Row:
    """One measurement: what, the figure, and the target it is held against."""

    what: str
    figure: str
    target: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["start", "steps", "train"], help="one part")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "start"):
            rows += start_rows(folder, options.repeats)
        if options.only in (None, "steps"):
            rows += [steps_row(folder)]
        if options.only in (None, "train"):
            rows += training_rows(folder)
    print(
        f"\n{torch.get_num_threads()} threads, torch {version('torch')}, "
        f"diffusers {version('diffusers')}\n"
    )
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:{width}}  {row.figure:32}  {row.target}")


def start_rows(folder: Path, repeats: int) -> list[Row]:
    """--help, and the way from the command to the file for 1 and 16 pictures."""
    checkpoint = write_cifar10(folder / "cifar10")
    python = [sys.executable]
    seconds = min(
        timed([*python, "-m", "ddimctl", "--help"], folder / "none") for _ in range(2 * repeats)
    )
    rows = [Row("--help", f"{seconds:.2f} s", "<= 0.4 s")]
    for count, target in ((1, ">= 1.35x"), (16, ">= 1.08x")):
        out = folder / "out"
        ours = [*python, "-m", "ddimctl", "sample", "--ckpt", str(checkpoint), "--steps", "20"]
        ours += ["-n", str(count), "--out", str(out)]
        theirs = [*python, str(HERE / "diffusers_script.py"), str(checkpoint), str(count), str(out)]
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(repeats):
            times["ours"].append(timed(ours, out))
            times["theirs"].append(timed(theirs, out))
        a, b = min(times["ours"]), min(times["theirs"])
        figure = f"{b / a:.2f}x ({a:.2f} s, theirs {b:.2f} s)"
        rows.append(
            Row(f"{count} picture(s), cold start to file, against diffusers", figure, target)
        )
    return rows


def steps_row(folder: Path) -> Row:
    """The share of a run's steps that is not spent in the network."""
    folder_of = write_cifar10(folder / "cifar10")
    inside = 0.0
    original = Checkpoint.network

    def measured(self: Checkpoint, *arguments: Any) -> Any:
        nonlocal inside
        began = time.perf_counter()
        output = original(self, *arguments)
        inside += time.perf_counter() - began
        return output

    Checkpoint.network = measured  # type: ignore[method-assign]
    try:
        request = SampleRequest(
            out=folder / "steps", ckpt=str(folder_of), seeds=tuple(range(16)), batch_size=8
        )
        job = sample(request)
        began = None
        for event in job:
            if began is None and type(event).__name__ == "Progress":
                began, inside = time.perf_counter(), 0.0
            last = time.perf_counter()
    finally:
        Checkpoint.network = original  # type: ignore[method-assign]
    assert began is not None
    share = 1 - inside / (last - began)
    return Row("time of the steps outside the network", f"{100 * share:.2f} %", "<= 3 %")


def training_rows(folder: Path) -> list[Row]:
    """Pictures a second: the loader alone, then training with it."""
    pictures = folder / "pictures"
    pictures.mkdir()
    noise = seeded_noise(range(2000), (3, 32, 32)).mul(40).add(128).clamp(0, 255).to(torch.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(pictures / f"{index}.png")
    data = load_dataset(pictures, cache_dir=folder / "cache")

    def load(batches: int) -> None:
        for step in range(batches):
            chosen = data.training[sample_indices(0, step * 64, 64, len(data.training))]
            gather(data.pixels, chosen, torch.rand(64) < 0.5)

    loader = 64 * 200 / best(lambda: load(200), 3)
    request = TrainRequest(
        data=pictures, out=folder / "run", model="small", steps=40, batch_size=16, log_every=20
    )
    rates = [
        float(event.facts["images/s"])
        for event in train(request)
        if getattr(event, "facts", {}).get("images/s")
    ]
    training = rates[-1]
    return [
        Row("loader alone, 32x32, batch 64, mirrored", f"{loader:,.0f} images/s", ""),
        Row("training, small (4.5 M), batch 16, fp32", f"{training:,.0f} images/s", ""),
        Row(
            "share of training that the loader takes", f"{100 * training / loader:.2f} %", "<= 1 %"
        ),
    ]


def write_cifar10(folder: Path) -> Path:
    """The CIFAR-10 architecture of the paper with random weights, as a diffusers folder."""
    if folder.exists():
        return folder
    torch.manual_seed(0)
    unet = make_unet(architecture("cifar10", (3, 32, 32)))
    source = Provenance("cifar10", "diffusers", "raw")
    checkpoint = Checkpoint(unet, make_schedule(), "eps", False, (3, 32, 32), 8, source)
    for name, content in checkpoint_files(checkpoint).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def timed(command: list[str], out: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def best(work: Callable[[], None], repeats: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    main()
