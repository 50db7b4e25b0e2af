"""What commands import: usage errors nothing heavy, runs nothing that they do not use.

One process runs all the lines, and looks after each one at what has been imported.
"""

import json
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import pytest

HEAVY = ("torch", "diffusers", "numpy", "PIL", "huggingface_hub", "safetensors")
# Python's own name for a module, where it begins with one of these: of torch its compiler, of
# diffusers everything but the network.
NEEDLESS = re.compile(
    r"(torch\._(dynamo|inductor)|sympy|torchvision|pandas"
    r"|scipy|matplotlib|av|huggingface_hub\.(inference|cli)"
    r"|diffusers\.(pipelines|schedulers|loaders|modular_pipelines)"
    r"|diffusers\.hooks\.(?!(hooks|_common|group_offloading)$)\w+"
    r"|diffusers\.models\.(autoencoders|controlnets|adapter|attention_dispatch)"
    r"|diffusers\.models\.unets\.(?!unet_2d(_blocks)?$)\w+"
    r"|diffusers\.models\.transformers\.(?!(dual_)?transformer_2d$)\w+)(\.|$)"
)
HELP = """
--help
-h
--version
sample --help
train -h
info --help
interpolate --help
"""
USAGE_ERRORS = """
nonsense
sample --nonsense
sample positional
sample --steps many
sample --steps 0
sample --eta 1.5
sample --eta nan
sample --guidance inf
sample --clip hard
sample --variance small
sample --precision fp8
sample --format jpeg
sample -n 0
sample -n 99999999
sample --seed -1
sample --seed 9223372036854775807 -n 2
sample --seeds 3-1
sample --seeds 1 -n 4
sample --seeds 1 --seed 0
sample --latents x.pt --seeds 1
sample --latents x.pt -n 1
sample --latents x.pt --seed 0
sample --tau nonsense
sample --tau 0,500,999 --steps 4
sample --size axb
sample --class a,,b
sample --save grid,movie
sample --config own.toml
train
train data
train data --out run --time-limit soon
train data --out run --background dark
train data --out run --holdout 2
train data --out run --channels 2
info a b
interpolate
interpolate a.pt b.pt --frames 1
interpolate a.pt b.pt --path curve
interpolate a.pt b.pt --video avi
interpolate a.pt b.pt --fps nan
interpolate --seeds 1,1
interpolate --seeds 0-3 --grid 8by8
interpolate --seeds 0-3 --grid 8x8 --frames 9
interpolate --seeds 0-3 --grid 8x8 --loop
interpolate --seeds 1,2 --tau 0,999 --steps 3
invert
invert a.png --method edict
invert a.png --tolerance 0
invert a.png --tolerance nan
invert a.png --fit squeeze
invert a.png --steps 0
invert a.png --tau 0,999 --steps 3
invert a.png --size big
reconstruct
reconstruct data --steps 10,0
reconstruct data --decode-steps ten
reconstruct data --method exact,edict
reconstruct data --limit 0
reconstruct data --holdout 1
evaluate
evaluate --data d --reference r
evaluate --data d --steps 0
evaluate --data d --eta 2
evaluate --data d --eta nan
evaluate --data d --variance small
evaluate --data d --metric is
evaluate --data d -n 1
evaluate --data d --preset paper-mnist
evaluate --data d --preset paper-cifar10
evaluate --data d --preset paper-church --ckpt x --tau uniform
evaluate --data d --samples s --eta 0
evaluate --data d --samples s --out o
evaluate --data d --samples s --force
evaluate --data d --samples s --repeats 2
evaluate --data d --samples s --dry-run
evaluate --data d --samples s --model-flag num_heads=4
evaluate --data d --background pink
reference
reference d --metric psnr
reference d --channels 4
reference d --size big
"""
COMPLETIONS = {
    "ddimctl ": {"sample", "invert", "replay", "train", "info"},
    "ddimctl re": {"reconstruct", "replay"},
    "ddimctl sample --st": {"--steps"},
    "ddimctl replay --": {"--ckpt", "--out", "--config"},
    "ddimctl sample --clip ": {"none", "static", "dynamic"},
    "ddimctl sample --tau ": {"linspace", "trailing", "uniform", "quadratic", "auto"},
    "ddimctl invert --tau t": {"trailing"},
    "ddimctl train data --lr-decay c": {"cosine", "constant"},
    "ddimctl interpolate --video g": {"gif"},
}
RUN = """
import contextlib, io, json, os, sys

def heavy():
    return [name for name in sys.modules if name in sys.argv[1:]]

import ddimctl, ddimctl.checkpoints
ddimctl.RequestError, ddimctl.timesteps, dir(ddimctl.checkpoints)
told = [(0, "", "", heavy())]
from ddimctl.cli.command_reference import reference
told.append((0, reference(), "", heavy()))
from ddimctl.cli.main import main
for arguments, env in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    os.environ.update(env)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    for name in env:
        del os.environ[name]
    told.append((code, out.getvalue(), err.getvalue(), heavy()))
json.dump(told, sys.stdout)
"""


