"""`make bench`: ddimctl beside a diffusers script and beside its own limits, as ratios of one run.

Every measured command runs several times, ours and theirs in turn; the fastest of each counts.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from PIL import Image
from processes import one_and_many
from torch.utils.flop_counter import FlopCounterMode

from ddimctl.api.sampling import invert
from ddimctl.api.sampling import sample as sample_x_0
from ddimctl.checkpoints import Checkpoint, Provenance, checkpoint_files, load_checkpoint
from ddimctl.checkpoints.build.architectures import architecture, make_unet
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.files.dataset.datasets import gather, load_dataset, sample_indices
from ddimctl.files.pictures.images import from_uint8, image_pixels, read_image
from ddimctl.jobs.events import Event, Progress
from ddimctl.jobs.option import make_request
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.request import SampleRequest
from ddimctl.runtime.allocator import keep_freed_memory
from ddimctl.runtime.device import prepare_for_inference

HERE = Path(__file__).parent
PARTS = ("start", "steady", "steps", "invert", "train", "processes")

# In a small process between, since Linux begins a program's peak with that of what started it.
MEASURING: Final = """
import resource, subprocess, sys, time
began = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""

# As the command, but over when the network was asked once.
FIRST_EVALUATION: Final = """
import os
from ddimctl.checkpoints.model import Checkpoint
from ddimctl.cli.main import main
network = Checkpoint.network
Checkpoint.network = lambda *given: (network(*given), os._exit(0))
main()
"""


@dataclass
class Row:
    """One measurement: what, the figure, and the target it is held against."""

    what: str
    figure: str
    target: str


class Spent(NamedTuple):
    """By a command: seconds, and its peak memory in MB."""

    seconds: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=PARTS, help="one part")
    options = parser.parse_args()
    rows: list[Row] = []
    keep_freed_memory()  # as the command does
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "start"):
            rows += start_rows(folder, options.repeats)
        if options.only in (None, "steady"):
            rows += steady_rows(folder, options.repeats)
        if options.only in (None, "steps"):
            rows += [steps_row(folder), products_row(folder)]
        if options.only in (None, "invert"):
            rows += [inversion_row(options.repeats)]
        if options.only in (None, "train"):
            rows += training_rows(folder, options.repeats)
        if options.only in (None, "processes"):
            rows += [processes_row(options.repeats)]
    print(
        f"\n{torch.get_num_threads()} threads, torch {version('torch')}, "
        f"diffusers {version('diffusers')}\n"
    )
    width = max(len(row.what) for row in rows)
    for row in rows:
        print(f"{row.what:{width}}  {row.figure:32}  {row.target}")


def start_rows(folder: Path, repeats: int) -> list[Row]:
    """--help, and the way from the command to the first evaluation and to the file."""
    command = [sys.executable, "-m", "ddimctl", "--help"]
    seconds = min(timed(command, folder / "none").seconds for _ in range(2 * repeats))
    rows = [Row("--help", f"{seconds:.2f} s", "<= 0.4 s"), first_evaluation_row(folder, repeats)]
    for count, target in ((1, ">= 1.4x"), (16, ">= 1.08x")):
        ours, theirs, _ = in_turn(folder, count, 1, repeats)
        figure = f"{theirs / ours:.2f}x ({ours:.2f} s, theirs {theirs:.2f} s)"
        rows.append(Row(f"{count} image(s), cold start to file, against diffusers", figure, target))
    return rows


def first_evaluation_row(folder: Path, repeats: int) -> Row:
    """Seconds from the command to the end of the first evaluation, beside those of `import torch`."""
    out, torch_alone = folder / "out", [sys.executable, "-c", "import torch"]
    ours = [sys.executable, "-c", FIRST_EVALUATION, "sample", "-n", "1", "--out", str(out)]
    ours += ["--ckpt", str(write_cifar10(folder / "cifar10"))]
    measured = [(timed(ours, out), timed(torch_alone, out)) for _ in range(repeats)]
    first, alone = (min(pair[side].seconds for pair in measured) for side in (0, 1))
    figure = f"{first - alone:.2f} s ({first:.2f} s, import torch {alone:.2f} s)"
    return Row("first evaluation, after what import torch takes", figure, "<= 2.5 s")


