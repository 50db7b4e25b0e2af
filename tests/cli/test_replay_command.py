"""`ddimctl replay`: what it prints, and its exit codes."""

import json

from ddimctl.cli.main import main
from ddimctl.files.pictures.images import (
    encode_image,
    image_pixels,
    read_image,
    read_image_text,
    to_pil,
)
from ddimctl.jobs.sample.manifest import sha256_hex


def spoil(folder, levels):
    """Have the recorded image of seed 1 differ by so many levels."""
    path = folder / "images/000001.png"
    pixels = image_pixels(read_image(path, 3))
    pixels = (pixels.int() + levels).where(pixels < 128, pixels.int() - levels).byte()
    path.write_bytes(encode_image(to_pil(pixels), "png", read_image_text(path)))
    record = json.loads((folder / "manifest.json").read_text())
    record["images"][1]["sha256"] = sha256_hex(path.read_bytes())
    (folder / "manifest.json").write_text(json.dumps(record))


def test_replay_says_how_images_compare(run_forked, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    assert run("sample", "--ckpt", tiny_checkpoint, "-n", 2, "--steps", 2, "--out", "old")[0] == 0
    code, out, err = run_forked("replay", "old", "--out", "new")
    assert (code, out) == (0, "2 of 2 images have the same bytes.\nnew/manifest.json\n"), err
    assert (tmp_path / "new/grid.png").read_bytes() == (tmp_path / "old/grid.png").read_bytes()

    spoil(tmp_path / "old", 1)
    code, out, err = run("replay", "old/manifest.json", "--out", "new", "--force")
    assert code == 0, err
    assert out.splitlines()[1] == "1 of 2 images are equal within one level of 255."

    spoil(tmp_path / "old", 30)
    code, out, err = run("replay", "old", "--out", "new", "--force", "--json")
    assert code == 1
    images = json.loads(out)["images"]
    assert images[0] == {"name": "images/000000.png", "found": "same", "levels": 0}
    assert (images[1]["found"], images[1]["levels"] >= 29) == ("differs", True)
    assert "1 of 2 images differ: images/000001.png (by up to " in err
    assert not (tmp_path / "runs").exists()


def test_replay_of_nothing_is_told(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 1
    cause = f"error: {tmp_path}/manifest.json: there is no such file.\n"
    assert capsys.readouterr() == ("", f"{cause}  try: Check the path.\n")
