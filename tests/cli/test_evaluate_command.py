"""`ddimctl evaluate` and `reference` as scripts see them."""

import json
import re
import typing

import pytest

from ddimctl.cli.main import main
from ddimctl.errors import RequestError
from ddimctl.jobs.evaluate import request as evaluate_request
from ddimctl.jobs.parse import parse_numbers


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def data(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    (tmp_path / "data").mkdir()
    for seed in range(6):
        image = pil.linear_gradient("L").rotate(30 * seed).resize((16, 16))
        image.convert("RGB").save(tmp_path / f"data/{seed}.png")
    return "data"


@pytest.mark.parametrize("place", ["flag", "environment", "file"])
def test_a_presets_checkpoint_may_be_named_anywhere(
    place, run_here, data, tiny_checkpoint, tmp_path, monkeypatch
):
    arguments = ["evaluate", "--preset", "paper-cifar10", "--data", data, "--dry-run"]
    monkeypatch.setenv("DDIMCTL_CKPT", str(tiny_checkpoint) if place == "environment" else "")
    if place == "file":
        (tmp_path / "own.toml").write_text(f'ckpt = "{tiny_checkpoint}"')
        arguments += ["--config", "own.toml"]
    elif place == "flag":
        arguments += ["--ckpt", tiny_checkpoint]
    code, _, err = run_here(*arguments, "--metric", "swd")
    assert (code, "the checkpoint of 16x16" in err) == (2, True)  # found, and of another size


def test_the_table_is_printed_and_a_page_written(run_forked, tiny_checkpoint, data, tmp_path):
    command = ("evaluate", "--ckpt", tiny_checkpoint, "--data", data, "--out", "out")
    command = (*command, "-n", 8, "--steps", "2,3", "--eta", "0")
    code, out, err = run_forked(*command)
    assert code == 0, err
    title, head, line = out.splitlines()
    assert title.endswith("(not FID)")
    assert head.split() == ["S", "2", "3"]
    assert re.fullmatch(r"η = 0 +[\d.]+ +[\d.]+", line)
    assert "wrote: out (index.html" in err
    assert "cells: 2/2 cells" in err
    for name in ("index.html", "table.csv", "table.json", "curve.png", "seeds.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert len(list((tmp_path / "out/cells/eta0-S2/images").iterdir())) == 8

    code, out, err = run_forked(*command)
    assert (code, out) == (2, "")
    assert "--resume" in err
    code, out, err = run_forked(*command, "--resume", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["out"] == "out"
    assert [row["steps"] for row in record["rows"]] == [2, 3]
    assert [f"{row['swd']:#.4g}" for row in record["rows"]] == line.split()[3:]


def test_a_kept_reference_and_images_that_exist(run_here, data, tmp_path):
    code, out, err = run_here("reference", data)
    assert (code, out) == (0, "data.reference.safetensors\n"), err
    code, out, err = run_here("evaluate", "--samples", data, "--reference", out.strip())
    assert code == 0, err
    assert re.search(r"^swd \(not FID\) +0$", out, re.MULTILINE)
    before = sorted(tmp_path.iterdir())
    code, out, err = run_here(
        *("evaluate", "--samples", data, "--data", data, "-n", 3, "--batch-size", 8, "--json")
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["scores"]["swd"] > 0
    assert (record["samples"]["pictures"], record["reference"]["pictures"]) == (3, 6)
    assert sorted(tmp_path.iterdir()) == before
    code, out, err = run_here("evaluate", "--samples", data, "--data", data, "-n", 7)
    assert (code, out) == (1, "")
    assert "holds 6 images, not 7" in err


def test_a_dry_run_says_what_it_would_cost(run_here, tiny_checkpoint, data, tmp_path):
    command = ("evaluate", "--ckpt", tiny_checkpoint, "--data", data, "--dry-run")
    code, out, err = run_here(*command, "--variance", "large", "-n", 100)
    assert code == 0, err
    assert re.search(r"^ *evaluations in all +90,000$", out, re.MULTILINE)
    assert re.search(r"^ *rows +0\.0, 0\.2, 0\.5, 1\.0, large$", out, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_another_solver_has_the_row_without_noise(run_here, tiny_checkpoint, data, tmp_path):
    code, out, err = run_here(
        "evaluate", "--ckpt", tiny_checkpoint, "--data", data, "--steps", "2,3", "-n", "2",
        "--solver", "ipndm", "--dry-run", "--json",
    )  # fmt: skip
    assert code == 0, err
    settings = json.loads(out)["settings"]
    assert (settings["solver"], settings["rows"]) == ("ipndm", [0.0])
    code, _, err = run_here(
        "evaluate", "--data", data, "--solver", "ipndm", "--eta", "0.5", "-n", "2", "--out", "o"
    )
    assert code == 2, err
    assert "eta" in err


def test_words_are_those_of_the_layers():
    from ddimctl.diffusion.steps import VARIANCES
    from ddimctl.diffusion.timesteps import AUTO, KINDS
    from ddimctl.jobs.evaluate.paper_tables import PRESETS
    from ddimctl.metrics.measure import METRICS

    assert typing.get_args(evaluate_request.Metric) == METRICS
    assert typing.get_args(evaluate_request.Kind) == (*KINDS, AUTO)
    assert typing.get_args(evaluate_request.PresetName) == tuple(PRESETS)
    assert ("eta", *typing.get_args(evaluate_request.AddedVariance)) == tuple(VARIANCES)


def test_numbers_are_in_their_range():
    assert parse_numbers("1, 0,0.2,1", "--eta", 0, 1) == (1.0, 0.0, 0.2)
    for text in ("", "1.1", "-0.1", "nan", "0,,1", "1e-3"):
        with pytest.raises(RequestError, match=r"not a number in 0 \.\.\. 1"):
            parse_numbers(text, "--eta", 0, 1)