def steady_rows(folder: Path, repeats: int) -> list[Row]:
    """Batches of 16 once all is warm, by what three of them take longer than one; and the memory."""
    ours, theirs, peaks = in_turn(folder, 16, 1, repeats)
    ours_3, theirs_3, _ = in_turn(folder, 16, 3, repeats)
    a, b = 32 / (ours_3 - ours), 32 / (theirs_3 - theirs)
    figure = f"{peaks[0] / peaks[1]:.2f}x ({peaks[0]:.0f} MB, theirs {peaks[1]:.0f} MB)"
    return [
        Row(
            "images a second in batches of 16, against diffusers",
            f"{a / b:.2f}x ({a:.2f}, theirs {b:.2f})",
            ">= 1.1x",
        ),
        Row("peak memory of 16 images, against diffusers", figure, "<= 1x"),
    ]


def in_turn(
    folder: Path, count: int, batches: int, repeats: int
) -> tuple[float, float, tuple[float, float]]:
    """Seconds of our command and of the script, fastest of repeats, and their peaks in MB, lowest."""
    checkpoint, out = write_cifar10(folder / "cifar10"), folder / "out"
    ours = [sys.executable, "-m", "ddimctl", "sample", "--ckpt", str(checkpoint), "--steps", "20"]
    ours += ["-n", str(count * batches), "--batch-size", str(count), "--out", str(out)]
    theirs = [sys.executable, str(HERE / "diffusers_script.py")]
    theirs += [str(checkpoint), str(count), str(out), str(batches)]
    measured = [(timed(ours, out), timed(theirs, out)) for _ in range(repeats)]
    seconds = [min(pair[side].seconds for pair in measured) for side in (0, 1)]
    peaks = [min(pair[side].peak for pair in measured) for side in (0, 1)]
    return seconds[0], seconds[1], (peaks[0], peaks[1])


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
        request = make_request(
            SampleRequest,
            out=folder / "steps",
            ckpt=str(folder_of),
            seeds=tuple(range(16)),
            batch_size=8,
        )
        times: list[float] = []

        def report(event: Event) -> None:
            nonlocal inside
            if not times and isinstance(event, Progress):
                times.append(time.perf_counter())
                inside = 0.0
            last[0] = time.perf_counter()

        last = [0.0]
        sample(request, report)
    finally:
        Checkpoint.network = original  # type: ignore[method-assign]
    share = 1 - inside / (last[0] - times[0])
    return Row("time of the steps outside the network", f"{100 * share:.2f} %", "<= 1 %")


def products_row(folder: Path) -> Row:
    """The network's rate of multiplications beside that of the machine's large matrix products."""
    checkpoint = load_checkpoint(write_cifar10(folder / "cifar10"))
    x, t = torch.randn(16, 3, 32, 32), torch.full((16,), 500)
    a, b = torch.randn(2, 2048, 2048)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:  # it knows plain convolutions only
            checkpoint.network(x, t)
        prepare_for_inference(checkpoint.unet)
        network = counter.get_total_flops() / best(lambda: checkpoint.network(x, t), 5)
        products = 2 * 2048**3 / best(lambda: a @ b, 5)
    figure = (
        f"{100 * network / products:.0f} % ({network / 1e9:.0f} of {products / 1e9:.0f} GFLOP/s)"
    )
    return Row("the network's share of the matrix products' rate", figure, ">= 70 %")


