import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.paths import grid, lerp, slerp
from ddimctl.errors import DataError, RequestError
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.files.pictures.images import (
    encode_image,
    image_pixels,
    read_image_text,
    to_pil,
    to_uint8,
)
from ddimctl.jobs.interpolate.job import interpolate
from ddimctl.jobs.sample.job import sample
from flat_requests import changed, interpolate_request, sample_request

SHAPE = (3, 16, 16)


@pytest.fixture
def request_for(tiny_checkpoint, tmp_path):
    def make(out="out", ckpt=tiny_checkpoint, files=(), seeds=(), decoding=None, **settings):
        given = {"steps": 2, "batch_size": 4} | (decoding or {})
        return interpolate_request(
            files=tuple(files),
            seeds=tuple(seeds),
            out=tmp_path / out,
            ckpt=ckpt and str(ckpt),
            **given,
            **({"frames": None if "grid" in settings else 5} | settings),
        )

    return make


@pytest.fixture
def latent_file(tmp_path):
    def make(name, latents, **metadata):
        path = tmp_path / name
        save_latents(path, latents, metadata)
        return path

    return make


@pytest.fixture
def drawn(finish, tiny_class_checkpoint, tmp_path):
    """The latent file that `sample` leaves for these seeds of the class checkpoint."""

    def make(name, *seeds, ckpt=tiny_class_checkpoint, **settings):
        settings = {"steps": 3, "classes": ("item",)} | settings
        request = sample_request(out=tmp_path / name, ckpt=str(ckpt), seeds=seeds, **settings)
        return finish(sample, request).result.outputs["latents"]

    return make


def noise(*seeds):
    return seeded_noise(list(seeds), SHAPE)


def frame(folder, i):
    with Image.open(folder / "frames" / f"{i:04d}.png") as image:
        return image_pixels(image).int()


def stored(folder):
    return load_latents(folder / "latents.pt").latents


def test_everything_is_written_and_named_in_the_manifest(finish, request_for, tmp_path):
    result = finish(interpolate, request_for(seeds=(3, 9), video="webp")).result
    out = tmp_path / "out"
    assert list(result.outputs) == ["grid", "frames", "latents", "video", "manifest"]
    assert sorted(path.name for path in out.iterdir()) == [
        "frames", "grid.png", "latents.pt", "manifest.json", "video.webp",
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "frames").iterdir()) == [f"000{i}.png" for i in range(5)]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["command"], manifest["complete"]) == ("interpolate", True)
    assert [entry["name"] for entry in manifest["inputs"]] == ["seed 3", "seed 9"]
    assert [image["weight"] for image in manifest["images"]] == [0, 0.25, 0.5, 0.75, 1]
    assert manifest["images"][2]["file"] == "frames/0002.png"
    assert "seed" not in manifest["images"][2]
    assert str(tmp_path).encode() not in b"".join(p.read_bytes() for p in out.glob("*.*"))
    with Image.open(out / "video.webp") as video:
        assert video.n_frames == 5


def test_the_video_holds_inputs_and_its_end(finish, request_for, tmp_path):
    for name, options, expected in (
        ("loop", {"loop": True, "hold": 0.5}, [500, 80, 80, 500, 80, 80]),
        ("once", {"hold": 0.5}, [500, 80, 80, 80, 80, 1000]),
        ("plain", {"loop": True}, [80] * 6),
    ):
        request = request_for(name, seeds=(3, 9), frames=6, video="gif", **options)
        finish(interpolate, request)
        with Image.open(tmp_path / name / "video.gif") as video:
            found = []
            for i in range(video.n_frames):
                video.seek(i)
                found.append(video.info["duration"])
        assert found == expected


