"""The readers of strangers' files with thousands of damaged ones each, and the largest images."""

import subprocess
import sys

import pytest
from hypothesis import given
from PIL import Image

from bad_input import (
    THOROUGH,
    a_zip,
    check_image,
    check_latents,
    check_zip,
    damaged,
    encoded,
    some_images,
    some_latents,
    with_png_checksums,
)
from peak import IMPORT_PEAK

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IMAGES = some_images()


@pytest.mark.parametrize("name", IMAGES)
def test_thousands_of_damaged_images(name):
    THOROUGH(given(damaged([IMAGES[name]]))(check_image))()


@pytest.mark.parametrize("name", [name for name in IMAGES if name.endswith(".png")])
def test_thousands_of_png_files_that_claim_wrong_numbers(name):
    def check(data):
        check_image(with_png_checksums(data))

    THOROUGH(given(damaged([IMAGES[name]]))(check))()


@pytest.mark.parametrize("name", ["new.pt", "old.pt", "a.safetensors"])
def test_thousands_of_damaged_latents(tmp_path, name):
    (tmp_path / "whole").mkdir()
    whole = some_latents(tmp_path / "whole")[name]
    THOROUGH(given(damaged([whole]))(lambda data: check_latents(tmp_path / name, data)))()


@pytest.mark.parametrize("method", [0, 8])
def test_thousands_of_damaged_zips(tmp_path, method):
    THOROUGH(given(damaged([a_zip(method)]))(lambda data: check_zip(tmp_path / "d.zip", data)))()


PEAK = """
from pathlib import Path
from ddimctl.files.pictures.images import read_image
before = peak()
read_image(Path(sys.argv[1]), 3)
print(int(peak() - before))
"""


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_a_image_of_a_hundred_million_pixels_takes_eight_bytes_of_memory_for_each(
    mode, tmp_path, clean_env
):
    path = tmp_path / "large.png"
    path.write_bytes(encoded(Image.new(mode, (10_000, 10_000), 7), compress_level=1))
    ran = subprocess.run(
        [sys.executable, "-c", IMPORT_PEAK + PEAK, path],
        env=clean_env,
        capture_output=True,
        text=True,
    )
    assert int(ran.stdout) < 900