def inversion_row(repeats: int) -> Row:
    """Evaluations a second of the exact inversion beside those of plain sampling, of 16 images:
    avatars, and the same mirrored and upside down, which take different numbers of evaluations."""
    avatars = sorted((HERE.parent / "examples" / "avatars").glob("*.png"))
    images = from_uint8(torch.stack([image_pixels(read_image(path, 3)) for path in avatars]))
    images = torch.cat((images, images.flip(3), images.flip(2), images.flip(2, 3)))[:16]
    checkpoint = load_checkpoint()
    prepare_for_inference(checkpoint.unet)
    labels = torch.full((16,), checkpoint.null_class or 0)
    tau = timesteps("linspace", 20, checkpoint.schedule.num_train_timesteps)
    x_T = seeded_noise(range(16), checkpoint.sample_shape)
    given: dict[str, Any] = {"timesteps": tau, "labels": labels}
    found = invert(checkpoint, images, **given)
    measured = [
        (
            best(lambda: invert(checkpoint, images, **given), 1),
            best(lambda: sample_x_0(checkpoint, x_T, **given), 3),
        )
        for _ in range(repeats)
    ]
    inverting, sampling = (min(pair[side] for pair in measured) for side in (0, 1))
    rates = int(found.evaluations.sum()) / inverting, 16 * len(tau) / sampling
    figure = f"{rates[0] / rates[1]:.2f}x ({rates[0]:.0f}, sampling {rates[1]:.0f})"
    return Row("evaluations a second of exact inversion, against sampling", figure, ">= 0.8x")


def training_rows(folder: Path, repeats: int) -> list[Row]:
    """Images a second: the loader alone, then training, beside a loop written by hand."""
    images, run = folder / "pictures", folder / "run"
    images.mkdir()
    noise = seeded_noise(range(2000), (3, 32, 32)).mul(40).add(128).clamp(0, 255).to(torch.uint8)
    for index, image in enumerate(noise):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(images / f"{index}.png")
    data = load_dataset(images, cache_dir=folder / "cache")

    def load(batches: int) -> None:
        for step in range(batches):
            chosen = data.training[sample_indices(0, step * 64, 64, len(data.training))]
            gather(data.pixels, chosen, torch.rand(64) < 0.5)

    loader = 64 * 200 / best(lambda: load(200), 3)
    command = [sys.executable, "-m", "ddimctl", "train", str(images), "--out", str(run)]
    command += ["--model", "small", "--steps", "60", "--batch-size", "16", "--log-every", "20"]
    theirs = [sys.executable, str(HERE / "plain_training.py")]
    rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
    plain: list[float] = []
    for _ in range(repeats):
        for precision, found in rates.items():
            timed([*command, "--precision", precision], run)
            lines = (run / "metrics.jsonl").read_text().splitlines()
            found += [
                rate for line in lines[1:] if (rate := json.loads(line).get("images_per_second"))
            ]
        ran = subprocess.run(theirs, check=True, capture_output=True, text=True)
        plain += map(float, ran.stdout.split())
    by_hand = statistics.median(plain)
    rows = [Row("loader alone, 32x32, batch 64, mirrored", f"{loader:,.0f} images/s", "")]
    for precision, found in rates.items():
        training = statistics.median(found)
        figure = f"{training / by_hand:.2f}x ({training:.0f} images/s, theirs {by_hand:.0f})"
        what = f"training in {precision}, 4.5 M weights, batch 16, against a plain loop in fp32"
        rows.append(Row(what, figure, ">= 1.3x"))
    share = 100 * training / loader
    return [*rows, Row("share of training that the loader takes", f"{share:.2f} %", "<= 1 %")]


def processes_row(repeats: int) -> Row:
    """Two processes of one thread each beside one: images a second once both run."""
    (one, two), _ = one_and_many(2, 64, batch_size=4, steps=20, repeats=repeats)
    figure = f"{two / one:.2f}x ({two:.2f} images/s, one process {one:.2f})"
    return Row("two processes of one thread, against one", figure, ">= 1.8x")


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


def timed(command: list[str], out: Path) -> Spent:
    """What a command takes that writes `out`, which is removed first."""
    shutil.rmtree(out, ignore_errors=True)
    measuring = [sys.executable, "-c", MEASURING, *command]
    ran = subprocess.run(measuring, check=True, stdout=subprocess.PIPE, text=True)
    seconds, kilobytes = map(float, ran.stdout.split())
    return Spent(seconds, kilobytes * 1024 / 1e6)


def best(work: Callable[[], object], repeats: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    main()
