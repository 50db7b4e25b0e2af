"""Strangers' files on a real command line: exit code, two lines, and nothing touched."""

import json
import os
import re

import pytest
import torch
from PIL import Image

from bad_input import encoded, png, some_images, tree
from ddimctl.files.latents import save_latents


@pytest.fixture
def here(tmp_path):
    """A folder of what strangers send, and a finished-looking output folder."""
    made = some_images()
    (tmp_path / "torn.jpg").write_bytes(made["rgb.jpg"][:300])
    (tmp_path / "bomb.png").write_bytes(png(100_000, 100_000))
    (tmp_path / "large.png").write_bytes(png(13_000, 13_000))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a\nb\x1b[31m.png").write_bytes(b"no image")
    (tmp_path / os.fsdecode(b"\xff\xfe.png")).write_bytes(b"no image")
    for name in ("pipe.png", "pipe.pt", "pipe.zip"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "lie.zip").write_bytes(encoded(Image.new("L", (4, 4))))
    save_latents(tmp_path / "huge.pt", torch.zeros(1, 3, 16, 16), {"guidance": 10**400})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text(json.dumps({"command": "sample", "images": 7}))
    (tmp_path / "run/mine.txt").write_text("mine")
    return tmp_path


BYTES_NAME = os.fsdecode(b"\xff\xfe.png")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        (
            1,
            [
                "invert",
                "pipe.png",
                "folder.png/../torn.jpg",
                "bomb.png",
                "large.png",
                "empty.png",
                "--out",
                "made",
            ],
        ),
        (1, ["invert", "a\nb\x1b[31m.png", BYTES_NAME, "gone.png", "--out", "made"]),
        (1, ["interpolate", "torn.jpg", "pipe.pt", "--out", "made"]),
        (1, ["sample", "--latents", "huge.pt", "--out", "made"]),
        (1, ["reconstruct", "pipe.zip", "--out", "made"]),
        (1, ["train", "lie.zip", "--out", "made"]),
        (1, ["sample", "--out", "run", "--resume"]),
        (2, ["invert", "x" * 300 + ".png"]),
        (2, ["sample", "--out", "y" * 300]),
        (2, ["sample", "--seeds", "0-99999999999"]),
        (2, ["sample", "--class", "9" * 5000]),
    ],
    ids=lambda value: None if isinstance(value, int) else f"{value[0]} {value[1][:9]!a}",
)
def test_bad_input_ends_in_two_lines_and_touches_nothing(
    code, arguments, here, run_forked, tiny_checkpoint
):
    before = tree(here)
    ckpt = [] if arguments[0] == "train" else ["--ckpt", tiny_checkpoint]
    ran = run_forked(*arguments, *ckpt, timeout=60)
    assert ran.code == code, ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", ran.stderr)
    lines = ran.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert sum(line.startswith("  try: ") for line in lines) <= 1
    assert all(line.startswith(("error: ", "  try: ", "note: ", "inverting: ")) for line in lines)
    assert tree(here) == before
