import json
import subprocess
import sys

import pytest
import torch

import ddimctl
from ddimctl.jobs.sample import batches
from ddimctl.jobs.sample.batches import bytes_per_image, default_batch_size
from peak import IMPORT_PEAK

CPU = torch.device("cpu")
SHAPE = (3, 32, 32)
NET = {"block_out_channels": [64, 128, 128], "layers_per_block": 1}
PEAK = """
import json, torch
from diffusers import UNet2DModel
from ddimctl.runtime.device import prepare_for_inference
settings, side, batch = json.loads(sys.argv[1])
unet = UNet2DModel(**settings)
prepare_for_inference(unet)
x, t = torch.zeros(batch, 3, side, side), torch.zeros(batch, dtype=torch.long)
with torch.inference_mode():
    unet(x[:1], t[:1])
    before = peak()
    unet(x, t)
print(int((peak() - before) * 2**20))
"""


@pytest.fixture(scope="module")
def bundled():
    return ddimctl.load_checkpoint()


def free(monkeypatch, size):
    monkeypatch.setattr(batches, "available_memory", lambda: size)


def test_the_estimate_counts_every_kept_map():
    net = {"block_out_channels": [10, 20], "layers_per_block": 3}
    first, second = 10 * 8 * 8, 20 * 4 * 4
    kept = first + 3 * first + first // 4 + 3 * second
    assert bytes_per_image(net, (3, 8, 8)) == 4 * (kept + 26 * first)


def test_the_estimate_is_near_what_an_evaluation_takes():
    settings = NET | {
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }
    given = json.dumps([settings, 64, 16])
    command = [sys.executable, "-c", IMPORT_PEAK + PEAK, given]
    taken = int(subprocess.run(command, check=True, capture_output=True).stdout)
    estimate = 15 * bytes_per_image(NET, (3, 64, 64))
    assert 0.4 * estimate < taken < 1.3 * estimate


def test_with_memory_enough_the_area_decides(bundled, monkeypatch):
    for size in (2**40, None):
        free(monkeypatch, size)
        assert default_batch_size(bundled, SHAPE, CPU, 1.0) == 16
        assert default_batch_size(bundled, (3, 64, 64), CPU, 1.0) == 4
        assert default_batch_size(bundled, (3, 48, 48), CPU, 1.0) == 7
        assert default_batch_size(bundled, (3, 512, 512), CPU, 1.0) == 1


def test_with_little_memory_half_of_it_decides(bundled, monkeypatch):
    each = bytes_per_image(bundled.unet.config, SHAPE)
    for images, batch in [(32, 16), (31, 8), (16, 8), (5, 2), (2, 1), (0, 1)]:
        free(monkeypatch, images * each)
        assert default_batch_size(bundled, SHAPE, CPU, 1.0) == batch
    free(monkeypatch, 16 * each)
    assert default_batch_size(bundled, SHAPE, CPU, 2.0) == 4  # two evaluations for each image


def test_the_processes_of_a_machine_share_its_memory(bundled, monkeypatch):
    free(monkeypatch, 32 * bytes_per_image(bundled.unet.config, SHAPE))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_batch_size(bundled, SHAPE, CPU, 1.0) == 8
