"""Every command line that the documents show, run: the plan of it, or the smallest run of it.

What a line names is put into its folder first: images, data sets, latents, a run. A line that needs
the hub, a GPU or a checkpoint that is not here ends where its job would begin.
"""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from ddimctl.checkpoints.load import BUNDLED
from ddimctl.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "examples").glob("*.sh"))]
AVATARS = sorted((ROOT / "examples/avatars").glob("*.png"))

# Of a line with one of these, no job is begun.
ELSEWHERE = re.compile(
    r"\bgoogle/|CompVis/|--prompt|--ckpt model-10|cuda|ddimctl convert|--model-flag|--class cat|--config"
)
# What makes a line short; of an option that is given twice, the last one counts.
SHORTER = dict.fromkeys(("sample", "invert", "interpolate", "reconstruct"), "--dry-run") | {
    "evaluate": "--dry-run",
    "evaluate --samples": "--metric swd",
    "reference": "--metric swd",
    "train": "--time-limit 0.01s --batch-size 2 --grad-accum 1 --precision fp32 --model tiny",
    "train --init": "--time-limit 0.01s --batch-size 2 --grad-accum 1 --precision fp32",
}

TAKE_FOLDERS = ("train", "reference", "invert", "reconstruct")


def lines_of(page: Path) -> list[str]:
    """The lines of a page's code that start with ddimctl, or that start it with torchrun."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    if page.suffix == ".md":
        fenced = re.findall(r"^```.*?^```", text, re.M | re.S)
        text = "\n".join([*re.findall(r"^    (.+)$", text, re.M), *fenced])
    found = re.findall(r"^(?:exec |.*torchrun .* -m )?(ddimctl [a-z-].*)$", text, re.M)
    return list(dict.fromkeys(found))


def arguments_of(line: str) -> list[str]:
    """What a shell makes of it: {a,b}.png is a.png b.png, and a script's $1 some name."""
    line = line.replace('"$1"', "data.zip").replace('"$2"', "new")
    arguments: list[str] = []
    for word in shlex.split(line, comments=True)[1:]:
        parts = re.split(r"[{}]", word)
        choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
        arguments += map("".join, itertools.product(*choices))
    return arguments


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the bundled checkpoint."""
    folder = tmp_path_factory.mktemp("documents") / "run"
    order = f"sample -n 1 --steps 1 --save images,latents --out {folder}"
    assert main(order.split()) == 0
    return folder


def furnish(folder: Path, run: Path, line: str) -> None:
    """Put into the folder what the line reads, as far as its form tells what that is."""
    (folder / "examples").symlink_to(ROOT / "examples")
    command, *arguments = arguments_of(line)
    for option, value in itertools.pairwise(["", *arguments]):
        path, subject = folder / value, not option.startswith("-")
        if value.startswith("-") or option == "--out" or path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".zip":
            make_images(folder / ".zipped", line)
            shutil.make_archive(str(path.with_suffix("")), "zip", folder / ".zipped")
        elif path.suffix in (".png", ".jpg"):
            shutil.copy(run / "images/000000.png" if command == "replay" else AVATARS[0], path)
        elif path.suffix == ".pt":
            shutil.copy(run / "latents.pt", path)
        elif value.endswith(".reference.safetensors"):
            make_images(folder / ".data", line)
            assert main(["reference", ".data", "--size", "32", "--out", value]) == 0
        elif path.name == "checkpoint":
            path.symlink_to(BUNDLED)
        elif command == "replay" and subject:
            shutil.copytree(run, path)
        elif option in ("--data", "--samples") or (subject and command in TAKE_FOLDERS):
            make_images(path, line)


def make_images(folder: Path, line: str) -> None:
    """Sixty images, no two alike, in a folder for each class of the checkpoint that is meant."""
    names = json.loads((BUNDLED / "ddimctl.json").read_text("utf-8"))["class_names"]
    for i, (path, name) in enumerate(itertools.islice(itertools.product(AVATARS * 9, names), 60)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").rotate(i).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    "page", list(filter(lines_of, PAGES)), ids=lambda page: str(page.relative_to(ROOT))
)
def test_what_a_page_shows_runs(page, run, tmp_path, monkeypatch, capsys):
    wrong = []
    for i, line in enumerate(lines_of(page)):
        if ELSEWHERE.search(line):
            continue
        (tmp_path / str(i)).mkdir()
        monkeypatch.chdir(tmp_path / str(i))
        furnish(Path.cwd(), run, line)
        command, *arguments = arguments_of(line)
        option = next((each for each in ("--samples", "--init") if each in arguments), "")
        shorter = SHORTER.get(f"{command} {option}".strip(), "")
        capsys.readouterr()
        if main([command, *arguments, *shorter.split()]) != 0:
            wrong.append(f"{line}: {capsys.readouterr().err}")
    assert not wrong, "\n".join(wrong)


def test_what_cannot_run_here_is_taken(tmp_path, monkeypatch, capsys, no_jobs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIMCTL_CKPT", "")  # so that what --config makes of it is undone
    wrong = []
    for page in PAGES:
        for settings in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            (tmp_path / "lab.toml").write_text(settings)
        for line in filter(ELSEWHERE.search, lines_of(page)):
            code, err = main(arguments_of(line)), capsys.readouterr().err
            if (code, err) != (2, "error: taken\n"):
                wrong.append(f"{line}: {err}")
    assert not wrong, "\n".join(wrong)


def test_lines_are_found():
    shown = {page.name: len(lines_of(page)) for page in PAGES}
    assert shown["quick-start.md"] >= 8
    assert shown["recipes.md"] >= 10
