"""Small training runs, where to kill them, and what two equal ones have in common."""

import json
from pathlib import Path

import torch
from PIL import Image

from ddimctl.diffusion.noise import seeded_noise

NETWORK = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "dropout": 0.1,
}
OPTIONS = (
    *("--steps", "6", "--save-every", "2", "--sample-every", "3", "--log-every", "2"),
    *("--batch-size", "16", "--grad-accum", "2", "--class-conditional", "--flip"),
    *("--holdout", "0.2", "--warmup", "2", "--ema", "0.9", "--device", "cpu"),
)
TIMING = ("seconds", "images_per_second")

# Sends the process a signal at the nth time that something is renamed to, or unlinked at, a path
# that ends so; before it happens or after.
_SIGNAL_AT = """
import os, pathlib, signal
seen = 0

def deadly(original, place):
    def call(self, *rest, **named):
        global seen
        path = str(place(self, *rest))
        seen += path.endswith({suffix!r})
        at = path.endswith({suffix!r}) and seen == {nth}
        if at and {when!r} == "before":
            os.kill(os.getpid(), signal.{name})
        result = original(self, *rest, **named)
        if at and {when!r} == "after":
            os.kill(os.getpid(), signal.{name})
        return result
    return call

path = pathlib.Path
path.replace = deadly(path.replace, lambda old, new: new)
path.unlink = deadly(path.unlink, lambda old, *rest: old)
"""


def signal_at(suffix: str, nth: int, when: str, name: str = "SIGKILL") -> str:
    """The fault, for a fork, of a signal at that instant."""
    return _SIGNAL_AT.format(suffix=suffix, nth=nth, when=when, name=name)


def make_images(folder: Path) -> Path:
    """Forty images of 8x8 in two classes."""
    for index, noise in enumerate(seeded_noise(range(40), (8, 8, 3))):
        path = folder / ("left", "right")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.mul(40).add(128).clamp(0, 255).to(torch.uint8).numpy()).save(path)
    return folder


def make_network(path: Path) -> Path:
    path.write_text(json.dumps(NETWORK))
    return path


def last_state(run: Path) -> dict:
    newest = max((run / "state").glob("step-*.pt"))
    state = torch.load(newest, weights_only=True)
    state["metrics"] = without_timing(state["metrics"])
    return state


def without_timing(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def assert_same_run(run: Path, other: Path) -> None:
    """Every file of both is there, and the same but for the time that things took.

    Of the states, the last one: the one before it is that of a stop, where there was one.
    """
    names = [
        {
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and path.parent.name != "state"
        }
        for folder in (run, other)
    ]
    assert names[0] == names[1], names[0] ^ names[1]
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, other)]
    assert without_timing(map(json.loads, lines[0])) == without_timing(map(json.loads, lines[1]))
    for name in names[0]:
        if name.suffix not in (".pt", ".jsonl"):
            assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert_equal(last_state(run), last_state(other))


def assert_equal(value, other) -> None:
    """Plain values and tensors within them, bit for bit."""
    assert type(value) is type(other)
    if isinstance(value, torch.Tensor):
        assert value.dtype == other.dtype
        assert torch.equal(value, other)
    elif isinstance(value, dict):
        assert value.keys() == other.keys()
        for key in value:
            assert_equal(value[key], other[key])
    elif isinstance(value, list | tuple):
        assert len(value) == len(other)
        for item, its in zip(value, other, strict=True):
            assert_equal(item, its)
    else:
        assert value == other
