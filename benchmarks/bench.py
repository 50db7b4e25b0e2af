"""`make bench`: ddimctl beside a diffusers script and beside its own limits, as ratios of one run.

Every measured command runs several times, ours and theirs in turn; the fastest of each counts.
"""

import argparse
import copy
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
from torch.utils.flop_counter import FlopCounterMode

from ddimctl.checkpoints import Checkpoint, Provenance, checkpoint_files, load_checkpoint
from ddimctl.checkpoints.architectures import architecture, make_unet
from ddimctl.diffusion.inversion import invert
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.sampling import sample as sample_x_0
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.files.datasets import gather, load_dataset, sample_indices
from ddimctl.files.images import from_uint8, picture_pixels, read_picture
from ddimctl.jobs.sample import SampleRequest, sample
from ddimctl.jobs.train import train
from ddimctl.jobs.training_request import TrainRequest
from ddimctl.runtime.device import prepare_for_inference

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
    parser.add_argument("--only", choices=["start", "steps", "invert", "train"], help="one part")
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "start"):
            rows += start_rows(folder, options.repeats)
        if options.only in (None, "steps"):
            rows += [steps_row(folder), products_row(folder)]
        if options.only in (None, "invert"):
            rows += [inversion_row(folder)]
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


def inversion_row(folder: Path) -> Row:
    """Evaluations a second of the exact inversion beside those of plain sampling."""
    tiles = sorted((HERE.parent / "examples" / "tiles").glob("*.png"))
    pictures = from_uint8(torch.stack([picture_pixels(read_picture(tile, 3)) for tile in tiles]))
    pictures = pictures.repeat(4, 1, 1, 1)[:16]
    checkpoint = load_checkpoint()
    prepare_for_inference(checkpoint.unet)
    labels = torch.full((16,), checkpoint.null_class or 0)
    tau = timesteps("linspace", 20, checkpoint.schedule.num_train_timesteps)
    began = time.perf_counter()
    found = invert(checkpoint, pictures, timesteps=tau, labels=labels)
    inverting = int(found.evaluations.sum()) / (time.perf_counter() - began)
    x_T = seeded_noise(range(16), checkpoint.sample_shape)
    seconds = best(lambda: sample_x_0(checkpoint, x_T, timesteps=tau, labels=labels), 3)
    ratio = inverting * seconds / (16 * len(tau))
    return Row(
        "evaluations a second of exact inversion, against sampling", f"{ratio:.2f}x", ">= 0.8x"
    )


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
    plain = plain_training_rate(data.sample_shape)
    return [
        Row("loader alone, 32x32, batch 64, mirrored", f"{loader:,.0f} images/s", ""),
        Row("training, small (4.5 M), batch 16, fp32", f"{training:,.0f} images/s", ""),
        Row("the same, against a plain loop", f"{training / plain:.2f}x", ">= 1.3x"),
        Row(
            "share of training that the loader takes", f"{100 * training / loader:.2f} %", "<= 1 %"
        ),
    ]


def plain_training_rate(shape: tuple[int, int, int]) -> float:
    """Pictures a second of the loop that one writes by hand over the same network: noise from
    torch's generator, AdamW, an average of the weights by a loop over them."""
    unet = make_unet(architecture("small", shape)).train()
    average = copy.deepcopy(unet)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)
    alpha_bar = make_schedule().alpha_bar.float()

    def step() -> None:
        x_0, eps = torch.rand(16, *shape) * 2 - 1, torch.randn(16, *shape)
        t = torch.randint(0, 1000, (16,))
        level = alpha_bar[t].view(-1, 1, 1, 1)
        output = unet(level.sqrt() * x_0 + (1 - level).sqrt() * eps, t, return_dict=False)[0]
        torch.nn.functional.mse_loss(output, eps).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), unet.parameters(), strict=True):
                mean.lerp_(weight, 1e-4)

    for _ in range(5):
        step()
    return 16 * 20 / best(lambda: [step() for _ in range(20)], 2)


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


def best(work: Callable[[], object], repeats: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return min(once() for _ in range(repeats))


if __name__ == "__main__":
    main()
