"""`ddimctl invert` and `reconstruct` as scripts see them."""

import json
import re
import typing

import pytest

from ddimctl.cli.main import main
from ddimctl.jobs.invert import request as invert_request


def make_image(path, seed=0, size=(16, 16)):
    pil = pytest.importorskip("PIL.Image")
    pil.linear_gradient("L").rotate(30 * seed).resize(size).convert("RGB").save(path)


def levels(path):
    pil = pytest.importorskip("PIL.Image")
    with pil.open(path) as opened:
        return opened.convert("RGB").tobytes()


@pytest.fixture
def run_here(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_a_input_image_and_its_decoded_latents_are_one_image(
    run_forked, tiny_class_checkpoint, tmp_path
):
    make_image(tmp_path / "a.png")
    settings = ("--ckpt", tiny_class_checkpoint, "--tau", ",".join(map(str, range(0, 500, 20))))
    code, out, err = run_forked("invert", "a.png", *settings)
    assert code == 0, err
    assert out.splitlines() == ["a.pt", "a.inversion.png"]
    assert re.search(r"wrote: a.pt \(MSE .+ PSNR .+ worst level 0 of 255, 100 % of pixels", err)
    code, out, err = run_forked("sample", "--latents", "a.pt", "--out", "back")
    assert code == 0, err
    pairs = zip(
        levels(tmp_path / "a.png"), levels(tmp_path / "back/images/000000.png"), strict=True
    )
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_a_bad_file_is_named_the_rest_is_done_and_the_code_is_1(
    run_here, tiny_checkpoint, tmp_path
):
    make_image(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    command = ("invert", "text.png", "good.png", "none.png", "--ckpt", tiny_checkpoint)
    code, out, err = run_here(*command, "--method", "naive", "--steps", 2)
    assert code == 1
    assert out.splitlines() == ["good.pt", "good.inversion.png"]
    assert "text.png is not an image" in err
    assert "error: 2 of 3 images could not be inverted." in err


def test_json_is_one_object(run_here, tiny_checkpoint, tmp_path):
    make_image(tmp_path / "a.png")
    code, out, err = run_here(
        *("invert", "a.png", "--ckpt", tiny_checkpoint, "--method", "naive", "--steps", 2),
        *("--out", "o", "--json"),
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["failed"] == {}
    (found,) = record["pictures"]
    assert (found["latents"], found["comparison"]) == ("o/a.pt", "o/a.inversion.png")
    assert found["evaluations"] == 2
    assert {"mse", "psnr", "worst_level", "exact_pixels", "latent_mean", "latent_std"} <= set(found)


def test_overwriting_is_2_and_a_dry_run_writes_nothing(run_here, tiny_checkpoint, tmp_path):
    make_image(tmp_path / "a.png", size=(40, 30))
    command = ("invert", "a.png", "--ckpt", tiny_checkpoint, "--method", "naive", "--steps", 2)
    code, out, err = run_here(*command, "--dry-run")
    assert code == 0, err
    assert re.search(r"a\.png +a\.pt", out)
    assert "40x30 pixels (width x height), cropped to the middle 30x30 and resized to 16x16" in err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert run_here(*command)[0] == 0
    code, out, err = run_here(*command)
    assert (code, out) == (2, "")
    assert "--force" in err
    assert run_here(*command, "--force")[0] == 0


def test_reconstruct_prints_the_table(run_here, tiny_checkpoint, tmp_path):
    (tmp_path / "data").mkdir()
    for seed in range(3):
        make_image(tmp_path / f"data/{seed}.png", seed)
    command = ("reconstruct", "data", "--ckpt", tiny_checkpoint, "--method", "naive")
    code, out, err = run_here(
        *command, "--steps", "2,3", "--limit", 2, "--out", "t", "--plot-format", "svg"
    )
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["method", "steps"]
    assert [line.split()[:3] for line in lines[1:]] == [["naive", "2", "2"], ["naive", "3", "3"]]
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
        "plot.svg", "table.csv", "table.json", "table.md", "table.tex",
    ]  # fmt: skip
    code, out, err = run_here(*command, "--steps", "1", "--json")
    assert code == 0, err
    record = json.loads(out)
    assert re.fullmatch(r"runs/\d{5}-reconstruct", record["out"])
    assert record["rows"][0]["pictures"] == 3
    assert run_here(*command, "--out", "t")[0] == 2


def test_words_and_defaults_are_those_of_the_layers():
    from ddimctl.diffusion import inversion, timesteps
    from ddimctl.files.pictures.images import FITS
    from ddimctl.runtime.device import PRECISIONS

    assert typing.get_args(invert_request.Method) == inversion.METHODS
    assert typing.get_args(invert_request.Fit) == FITS
    assert typing.get_args(invert_request.InversionPrecision) == tuple(PRECISIONS)
    assert typing.get_args(invert_request.FixedKind) == timesteps.KINDS
    assert invert_request.InversionOptions().tolerance == inversion.TOLERANCE