class Told(NamedTuple):
    """What a line ended with, and the heavy packages that are imported after it."""

    code: int
    stdout: str
    stderr: str
    heavy: list[str]


@pytest.fixture(scope="module")
def told(clean_env, tmp_path_factory):
    """told[line]: of every line above, run in one process and an almost empty folder."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "own.toml").write_text("[sample]\nstepz = 3")
    lines = [(line, shlex.split(line), {}) for line in ("", *lines_of(HELP + USAGE_ERRORS))]
    for words in COMPLETIONS:
        count = str(words.count(" "))
        env = {"_DDIMCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": count}
        lines.append((words, [], env))
    for shell in ("bash", "zsh", "fish"):
        lines.append((shell, [], {"_DDIMCTL_COMPLETE": f"source_{shell}"}))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *HEAVY],
        input=json.dumps([order for _, *order in lines]),
        env=clean_env,
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    names = ["import ddimctl", "command_reference", *(line for line, *_ in lines)]
    found = dict(zip(names, (Told(*each) for each in json.loads(done.stdout)), strict=True))
    assert [path.name for path in folder.iterdir()] == ["own.toml"]
    return found


def lines_of(text):
    return [line for line in text.splitlines() if line]


def test_nothing_heavy_is_imported_by_any_of_them(told):
    assert len(told) == len(lines_of(HELP + USAGE_ERRORS)) + len(COMPLETIONS) + 6
    assert next(((line, found.heavy) for line, found in told.items() if found.heavy), None) is None


def test_help_is_printed_and_nothing_said(told):
    for line in lines_of(HELP):
        found = told[line]
        assert (found.code, found.stderr) == (0, ""), line
        assert found.stdout
    assert told[""].code == 2
    assert told["command_reference"].stdout.startswith("# ")


def test_usage_errors_are_two_lines_and_2(told):
    for line in lines_of(USAGE_ERRORS):
        code, out, err, _ = told[line]
        assert (code, out) == (2, ""), line
        assert re.fullmatch(r"error: .+\n  try: .+\n", err), f"{line}: {err}"


def test_words_are_completed(told):
    for words, completed in COMPLETIONS.items():
        found = set(told[words].stdout.split())
        assert completed <= found, words
        assert all(word.startswith(words.split(" ")[-1]) for word in found), words
    for shell in ("bash", "zsh", "fish"):
        assert told[shell].code == 0
        assert "_DDIMCTL_COMPLETE=" in told[shell].stdout


def test_a_run_imports_the_network_and_nothing_around_it(
    clean_env, tiny_class_checkpoint, tmp_path
):
    line = f"sample --ckpt {tiny_class_checkpoint} --steps 1 -n 1 --out out"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ddimctl", *shlex.split(line)],
        env=clean_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    imported = [line.rpartition("|")[2].strip() for line in lines]
    assert any(name.startswith("diffusers.models.unets.unet_2d") for name in imported)
    assert [name for name in imported if NEEDLESS.match(name)] == []
    assert len([name for name in imported if name.startswith("diffusers.models.")]) < 40
