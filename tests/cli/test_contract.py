"""What the commands promise to scripts: exit codes, stdout, files."""

import json
import re
from pathlib import Path

import pytest
import torch

from ddimctl.files.pictures.images import image_pixels, read_image

HEX = re.compile(r"[0-9a-f]{64}")


def sample(run, checkpoint, *arguments):
    """`ddimctl sample` of two images in two steps, unless told otherwise."""
    return run("sample", "--ckpt", checkpoint, "-n", 2, "--steps", 2, *arguments)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_sample_prints_the_paths_it_wrote_and_nothing_else(run_cli, tiny_checkpoint, tmp_path):
    code, out, err = sample(run_cli, tiny_checkpoint, "--out", "out")
    assert code == 0, err
    assert out.splitlines()[-2:] == ["out/grid.png", "out/manifest.json"]
    assert all((tmp_path / line).exists() for line in out.splitlines())
    assert "sampling" in err
    assert "\x1b" not in err
    assert tree(tmp_path / "out") == {
        "grid.png",
        "images/000000.png",
        "images/000001.png",
        "latents.pt",
        "manifest.json",
    }


def test_sample_json_is_one_object_that_names_what_was_made(run_forked, tiny_checkpoint, tmp_path):
    code, out, err = sample(run_forked, tiny_checkpoint, "--out", "out", "--json", "--eta", 1)
    assert code == 0, err
    record = json.loads(out)
    assert record["out"] == "out"
    assert record["seeds"] == [0, 1]
    assert record["seconds"] > 0
    assert (record["settings"]["steps"], record["settings"]["eta"]) == (2, 1.0)
    assert {"grid", "images", "latents", "manifest"} == set(record["outputs"])
    assert all((tmp_path / path).exists() for path in record["outputs"].values())


def test_sample_without_out_takes_the_next_number(run_here, tiny_checkpoint):
    runs = [sample(run_here, tiny_checkpoint, "--save", "grid") for _ in range(2)]
    folders = [Path(out.splitlines()[0]).parent for _, out, _ in runs]
    assert [folder.parent.name for folder in folders] == ["runs", "runs"]
    assert len(set(folders)) == 2
    assert all(re.fullmatch(r"\d{5}-sample", folder.name) for folder in folders)


