"""`ddimctl interpolate` end to end, each in a process of its own where files go from one to the next."""

import json
import re

import pytest
import torch

from ddimctl.diffusion.noise import seeded_noise
from ddimctl.files.latents import load_latents


@pytest.fixture
def interpolate(run_here):
    return lambda *arguments: run_here("interpolate", *arguments)


def test_latents_of_two_samples_need_nothing_else(run_forked, tiny_class_checkpoint, tmp_path):
    for name, seed in (("a", 3), ("b", 9)):
        code, _, err = run_forked(
            *("sample", "--ckpt", tiny_class_checkpoint, "--seeds", seed, "--class", "item"),
            *("--steps", 2, "--out", name),
        )
        assert code == 0, err
    code, out, err = run_forked(
        *("interpolate", "a/latents.pt", "b/latents.pt", "--frames", 3, "--video", "gif")
    )
    assert code == 0, err
    folder = "runs/00000-interpolate"
    names = ("grid.png", "frames", "latents.pt", "video.gif", "manifest.json")
    assert out.splitlines() == [f"{folder}/{name}" for name in names]
    found = load_latents(tmp_path / folder / "latents.pt")
    assert torch.equal(found.latents[[0, 2]], seeded_noise([3, 9], (3, 16, 16)))
    assert (found.metadata["steps"], found.metadata["labels"]) == (2, [2, 2, 2])
    for end, original in (("0000", "a/images/000003"), ("0002", "b/images/000009")):
        images = [tmp_path / folder / "frames" / f"{end}.png", tmp_path / f"{original}.png"]
        assert pixels_apart(*images) <= 1


def pixels_apart(first, second):
    from PIL import Image, ImageChops

    with Image.open(first) as one, Image.open(second) as other:
        return max(high for _, high in ImageChops.difference(one, other).getextrema())


def test_json_is_one_object_that_names_what_was_made(interpolate, tiny_checkpoint, tmp_path):
    code, out, err = interpolate(
        *("--ckpt", tiny_checkpoint, "--seeds", "1,2,3", "--frames", 6, "--loop", "--steps", 1),
        *("--out", "out", "--json"),
    )
    assert code == 0, err
    record = json.loads(out)
    assert (record["inputs"], record["frames"]) == (["seed 1", "seed 2", "seed 3"], 6)
    assert all((tmp_path / path).exists() for path in record["outputs"].values())
    assert record["settings"]["steps"] == 1


def test_dry_run_prints_the_plan_and_writes_nothing(interpolate, tiny_checkpoint, tmp_path):
    code, out, err = interpolate(
        "--ckpt", tiny_checkpoint, "--seeds", "0-3", "--grid", "2x3", "--dry-run"
    )
    assert code == 0, err
    assert re.search(r"^frames +6$", out, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_2_and_leave_nothing(interpolate, tiny_checkpoint, tmp_path):
    for arguments, named in (
        (["--seeds", "1"], "at least two inputs, not 1"),
        (["--seeds", "1,2,3", "--frames", "2"], "less than the 3 inputs"),
        (["--seeds", "1,2,3", "--grid", "2x2"], "four inputs, not 3"),
        (["--seeds", "1,2", "--class", "monster"], "has no classes"),
        (["--seeds", "1,2", "--size", "17"], "multiples of"),
        (["--seeds", "1,2", "--resume"], "--resume needs the folder"),
    ):
        code, out, err = interpolate("--ckpt", tiny_checkpoint, *arguments)
        assert (code, out) == (2, "")
        assert named in err
        assert re.search(r"^error: .+\n(  try: .+\n)?\Z", err, re.MULTILINE)
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_is_1(interpolate, tiny_checkpoint, tmp_path):
    for name in ("gone.pt", "gone.png"):
        code, out, err = interpolate("--ckpt", tiny_checkpoint, name, "--seeds", "1")
        assert (code, out) == (1, "")
        assert f"{name}: there is no such file" in err
    assert list(tmp_path.iterdir()) == []
