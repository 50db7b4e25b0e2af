"""Makes every image and table of the documents that depends on the bundled checkpoint.

    node examples/avatars/draw.mjs runs/avatars
    node examples/avatars/draw.mjs runs/held-out --peep 500 --pixel 500 --thumb 500 --seed-prefix held-out-
    python benchmarks/measure_docs.py runs/avatars runs/held-out --photos CIFAR10-TEST.zip

About 17 minutes on one core. What was measured of the same checkpoint is kept in --keep and not
measured again; --only makes some parts, --again measures them anew.
"""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import held_out_error
import quality
import torch
from measured_pages import IMAGES, ROOT, draw_terminal, put, table
from PIL import Image

from ddimctl.checkpoints.load import BUNDLED, load_checkpoint
from ddimctl.cli.main import main as ddimctl
from ddimctl.files.dataset.datasets import load_dataset
from ddimctl.files.pictures.grids import make_grid

sys.path.insert(0, str(ROOT / "examples"))
import compare_with_data

AVATARS = ROOT / "examples/avatars"
TOUR = ("peep-bun", "pixel-braid", "thumb-hearts", "peep-headscarf", "pixel-glasses", "thumb-grin")
SIXTEENS = ",".join(name for name in ("peep", "pixel", "thumb") for _ in range(16))


@dataclass(frozen=True)
class Measuring:
    """data, held_out, photos: images.  training: a run.  keep: of this checkpoint.  again: redo."""

    data: Path
    held_out: Path
    photos: Path | None
    training: Path | None
    keep: Path
    again: bool

    def run(self, name: str, line: str, *files: Path) -> Path:
        """The folder keep/NAME that a command line of ddimctl, without its --out, leaves."""
        out, done = self.keep / name, self.keep / f"{name}.done"
        if self.again or not done.exists() or done.read_text() != line:
            shutil.rmtree(out, ignore_errors=True)
            arguments = shlex.split(line)
            words = [*arguments[:1], *map(str, files), *arguments[1:], "--out", str(out)]
            print(f"ddimctl {line}", flush=True)
            with contextlib.redirect_stdout(io.StringIO()):
                code = ddimctl(words)
            if code:
                raise SystemExit(code)
            done.write_text(line)
        return out

    def swd(self, name: str, samples: Path) -> float:
        """The score of a folder of images against the held-out ones."""
        path = self.keep / f"swd-{name}.json"
        if self.again or not path.exists():
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                code = ddimctl(
                    ["evaluate", "--samples", str(samples), "--data", str(self.held_out), "--json"]
                )
            if code:
                raise SystemExit(code)
            path.write_text(said.getvalue())
        return float(json.loads(path.read_text())["scores"]["swd"])

    def rows(self, name: str, line: str, *files: Path) -> list[dict[str, Any]]:
        """The rows of a reconstruction or an evaluation."""
        path = self.run(name, line, *files) / "table.json"
        return json.loads(path.read_text("utf-8"))["rows"]


def avatars(*names: str) -> list[Path]:
    return [AVATARS / f"{name}.png" for name in names]


def measure_demo(m: Measuring) -> None:
    """README: the two files of `make demo`."""
    line = "sample -n 24 --class peep,pixel,thumb --columns 8 --scale 4"
    shutil.copy(m.run("grid", line) / "grid.png", IMAGES / "grid.png")
    line = "interpolate --steps 20 --frames 72 --loop --video gif --fps 15 --hold 0.6"
    shutil.copy(m.run("morph", line, *avatars(*TOUR)) / "video.gif", IMAGES / "morph.gif")


def measure_small(m: Measuring) -> None:
    """Quick start: a run, an inversion, an interpolation; info."""
    run = m.run("eight", "sample -n 8 --seed 40 --class peep --columns 4")
    shutil.copy(run / "grid.png", IMAGES / "replay.png")
    run = m.run("inverted", "invert --class peep", *avatars("peep-bun"))
    shutil.copy(run / "peep-bun.inversion.png", IMAGES / "inversion.png")
    three = avatars("peep-bun", "peep-eyepatch", "peep-headscarf")
    run = m.run("between", "interpolate --class peep --frames 13", *three)
    shutil.copy(run / "grid.png", IMAGES / "interpolation.png")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ddimctl(["info"])
    draw_terminal(IMAGES / "info.png", ["$ ddimctl info", *said.getvalue().rstrip().split("\n")])