def test_frames_lie_on_the_arc_and_end_in_the_inputs_bit_for_bit(finish, request_for, tmp_path):
    for path, function in (("slerp", slerp), ("lerp", lerp)):
        finish(interpolate, request_for(path, seeds=(3, 9), path=path))
        found, (a, b) = stored(tmp_path / path), noise(3, 9)
        assert torch.equal(found[0], a)
        assert torch.equal(found[-1], b)
        assert torch.equal(found, torch.stack([function(a, b, k / 4) for k in range(5)]))


def test_end_images_are_the_inputs_own(finish, request_for, tiny_checkpoint, tmp_path):
    settings = {"ckpt": str(tiny_checkpoint), "steps": 2, "batch_size": 3}
    finish(sample, sample_request(out=tmp_path / "own", seeds=(3, 9), **settings))
    finish(interpolate, request_for(seeds=(3, 9)))
    for seed, i in ((3, 0), (9, 4)):
        with Image.open(tmp_path / f"own/images/00000{seed}.png") as image:
            difference = image_pixels(image).int() - frame(tmp_path / "out", i)
        assert int(difference.abs().max()) <= 1


def test_every_latent_of_a_file_and_then_the_seeds_make_the_tour(
    finish, request_for, latent_file, tmp_path
):
    files = [latent_file("two.pt", noise(4, 2)), latent_file("one.safetensors", noise(7))]
    result = finish(interpolate, request_for(files=files, seeds=(1,), frames=7)).result
    assert result.inputs == ("two #0", "two #1", "one", "seed 1")
    assert torch.equal(stored(tmp_path / "out")[::2], noise(4, 2, 7, 1))


def test_a_loop_comes_back_without_repeating_the_first_frame(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(0, 1, 2), frames=6, loop=True))
    found, ends = stored(tmp_path / "out"), noise(0, 1, 2)
    assert torch.equal(found[::2], ends)
    assert torch.equal(found[5], slerp(ends[2], ends[0], 0.5))


def test_a_grid_is_that_of_its_corners(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(0, 1, 2, 3), grid=(2, 3)))
    assert torch.equal(stored(tmp_path / "out"), grid(noise(0, 1, 2, 3), 2, 3))
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["grid"] == [2, 3]
    last = manifest["images"][5]
    assert (last["row"], last["column"]) == (1, 2)
    with Image.open(tmp_path / "out/grid.png") as image:
        assert image.width > 1.3 * image.height


def test_up_to_sixteen_frames_are_one_row_with_the_inputs_named(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(0, 1), frames=16, decoding={"steps": 1}))
    with Image.open(tmp_path / "out/grid.png") as image:
        assert image.width > 10 * image.height


def test_latents_bring_checkpoint_class_and_settings(finish, request_for, drawn, tmp_path):
    files = [drawn("a", 5), drawn("b", 6)]
    request = request_for(files=files, ckpt=None, decoding={"steps": None})
    result = finish(interpolate, request).result
    assert result.settings["timesteps"] == [0, 500, 999]
    manifest = json.loads(result.outputs["manifest"].read_text())
    assert {image["class"] for image in manifest["images"]} == {"item"}
    metadata = load_latents(result.outputs["latents"]).metadata
    assert metadata["method"] == "slerp"
    assert metadata["labels"] == [2] * 5
    assert "seeds" not in metadata
    finish(sample, sample_request(out=tmp_path / "again", latents=result.outputs["latents"]))
    with Image.open(tmp_path / "again/images/000003.png") as image:
        assert int((image_pixels(image).int() - frame(tmp_path / "out", 3)).abs().max()) <= 1


def test_seeds_follow_the_class_of_latents(finish, request_for, drawn):
    request = request_for(files=[drawn("a", 5)], seeds=(1, 2, 3, 4), ckpt=None)
    manifest = json.loads(finish(interpolate, request).result.outputs["manifest"].read_text())
    assert {image["class"] for image in manifest["images"]} == {"item"}


