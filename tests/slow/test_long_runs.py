import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ddimctl
from ddimctl.files.pictures.images import from_uint8, image_pixels, read_image
from forks import contents, killed_often
from peak import IMPORT_PEAK

pytestmark = pytest.mark.slow

AVATARS = sorted((Path(__file__).parents[2] / "examples" / "avatars").glob("*.png"))
PEAK = """
from ddimctl.cli.main import main
code = main(sys.argv[1:])
print(peak())
sys.exit(code)
"""


def peak_memory(checkpoint, out, count, env):
    """MiB at most, of sampling that many images in one step."""
    arguments = ["sample", "--ckpt", checkpoint, "-n", str(count), "--steps", "1"]
    arguments += ["--batch-size", "32", "--save", "images", "--out", out]
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_PEAK + PEAK, *map(str, arguments)],
        env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(ran.stdout.splitlines()[-1])


def test_memory_stays_flat_over_thousands_of_images(tiny_checkpoint, tmp_path, clean_env):
    few = peak_memory(tiny_checkpoint, tmp_path / "few", 200, clean_env)
    many = peak_memory(tiny_checkpoint, tmp_path / "many", 4000, clean_env)
    assert many - few < 30
    manifest = json.loads((tmp_path / "many" / "manifest.json").read_text())
    assert len(manifest["images"]) == 4000


@pytest.fixture
def quick_checkpoint(tmp_path):
    """RGB, 32 x 32, of a few thousand weights, so that writing takes longer than sampling."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "quick" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "quick" / "scheduler")
    return tmp_path / "quick"


@pytest.mark.timeout(900)
def test_two_thousand_images_survive_five_kills(forks, quick_checkpoint, tmp_path):
    """The same hashes as of a run that nothing happened to, and no memory that grows with it."""
    command = ["sample", "--ckpt", quick_checkpoint, "-n", 2000, "--steps", 2, "--batch-size", 25]
    command += ["--save", "grid,images,latents,samples,trajectory", "--out", "out"]
    (tmp_path / "whole").mkdir()
    few = forks.run(*command, "-n", 100, cwd=tmp_path / "whole")
    assert few.code == 0, few.stderr
    started = time.monotonic()
    many = forks.run(*command, "--force", cwd=tmp_path / "whole")
    seconds = time.monotonic() - started
    assert many.code == 0, many.stderr
    dice = random.Random(2000)
    delays = [dice.uniform(0.1, 0.3) * seconds for _ in range(5)]
    ended = killed_often(forks, [*command, "--resume"], tmp_path, delays)
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole/out")
    assert len(list((tmp_path / "out/images").iterdir())) == 2000
    # Latents and samples are mapped from files: pages that the system may take back, but counts.
    mapped = 2 * (2000 - 100) * 3 * 32 * 32 * 4 / 2**20
    assert max(many.peak, ended.peak) - few.peak - mapped < 30


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("format", "save"),
    [
        ("png", "grid,images,latents,samples,trajectory"),
        ("webp", "images,trajectory"),
        ("png", "samples,grid"),
        ("webp", "images,latents"),
    ],
)
def test_twenty_kills_at_random_instants(forks, tmp_path, format, save):
    command = ["sample", "-n", 60, "--steps", 3, "--batch-size", 4, "--eta", 1, "--out", "out"]
    command += ["--format", format, "--save", save]
    (tmp_path / "whole").mkdir()
    started = time.monotonic()
    ended = forks.run(*command, cwd=tmp_path / "whole")
    seconds = time.monotonic() - started
    assert ended.code == 0, ended.stderr
    dice = random.Random(f"{format} {save}")
    delays = [dice.uniform(0, seconds) for _ in range(20)]
    ended = killed_often(forks, [*command, "--resume"], tmp_path, delays)
    assert ended.code == 0, ended.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole/out")


def test_the_paper_s_encoder_comes_nearer_with_more_steps():
    """The shape of the paper's Table 2, on the bundled checkpoint."""
    bundled = ddimctl.load_checkpoint()
    avatars = from_uint8(torch.stack([image_pixels(read_image(path, 3)) for path in AVATARS]))
    labels = torch.full((len(avatars),), bundled.null_class)
    errors = []
    for steps in (10, 50, 200):
        tau = ddimctl.timesteps("linspace", steps, 1000)
        latents = ddimctl.invert(
            bundled, avatars, timesteps=tau, method="naive", labels=labels
        ).latents
        back = ddimctl.sample(bundled, latents, timesteps=tau, labels=labels)
        errors.append(float((back - avatars).square().mean()) / 4)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