def measure_bundled(m: Measuring) -> None:
    """Bundled checkpoint: samples, real ones, guidance, nearest neighbours, held-out error."""
    for name, scale in (("plain", 1), ("guided", 2)):
        line = f"sample -n 48 --class {SIXTEENS} --columns 16 --scale 3 --guidance {scale}"
        shutil.copy(m.run(name, line) / "grid.png", IMAGES / f"avatars-{name}.png")
    held_out = load_dataset(m.held_out, class_conditional=True)
    chosen = held_out_error.first_of_each_class(held_out, 16)
    names = [held_out.class_names[i] for i in held_out.labels[chosen]]
    grid = make_grid(held_out.pixels[chosen], columns=16, scale=3, labels=names)
    grid.quantize(256).save(IMAGES / "avatars-real.png", optimize=True)
    if m.training is not None:
        shutil.copy(m.training / "loss.png", IMAGES / "loss.png")
    measure_nearest(m, held_out.pixels)
    errors = held_out_error.errors_by_class(load_checkpoint(BUNDLED), held_out, 60)
    heads = ["class", *held_out.class_names, "mean"]
    figures = [f"{error:.4f}" for error in (*errors, sum(errors) / len(errors))]
    put("held-out error", table(heads, [["error", *figures]]))


def measure_nearest(m: Measuring, held_out: torch.Tensor) -> None:
    data = load_dataset(m.data).pixels
    samples = compare_with_data.read_run(m.keep / "plain")
    found, indices = compare_with_data.nearest(samples, data)
    pairs = torch.stack((samples, data[indices]), dim=1).flatten(0, 1)
    make_grid(pairs, columns=16, scale=2).quantize(256).save(IMAGES / "nearest.png", optimize=True)
    real, _ = compare_with_data.nearest(held_out[::10], data)
    rows = [
        [what, f"{len(d)}", f"{d.min():.3f}", f"{d.median():.3f}"]
        for what, d in (("samples", found), ("held-out avatars", real))
    ]
    put("nearest", table(["", "images", "smallest difference", "median"], rows))


def measure_quality(m: Measuring) -> None:
    """Sample quality: accuracy and score of solvers and timesteps."""
    line = "--seeds 16 --tau linspace trailing auto --steps 5 8 10 15 20 40 --keep"
    options = quality.parse([*line.split(), str(m.keep / "quality")])
    rows = quality.measure(options)
    put("RMSE", quality.table("RMSE", options.steps, rows, quality.rmse))
    put("PSNR", quality.table("PSNR in dB", options.steps, rows, quality.psnr))
    summary = []
    for steps, solver, tau in (
        *((5, "ipndm", "auto"), (8, "ipndm", "auto"), (10, "ddim", "linspace")),
        *((10, "ddim", "auto"), (10, "ipndm", "linspace"), (10, "dpm++2m", "auto")),
        *((10, "ipndm", "auto"), (20, "ddim", "linspace"), (20, "ipndm", "auto")),
        (40, "ddim", "linspace"),
    ):
        line = f"sample -n 128 --steps {steps} --solver {solver} --tau {tau} --save images"
        name = f"{solver}-{tau}-{steps}"
        score = m.swd(name, m.run(name, line) / "images")
        error = rows[solver, tau][options.steps.index(steps)]
        assert error is not None
        cells = (str(steps), solver, tau, quality.rmse(error), quality.psnr(error), f"{score:.2f}")
        summary.append(cells)
    heads = ("NFE", "solver", "timesteps", "RMSE", "PSNR, dB", "SWD")
    put("solvers", table(heads, summary))


def measure_evaluation(m: Measuring) -> None:
    """Evaluation: scores of S and eta, of real images, and of noisy ones."""
    line = "evaluate --steps 5,10,20,40 --eta 0,1 --variance large -n 128"
    rows = m.rows("scores", line, Path("--data"), m.held_out)
    steps = (5, 10, 20, 40)
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        large = row["variance"] == "large"
        name = "σ̂" if large else f"η = {row['eta']:g}"
        lines.setdefault(name, {})[row["steps"]] = f"{row['swd']:.2f}"
    cells = [[name, *(found[S] for S in steps)] for name, found in lines.items()]
    put("scores", table(["swd, 8-bit levels", *(f"S = {S}" for S in steps)], cells))
    shutil.copy(m.keep / "scores/curve.png", IMAGES / "evaluate.png")
    with Image.open(m.keep / "scores/seeds.png") as seeds:
        height = seeds.height * 4 // len(rows)  # the first rows are those of eta = 0
        seeds.crop((0, 0, seeds.width, height)).save(IMAGES / "evaluate-seeds.png", optimize=True)
    put("noise", table(*noisy_scores(m)))
    samples = m.run("ddim-linspace-20", quality_line(20)) / "images"
    draw_scoring(m, samples)


def quality_line(steps: int) -> str:
    return f"sample -n 128 --steps {steps} --solver ddim --tau linspace --save images"