def test_different_classes_need_one_to_be_chosen(finish, request_for, drawn, tmp_path):
    files = [drawn("a", 5), drawn("b", 6, classes=("door",))]
    with pytest.raises(RequestError, match=r"b/latents.pt is of class 'door', .*a/l.* 'item'"):
        finish(interpolate, request_for(files=files, ckpt=None))
    request = request_for(files=files, ckpt=None, decoding={"classes": ("wall",)})
    manifest = json.loads(finish(interpolate, request).result.outputs["manifest"].read_text())
    assert {image["class"] for image in manifest["images"]} == {"wall"}


def test_latents_that_name_no_class_are_decoded_without(
    finish, request_for, latent_file, tiny_class_checkpoint
):
    files = [latent_file("a.pt", noise(0)), latent_file("b.pt", noise(1))]
    request = request_for(files=files, ckpt=tiny_class_checkpoint)
    manifest = json.loads(finish(interpolate, request).result.outputs["manifest"].read_text())
    assert {image["class"] for image in manifest["images"]} == {"none"}


def test_settings_that_differ_are_the_first_s_and_noise_is_left_out(finish, request_for, drawn):
    files = [drawn("a", 5), drawn("b", 6, steps=4, eta=1.0)]
    finished = finish(interpolate, request_for(files=files, ckpt=None, decoding={"steps": None}))
    assert (finished.result.settings["steps"], finished.result.settings["eta"]) == (3, 0)
    assert "differ in steps: 3 (" in finished.notices()
    assert "b/latents.pt was sampled with eta > 0" in finished.notices()


def test_an_atypical_latent_is_warned_of(finish, request_for, latent_file):
    files = [latent_file("odd.pt", 1.5 * noise(0)), latent_file("usual.pt", noise(1))]
    notices = finish(interpolate, request_for(files=files)).notices()
    assert "odd.pt is unlike noise" in notices
    assert "usual.pt" not in notices


def test_a_stopped_run_goes_on_and_a_different_one_does_not(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(3, 9)))
    out = tmp_path / "out"
    whole = {path: path.read_bytes() for path in out.rglob("*.*")}
    (out / "frames/0002.png").unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    resumed = request_for(seeds=(3, 9), decoding={"resume": True})
    finish(interpolate, resumed)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == whole
    for change in ({"seeds": (3, 8)}, {"path": "lerp"}, {"loop": True}):
        with pytest.raises(RequestError, match="the settings differ from the first run's"):
            finish(interpolate, changed(resumed, **change))
    with pytest.raises(RequestError, match="is not empty"):
        finish(interpolate, request_for(seeds=(3, 9)))


def test_force_takes_away_what_an_earlier_run_left(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(3, 9), frames=6, video="gif"))
    (tmp_path / "out/frames/mine.txt").write_text("mine")
    finish(interpolate, request_for(seeds=(3, 9), frames=3, decoding={"force": True}))
    assert sorted(p.name for p in (tmp_path / "out/frames").iterdir()) == [
        "0000.png", "0001.png", "0002.png", "mine.txt",
    ]  # fmt: skip
    assert not (tmp_path / "out/video.gif").exists()


def test_a_dry_run_tells_the_settings_and_writes_nothing(finish, request_for, tmp_path):
    request = request_for(seeds=(3, 9), decoding={"dry_run": True})
    result = finish(interpolate, request).result
    assert result.settings["timesteps"] == [0, 999]
    assert (result.frames, result.outputs) == (5, {})
    assert list(tmp_path.iterdir()) == []


def test_frames_carry_their_settings_unless_told_not_to(finish, request_for, tmp_path):
    finish(interpolate, request_for(seeds=(3, 9)))
    text = json.loads(read_image_text(tmp_path / "out/frames/0001.png")["ddimctl"])
    assert text["steps"] == 2
    assert len(text["latent_sha256"]) == 64
    finish(interpolate, request_for("bare", seeds=(3, 9), decoding={"no_metadata": True}))
    assert read_image_text(tmp_path / "bare/frames/0001.png") == {}


