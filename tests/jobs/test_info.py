"""`info` tells what was found, in plain values."""

import json
from pathlib import Path

import pytest

from ddimctl.checkpoints import load_checkpoint
from ddimctl.jobs.info import describe


def test_a_checkpoint_is_described_in_json_values(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    told = describe(checkpoint)
    assert json.loads(json.dumps(told)) == told
    assert told["family"] == "diffusers"
    assert told["parameters"] == sum(weight.numel() for weight in checkpoint.unet.parameters())
    assert (told["channels"], told["height"], told["width"]) == (3, 16, 16)
    assert told["size_divisor"] == 2
    assert told["prediction"] == "eps"
    assert told["learned_variance"] is False
    assert told["schedule"]["kind"] == "linear"
    assert told["schedule"]["num_train_timesteps"] == 1000
    assert told["schedule"]["alpha_bar_first"] == pytest.approx(1 - 1e-4)
    assert told["schedule"]["alpha_bar_last"] == pytest.approx(4.04e-5, rel=1e-2)
    assert told["classes"] is None
    assert told["background"] is None
    assert told["ignored"]["clip_sample"] is True
    assert len(told["sha256"]) == 64


def test_classes_and_background_are_told(tiny_class_checkpoint: Path) -> None:
    told = describe(load_checkpoint(tiny_class_checkpoint))
    assert told["classes"] == {
        "count": 5,
        "names": ["floor", "wall", "item", "monster", "door"],
        "null_class": 5,
    }
    assert told["background"] == [0, 0, 0]
    assert told["weights"] == "ema"


def test_no_path_of_the_machine_is_told(tiny_checkpoint: Path) -> None:
    assert str(tiny_checkpoint.parent) not in json.dumps(describe(load_checkpoint(tiny_checkpoint)))