def noisy_scores(m: Measuring) -> tuple[list[str], list[list[str]]]:
    """128 training avatars, the classes equally often, with noise of some levels added."""
    data = load_dataset(m.data, class_conditional=True)
    pixels = data.pixels[held_out_error.first_of_each_class(data, 43)[:128]]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    levels, scores = (0, 8, 16, 32, 64), []
    for level in levels:
        folder = m.keep / f"noisy-{level}"
        folder.mkdir(parents=True, exist_ok=True)
        noisy = (pixels + level * noise).round().clamp(0, 255).to(torch.uint8)
        for i, image in enumerate(noisy):
            Image.fromarray(image.numpy()).save(folder / f"{i:03}.png")
        scores.append(f"{m.swd(f'noisy-{level}', folder):.2f}")
    return ["noise", *map(str, levels)], [["swd", *scores]]


def draw_scoring(m: Measuring, samples: Path) -> None:
    """reference.png: a reference made and used."""
    reference = m.keep / "held-out.reference.safetensors"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        ddimctl(["reference", str(m.held_out), "--size", "32", "--out", str(reference), "--force"])
        arguments = ("--samples", str(samples), "--reference", str(reference))
        ddimctl(["evaluate", *arguments])
    scores = said.getvalue().rstrip().split("\n")[1:]
    lines = [
        "$ ddimctl reference runs/held-out --size 32",
        "runs/held-out.reference.safetensors",
        "",
    ]
    command = (
        "$ ddimctl evaluate --samples run/images --reference runs/held-out.reference.safetensors"
    )
    draw_terminal(IMAGES / "reference.png", [*lines, command, *scores])


def measure_inversion(m: Measuring) -> None:
    """Inversion: exact, the paper's Table 2, and other numbers of steps to decode in."""
    exact = m.rows("exact-20", "reconstruct --steps 20 --method exact --limit 100", m.held_out)
    exact += m.rows("exact-50", "reconstruct --steps 50 --method exact --limit 8", m.held_out)
    put("exact", exact_table(exact))
    if m.photos is not None:
        line = "reconstruct --steps 20,50 --method exact --limit 8"
        put("exact photographs", exact_table(m.rows("photos", line, m.photos)))
    line = "reconstruct --steps 10,20,50,100,200,500,1000 --method naive --limit 4"
    naive = m.rows("naive", line, m.held_out)
    paper = ("0.014", "0.0065", "0.0023", "0.0009", "0.0004", "0.0001", "0.0001")
    rows = [
        [f"{r['steps']}", f"{r['mse']:.2g}", f"{r['psnr']:.1f}", f"{r['worst_level']}", p]
        for r, p in zip(naive, paper, strict=True)
    ]
    heads = ["S", "MSE", "PSNR, dB", "largest error, levels", "the paper's MSE on CIFAR-10"]
    put("naive", table(heads, rows))
    shutil.copy(m.keep / "naive/plot.png", IMAGES / "reconstruct.png")
    rows = []
    for S in (20, 50):
        line = f"reconstruct --steps {S} --method exact --decode-steps 10,20,50,100 --limit 4"
        found = m.rows(f"decoded-{S}", line, m.held_out)
        cells = [f"{r['mse']:.2g} ({r['psnr']:.1f})" for r in found]
        rows.append([f"inverted in {S} steps", *cells])
    put("decode steps", table(["MSE (PSNR, dB)", "decoded in 10 steps", "20", "50", "100"], rows))


def exact_table(rows: list[dict[str, Any]]) -> str:
    heads = ("S", "images", "within 1 level", "largest error, levels", "exact pixels", "MSE")
    return table(
        [*heads, "evaluations per step"],
        [
            [
                *(f"{r['steps']}", f"{r['pictures']}", f"{100 * r['within_one_level']:.4g} %"),
                *(f"{r['worst_level']}", f"{100 * r['exact_pixels']:.5g} %", f"{r['mse']:.2g}"),
                f"{r['evaluations_per_step']:.1f}",
            ]
            for r in rows
        ],
    )


PARTS: dict[str, Callable[[Measuring], None]] = {
    "demo": measure_demo,
    "small": measure_small,
    "bundled": measure_bundled,
    "inversion": measure_inversion,
    "evaluation": measure_evaluation,
    "quality": measure_quality,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the training avatars, in class folders")
    parser.add_argument("held_out", type=Path, help="avatars of other seed texts, likewise")
    parser.add_argument("--photos", type=Path, help="photographs to invert, such as CIFAR-10's")
    parser.add_argument("--training", type=Path, help="the training run, for its loss.png")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="measure these parts anew")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs/measured")
    options = parser.parse_args()
    sha256 = load_checkpoint(BUNDLED).provenance.sha256[:12]
    keep = options.keep / sha256
    keep.mkdir(parents=True, exist_ok=True)
    images = (options.data, options.held_out, options.photos)
    m = Measuring(*images, options.training, keep, options.again)
    for part in options.only:
        PARTS[part](m)


if __name__ == "__main__":
    main()