RECORD = {"name": "a", "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("first", "second", "settings", "named"),
    [
        ((noise(0), {}), (noise(1)[:, :, :8], {}), {}, r"b.pt has the size 3x8x16, .*a.pt .*3x16"),
        ((noise(0)[:, :1], {}), (noise(1)[:, :1], {}), {}, "1 channels, but the checkpoint has 3"),
        ((noise(0), {"top": 999}), (noise(1), {"top": 899}), {}, r"b.pt is at timestep 899, .*999"),
        ((noise(0), {"top": 899}), (noise(1), {}), {}, "latents are at timestep 899"),
        (
            (noise(0), {"checkpoint": RECORD}),
            (noise(1), {"checkpoint": RECORD | {"sha256": "1" * 64}}),
            {"ckpt": None},
            r"b.pt belongs to the checkpoint 'a' \(1{12}\), .*a.pt .*0{12}",
        ),
        ((noise(0), {}), (torch.zeros(1, *SHAPE), {}), {}, "from .*a.pt to .*b.pt: .*is zero"),
        ((noise(0), {}), (-noise(0), {}), {}, "from .*a.pt to .*b.pt: .*opposite"),
        ((noise(0), {}), (noise(1), {}), {"frames": 1}, "less than the 2 inputs"),
        ((noise(0), {}), (noise(1), {}), {"grid": (2, 2)}, "four inputs, not 2"),
        ((noise(0, 2), {}), (noise(1, 3), {}), {"grid": (1, 4)}, "too small"),
        ((noise(0, 2), {}), (noise(1, 3), {}), {"grid": (17, 17)}, "at most 256"),
        ((noise(0), {}), (noise(1), {}), {"grid": (2, 2), "loop": True}, "--loop does not apply to --grid"),
        ((noise(0), {}), (noise(1), {}), {"path": "spline"}, "--path must be one of"),
        ((noise(0), {}), (noise(1), {}), {"video": "avi"}, "--video must be one of"),
        ((noise(0), {}), (noise(1), {}), {"decoding": {"size": (8, 8)}}, "--size 8x8 contradicts"),
        ((noise(0), {}), (noise(1), {}), {"decoding": {"classes": ("a",)}}, "has no classes"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_and_leaves_nothing(
    finish, request_for, latent_file, tmp_path, first, second, settings, named
):
    files = [latent_file("a.pt", first[0], **first[1]), latent_file("b.pt", second[0], **second[1])]
    with pytest.raises(RequestError, match=named):
        finish(interpolate, request_for(files=files, **settings))
    assert not (tmp_path / "out").exists()


def test_one_input_is_no_path(finish, request_for, tmp_path):
    for loop in (False, True):
        with pytest.raises(RequestError, match="at least two inputs, not 1"):
            finish(interpolate, request_for(seeds=(3,), loop=loop))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (torch.full((1, *SHAPE), float("nan")), "NaN or infinite"),
        ({"latents": noise(1), "metadata": {"labels": ["x"]}}, "invalid value for 'labels'"),
        ({"latents": noise(1), "metadata": {"labels": [1, 2]}}, "class index"),
        ({"samples": noise(1)}, "finished samples"),
    ],
)
def test_files_that_cannot_be_used_are_named(finish, request_for, tmp_path, content, named):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(DataError, match=rf"bad\.pt.*{named}"):
        finish(interpolate, request_for(files=[tmp_path / "bad.pt"], seeds=(1,)))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def calm_checkpoint(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with small predictions, of which every image has an exact latent."""
    folder = tmp_path_factory.mktemp("calm") / "calm"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(
        {name: 0.001 * t if "conv_out" in name else t for name, t in tensors.items()}, weights
    )
    return folder


@pytest.fixture
def input_image(tmp_path):
    """An image file of smooth colours, its pixels (H, W, 3)."""

    def make(name, seed, size=(16, 16)):
        coarse = (seeded_noise([seed], (3, 4, 4)) / 3).clamp(-1, 1)
        smooth = torch.nn.functional.interpolate(coarse, size, mode="bilinear")
        pixels = to_uint8(smooth)[0]
        (tmp_path / name).write_bytes(encode_image(to_pil(pixels)))
        return tmp_path / name, pixels.int()

    return make


def test_images_are_inverted_and_come_back(
    finish, request_for, input_image, calm_checkpoint, tmp_path
):
    (first, a), (second, b) = input_image("first.png", 0), input_image("second.png", 1)
    finished = finish(
        interpolate, request_for(files=[first, second], ckpt=calm_checkpoint, decoding={"steps": 4})
    )
    assert finished.result.inputs == ("first", "second")
    assert "first.png: 16x16 pixels, unchanged" in finished.notices()
    assert "misses it" not in finished.notices()
    for i, pixels in ((0, a), (4, b)):
        assert int((frame(tmp_path / "out", i) - pixels).abs().max()) <= 1
    found = stored(tmp_path / "out")
    assert torch.equal(found[2], slerp(found[0], found[4], 0.5))


def test_an_image_without_an_exact_latent_is_warned_of_each_time(finish, request_for, input_image):
    image, _ = input_image("first.png", 0)
    for name in "ab":
        finished = finish(interpolate, request_for(name, files=[image], seeds=(1,)))
        assert "first.png: decoding its latent is off by up to" in finished.notices()


def test_an_inverted_image_is_remembered_by_content_and_settings(
    finish, request_for, input_image, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "cache"))
    image, _ = input_image("first.png", 0)

    def inversions(name, path, **settings):
        request = request_for(name, files=[path], seeds=(1,), decoding={"steps": 2} | settings)
        events = finish(interpolate, request).events
        return sum(getattr(event, "phase", "") == "inverting" for event in events)

    assert inversions("a", image) >= 2
    other_name = image.rename(tmp_path / "renamed.png")
    assert inversions("b", other_name) == 0
    assert torch.equal(stored(tmp_path / "a"), stored(tmp_path / "b"))
    assert inversions("c", other_name, steps=3) > 0
    for file in (tmp_path / "cache/inversions").iterdir():
        file.write_bytes(b"damaged")
    assert inversions("d", other_name) >= 2
    assert torch.equal(stored(tmp_path / "a"), stored(tmp_path / "d"))
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "0")
    assert inversions("e", other_name, steps=4) > 0
    assert len(list((tmp_path / "cache/inversions").iterdir())) == 1


def test_images_latents_and_seeds_mix(finish, request_for, drawn, input_image):
    image, _ = input_image("first.png", 0, size=(20, 30))
    request = request_for(files=[drawn("a", 5), image], seeds=(1,), ckpt=None, frames=3)
    finished = finish(interpolate, request)
    assert finished.result.inputs == ("latents", "first", "seed 1")
    assert "cropped to the middle 20x20" in finished.notices()
    manifest = json.loads(finished.result.outputs["manifest"].read_text())
    assert {image["class"] for image in manifest["images"]} == {"item"}


def test_settings_that_no_image_can_be_inverted_with_are_refused(
    finish, request_for, input_image, tiny_class_checkpoint, tmp_path
):
    image, _ = input_image("first.png", 0)
    for settings, named in (
        ({"clip": "static"}, "with clip static"),
        ({"precision": "bf16"}, "would not be exact"),
    ):
        request = request_for(
            files=[image], seeds=(1,), ckpt=tiny_class_checkpoint, decoding=settings
        )
        with pytest.raises(RequestError, match=named):
            finish(interpolate, request)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [None, b"", b"no image"])
def test_a_bad_image_is_named(finish, request_for, tmp_path, content):
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png"):
        finish(interpolate, request_for(files=[tmp_path / "bad.png"], seeds=(1,)))
    assert not (tmp_path / "out").exists()