def test_dry_run_prints_the_plan_and_writes_nothing(run_here, tiny_checkpoint, tmp_path):
    code, out, err = sample(run_here, tiny_checkpoint, "--tau", "trailing", "--dry-run")
    assert code == 0, err
    assert re.search(r"^ *timesteps +499, 999$", out, re.MULTILINE)
    code, out, err = sample(run_here, tiny_checkpoint, "--out", "x", "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["settings"]["timesteps"] == [0, 999]
    assert list(tmp_path.iterdir()) == []


def test_a_solver_makes_other_images_of_the_same_latents(run_forked, tiny_checkpoint, tmp_path):
    for solver in ("ddim", "ipndm", "dpm++2m"):
        code, out, err = run_forked(
            "sample", "--ckpt", tiny_checkpoint, "-n", 1, "--steps", 4, "--solver", solver,
            "--out", solver, "--json",
        )  # fmt: skip
        assert code == 0, err
        assert json.loads(out)["settings"]["solver"] == solver
    again = run_forked("sample", "--latents", "ipndm/latents.pt", "--out", "again")
    assert again.code == 0, again.stderr
    found = {
        name: image_pixels(read_image(tmp_path / name / "images" / "000000.png", 3))
        for name in ("ddim", "ipndm", "dpm++2m", "again")
    }
    assert torch.equal(found["ipndm"], found["again"])
    assert not torch.equal(found["ddim"], found["ipndm"])
    assert not torch.equal(found["dpm++2m"], found["ipndm"])


def test_nothing_is_overwritten_without_force(run_here, tiny_checkpoint, tmp_path):
    assert sample(run_here, tiny_checkpoint, "--out", "out")[0] == 0
    before = (tmp_path / "out/manifest.json").read_bytes()
    code, out, err = sample(run_here, tiny_checkpoint, "--out", "out", "--eta", 1)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert (tmp_path / "out/manifest.json").read_bytes() == before
    assert sample(run_here, tiny_checkpoint, "--out", "out", "--eta", 1, "--force")[0] == 0
    assert (tmp_path / "out/manifest.json").read_bytes() != before


def test_resume_of_a_complete_run_is_done(run_here, tiny_checkpoint):
    first = sample(run_here, tiny_checkpoint, "--out", "out", "--resume")
    again = sample(run_here, tiny_checkpoint, "--out", "out", "--resume")
    assert first[:2] == again[:2]
    assert again[0] == 0, again[2]


def test_request_that_does_not_fit_the_checkpoint_is_2(run_here, tiny_checkpoint, tmp_path):
    for arguments in (
        ["--steps", "1001"],
        ["--tau", "0,1000"],
        ["--eta", "0.5", "--variance", "large"],
        ["--solver", "ipndm", "--eta", "0.5"],
        ["--solver", "dpm++2m", "--variance", "large"],
        ["--tau", "auto", "--steps", "51"],
        ["--variance", "learned"],
        ["--class", "monster"],
        ["--guidance", "3"],
        ["--size", "17"],
        ["--device", "abacus"],
        ["--resume"],
    ):
        code, out, err = run_here("sample", "--ckpt", tiny_checkpoint, *arguments)
        assert (code, out) == (2, "")
        assert re.search(r"^error: .+\n(  try: .+\n)?\Z", err, re.MULTILINE)
        assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_1(run_here, tmp_path):
    for command in (["sample", "--ckpt"], ["info"]):
        for kind in ("missing", "empty", "text"):
            path = tmp_path / f"{kind}.pt"
            if kind != "missing":
                path.write_text("" if kind == "empty" else "not a checkpoint")
            code, out, err = run_here(*command, path)
            assert (code, out) == (1, "")
            assert re.search(r"^error: .+\n(  try: .+\n)?\Z", err, re.MULTILINE)


def test_unknown_class_lists_what_there_is(run_here, tiny_class_checkpoint):
    code, _, err = run_here("sample", "--ckpt", tiny_class_checkpoint, "--class", "dragon")
    assert code == 2
    assert "dragon" in err
    assert "monster" in err


def test_checkpoint_of_the_environment_is_used(run_here, tiny_class_checkpoint, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CKPT", str(tiny_class_checkpoint))
    code, out, err = run_here("info", "--json")
    assert code == 0, err
    assert json.loads(out)["classes"]["count"] == 5


def test_info_shows_what_the_checkpoint_is(run_here, tiny_class_checkpoint):
    code, out, err = run_here("info", tiny_class_checkpoint)
    assert code == 0, err
    assert re.search(r"^prediction +eps$", out, re.MULTILINE)
    assert re.search(r"^  num train timesteps +1000$", out, re.MULTILINE)
    assert "floor, wall, item, monster, door" in out
    code, out, err = run_here("info", tiny_class_checkpoint, "--json")
    record = json.loads(out)
    assert HEX.fullmatch(record["sha256"])
    assert record["parameters"] > 0


def test_train_prints_the_checkpoint_and_what_to_try(run_here, tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "data").mkdir()
    for i in range(6):
        image.new("RGB", (16, 16), (40 * i, 0, 90)).save(tmp_path / f"data/{i}.png")
    train = [
        *("train", "data", "--out", "run", "--model", "tiny", "--steps", 2),
        *("--batch-size", 2, "--log-every", 1),
    ]
    code, out, err = run_here(*train)
    assert code == 0, err
    assert out == "run/checkpoint\n"
    assert "next: ddimctl sample --ckpt run/checkpoint\n" in err
    assert run_here("info", "run/checkpoint")[0] == 0
    assert run_here(*train)[0] == 2
    code, out, err = run_here(*train, "--resume", "--json")
    assert code == 0, err
    assert json.loads(out)["step"] == 2
