import hashlib
import json
import os
import shutil
import signal

import pytest
import torch
from PIL import Image

import ddimctl
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.errors import DataError, NumericsError, RequestError, Stopped
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.files.pictures.images import read_image_text, to_uint8
from ddimctl.jobs.sample import store as sampling_store
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.plan import Plan
from flat_requests import changed, sample_request

EVERYTHING = ("grid", "images", "latents", "samples", "trajectory")


@pytest.fixture
def request_for(tiny_checkpoint, tmp_path):
    def make(out="out", ckpt=tiny_checkpoint, **settings):
        seeds = {} if "latents" in settings else {"seeds": (0, 1, 2, 3, 4)}
        settings = {"steps": 3, "batch_size": 2} | seeds | settings
        return sample_request(out=tmp_path / out, ckpt=str(ckpt), **settings)

    return make


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels(folder, seed, suffix="png"):
    with Image.open(folder / "images" / f"{seed:06d}.{suffix}") as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).int()


def test_every_output_is_written_and_named_in_the_manifest(finish, request_for, tmp_path):
    result = finish(sample, request_for(save=EVERYTHING)).result
    out = tmp_path / "out"
    assert set(result.outputs) == {*EVERYTHING, "manifest"}
    assert all(path.exists() for path in result.outputs.values())
    assert sorted(path.name for path in out.iterdir()) == [
        "grid.png", "images", "latents.pt", "manifest.json", "samples.pt", "trajectory.gif",
    ]  # fmt: skip
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] is True
    assert manifest["settings"]["timesteps"] == [0, 500, 999]
    assert [image["seed"] for image in manifest["images"]] == [0, 1, 2, 3, 4]
    for image in manifest["images"]:
        content = (out / image["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == image["sha256"]


def test_the_images_are_those_of_the_python_api(finish, request_for, tiny_checkpoint, tmp_path):
    finish(sample, request_for(save=("images", "samples"), batch_size=5))
    checkpoint = ddimctl.load_checkpoint(tiny_checkpoint)
    x_T = ddimctl.seeded_noise([0, 1, 2, 3, 4], checkpoint.sample_shape)
    x_0 = ddimctl.sample(checkpoint, x_T, timesteps=ddimctl.timesteps("linspace", 3, 1000))
    stored = load_latents(tmp_path / "out" / "samples.pt", key="samples").latents
    torch.testing.assert_close(stored, x_0, rtol=1e-4, atol=1e-4 * float(x_0.abs().max()))
    for seed, image in enumerate(to_uint8(stored)):
        assert torch.equal(pixels(tmp_path / "out", seed), image.flatten().int())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_does_not_depend_on_batch_order_or_company(finish, request_for, tmp_path, eta):
    finish(sample, request_for("a", eta=eta, batch_size=5))
    finish(sample, request_for("b", eta=eta, batch_size=2, seeds=(4, 9, 2)))
    for seed in (2, 4):
        difference = pixels(tmp_path / "a", seed) - pixels(tmp_path / "b", seed)
        assert int(difference.abs().max()) <= 1


def test_the_same_request_gives_the_same_bytes(finish, request_for, tmp_path):
    finish(sample, request_for("a", save=EVERYTHING, eta=0.5))
    finish(sample, request_for("b", save=EVERYTHING, eta=0.5))
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    assert first == second


@pytest.mark.parametrize(
    "lost",
    [
        ("images/000000.png",),
        ("images/000001.png", "images/000004.png", "grid.png"),
        ("trajectory.gif",),
        ("samples.pt", "latents.pt"),
        ("images/000004.png", "samples.pt", "trajectory.gif"),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_a_resumed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    finish, request_for, tmp_path, lost, complete
):
    out = tmp_path / "out"
    finish(sample, request_for(save=EVERYTHING))
    whole = files(out)
    for name in lost:
        (out / name).unlink()
    if not complete:
        manifest = json.loads((out / "manifest.json").read_text())
        for image in manifest["images"]:
            image.pop("sha256")
        (out / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    finish(sample, request_for(save=EVERYTHING, resume=True, batch_size=None))
    assert files(out) == whole


def test_samples_alone_go_on_after_a_stop(finish, request_for, tmp_path):
    settings = {"save": ("samples", "grid"), "batch_size": 1}
    finish(sample, request_for("whole", **settings))
    with pytest.raises(Stopped, match="with 2 of 5 images"):

        def on_event(event):
            if getattr(event, "done", 0) == 7:
                os.kill(os.getpid(), signal.SIGTERM)

        sample(request_for(**settings), on_event)
    resumed = finish(sample, request_for(resume=True, **settings))
    assert resumed.events[-1].total == 9
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_run_of_which_nothing_can_be_resumed_is_interrupted(finish, request_for, tmp_path):
    finish(sample, request_for("whole", save=("grid",), batch_size=1))
    with pytest.raises(KeyboardInterrupt):

        def on_event(event):
            if getattr(event, "done", 0) == 7:
                os.kill(os.getpid(), signal.SIGINT)

        sample(request_for(save=("grid",), batch_size=1), on_event)
    finish(sample, request_for(save=("grid",), batch_size=1, resume=True))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_stopping_leaves_a_folder_that_resume_completes(finish, request_for, tmp_path, monkeypatch):
    finish(sample, request_for("whole", save=("images", "grid"), batch_size=1))

    def on_event(event):
        if getattr(event, "done", 0) == 7:  # in the middle of the third image
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM"):
        sample(request_for(save=("images", "grid"), batch_size=1), on_event)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["complete"] is False
    assert 2 <= len(list((tmp_path / "out/images").iterdir())) < 5
    resumed = finish(sample, request_for(save=("images", "grid"), batch_size=1, resume=True))
    assert resumed.events[-1].total == 9  # three images of three steps were left
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_resuming_a_complete_run_does_nothing(finish, request_for, tmp_path):
    def changed():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}

    finish(sample, request_for(save=EVERYTHING))
    before = changed()
    finished = finish(sample, request_for(save=EVERYTHING, resume=True))
    assert "already complete" in finished.notices()
    assert changed() == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images/000003.png", lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]),
        ("images/000003.png", lambda data: b""),
        ("grid.png", lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:]),
        ("latents.pt", lambda data: data.replace(data[900:904], b"\0\1\2\3")),
        ("trajectory.gif", lambda data: data[:-10]),
    ],
)
def test_damaged_outputs_of_a_complete_run_are_made_again(
    finish, request_for, tmp_path, name, damage
):
    saved = ("grid", "images", "latents", "trajectory")
    request = request_for("out", seeds=(3, 4), steps=2, save=saved, resume=True)
    finish(sample, request)
    whole = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    path = tmp_path / "out" / name
    path.write_bytes(damage(whole[path]))
    assert path.read_bytes() != whole[path]
    again = finish(sample, request)
    assert "already complete" not in again.notices()
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == whole


def test_latents_decoded_with_another_checkpoint_are_told(
    finish, request_for, tiny_checkpoint, tmp_path
):
    finish(sample, request_for("out", seeds=(3,), steps=2))
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights = other / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    latents = {"latents": tmp_path / "out" / "latents.pt", "steps": 2}
    told = "the latents were made with 'tiny', and are decoded with 'other'."
    assert told in finish(sample, request_for("b", **latents, ckpt=str(other))).notices()
    assert "were made with" not in finish(sample, request_for("c", **latents)).notices()


def test_resuming_where_nothing_is_starts(finish, request_for, tmp_path):
    finish(sample, request_for(resume=True))
    assert (tmp_path / "out" / "grid.png").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eta": 0.5}, "eta"),
        ({"seeds": (0, 1)}, "seeds"),
        ({"save": ("images",)}, "save"),
        ({"no_metadata": True}, "metadata"),
    ],
)
def test_resuming_another_run_is_refused_with_the_difference(finish, request_for, change, named):
    finish(sample, request_for())
    with pytest.raises(RequestError, match=f"the settings differ from the first run's.*{named}"):
        finish(sample, request_for(resume=True, **change))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"prediction_type": "v_prediction"}, "prediction"), ({"beta_end": 0.03}, "schedule")],
)
def test_a_checkpoint_whose_settings_were_edited_is_another_one(
    finish, request_for, tiny_checkpoint, tmp_path, settings, named
):
    """Its hash is that of the weights."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "edited")
    request = request_for(ckpt=str(folder), save=("images",))
    finish(sample, request)
    next((tmp_path / "out" / "images").iterdir()).unlink()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(
        RequestError, match=f"the settings differ from the first run's.*{named} differs"
    ):
        finish(sample, changed(request, resume=True))


def test_nothing_is_overwritten_without_force(finish, request_for, tmp_path):
    finish(sample, request_for(seeds=(0, 1, 2)))
    with pytest.raises(RequestError, match="is not empty"):
        finish(sample, request_for(seeds=(0,)))
    (tmp_path / "out" / "images" / "notes.txt").write_text("mine")
    finish(sample, request_for(seeds=(0,), force=True))
    assert sorted(p.name for p in (tmp_path / "out/images").iterdir()) == [
        "000000.png",
        "notes.txt",
    ]


def test_images_carry_their_settings_and_nothing_of_the_machine(finish, request_for, tmp_path):
    finish(sample, request_for(eta=0.5))
    text = read_image_text(tmp_path / "out/images/000003.png")
    settings = json.loads(text["ddimctl"])
    assert (settings["seed"], settings["eta"], settings["steps"]) == (3, 0.5, 3)
    everything = b"".join(files(tmp_path / "out").values())
    assert str(tmp_path).encode() not in everything
    finish(sample, request_for("bare", no_metadata=True))
    assert read_image_text(tmp_path / "bare/images/000003.png") == {}
    assert read_image_text(tmp_path / "bare/grid.png") == {}


def test_latents_decode_to_the_images_of_their_seeds(finish, request_for, tmp_path):
    finish(sample, request_for("a", eta=0.5, batch_size=5))
    latents = tmp_path / "a" / "latents.pt"
    expected = seeded_noise([0, 1, 2, 3, 4], (3, 16, 16))
    assert torch.equal(load_latents(latents).latents, expected)
    request = sample_request(out=tmp_path / "b", latents=latents, batch_size=5)
    result = finish(sample, request).result  # the checkpoint and settings are found by themselves
    assert result.settings["eta"] == 0.5
    for seed in range(5):
        assert torch.equal(pixels(tmp_path / "a", seed), pixels(tmp_path / "b", seed))


def test_a_bare_latent_takes_the_request_s_settings(finish, request_for, tmp_path):
    path = tmp_path / "bare.pt"
    torch.save(seeded_noise([3], (3, 16, 16))[0], path)
    finish(sample, request_for("a", seeds=(3,)))
    finish(sample, request_for("b", latents=path))
    assert torch.equal(pixels(tmp_path / "a", 3), pixels(tmp_path / "b", 0))


def test_a_list_that_ends_elsewhere_than_the_latents_is_refused(finish, request_for, tmp_path):
    finish(sample, request_for("a"))
    latents = tmp_path / "a" / "latents.pt"
    with pytest.raises(RequestError, match="latents are at timestep 999"):
        finish(sample, request_for("b", latents=latents, timesteps="quadratic"))
    finish(sample, request_for("b", latents=latents, steps=7))  # another S of the same space
    finish(sample, request_for("c", timesteps="uniform", steps=10))
    with pytest.raises(RequestError, match=r"at timestep 900.*Leave out --tau and --steps"):
        finish(
            sample, request_for("d", latents=tmp_path / "c" / "latents.pt", timesteps="linspace")
        )


def test_latents_of_a_checkpoint_that_is_gone_ask_for_it(finish, request_for, tmp_path):
    path = tmp_path / "foreign.pt"
    record = {"name": "somewhere", "sha256": "0" * 64, "revision": None}
    save_latents(path, seeded_noise([0], (3, 16, 16)), {"checkpoint": record})
    with pytest.raises(RequestError, match="Name it with --ckpt"):
        finish(sample, sample_request(out=tmp_path / "out", latents=path))


def test_latents_of_another_shape_are_refused(finish, request_for, tmp_path):
    path = tmp_path / "gray.pt"
    torch.save(torch.zeros(1, 1, 16, 16), path)
    with pytest.raises(RequestError, match="1 channels, but the checkpoint has 3"):
        finish(sample, request_for(latents=path))


def test_other_sizes_are_sampled_and_wrong_ones_name_the_divisor(finish, request_for, tmp_path):
    finish(sample, request_for(size=(8, 24), seeds=(0,)))
    with Image.open(tmp_path / "out/images/000000.png") as image:
        assert image.size == (24, 8)
    with pytest.raises(RequestError, match="multiples of 2"):
        finish(sample, request_for("b", size=(9, 16)))


def test_webp_holds_the_same_pixels(finish, request_for, tmp_path):
    finish(sample, request_for("a", seeds=(0,)))
    finish(sample, request_for("b", seeds=(0,), format="webp", save=EVERYTHING))
    assert torch.equal(pixels(tmp_path / "a", 0), pixels(tmp_path / "b", 0, "webp"))
    assert (tmp_path / "b" / "trajectory.webp").exists()


def test_the_trajectory_is_an_animation_that_ends_with_the_samples(finish, request_for, tmp_path):
    finish(sample, request_for(save=("grid", "trajectory"), steps=5, format="webp", seeds=(0, 1)))
    with (
        Image.open(tmp_path / "out/trajectory.webp") as animation,
        Image.open(tmp_path / "out/grid.png") as grid,
    ):
        assert 1 < animation.n_frames <= 5  # equal neighbours may be one longer frame
        animation.seek(animation.n_frames - 1)
        assert animation.convert("RGB").tobytes() == grid.tobytes()


def test_classes_are_named_dealt_by_seed_or_drawn(finish, request_for, tiny_class_checkpoint):
    def labels(**settings):
        result = finish(
            sample,
            request_for(ckpt=tiny_class_checkpoint, force=True, seeds=(0, 1, 2, 7), **settings),
        ).result
        manifest = json.loads(result.outputs["manifest"].read_text())
        return [image["label"] for image in manifest["images"]]

    assert labels(classes=("monster",)) == [3, 3, 3, 3]
    assert labels(classes=("monster", "0")) == [3, 0, 3, 0]
    drawn = labels()
    assert drawn == labels(batch_size=1)
    assert all(0 <= label < 5 for label in drawn)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("dragon",)}, "no class 'dragon'.*floor, wall"),
        ({"classes": ("6",)}, "no class '6'"),
    ],
)
def test_unknown_classes_are_refused_with_the_known_ones(
    finish, request_for, tiny_class_checkpoint, settings, message
):
    with pytest.raises(RequestError, match=message):
        finish(sample, request_for(ckpt=tiny_class_checkpoint, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("0",)}, "has no classes"),
        ({"guidance": 2.0}, "has no classes"),
        ({"timesteps": (0, 500, 999), "steps": 4}, "contradicts --tau"),
        ({"timesteps": (0, 1000), "steps": None}, "outside 0"),
        ({"steps": 1001}, "at most 1000"),
        ({"eta": 1.5}, "between 0 and 1"),
        ({"variance": "large", "eta": 0.5}, "requires eta = 1"),
        ({"variance": "learned"}, "no learned variance"),
        ({"clip": "hard"}, "--clip must be one of"),
        ({"save": ("grids",)}, "unknown output 'grids'"),
        ({"format": "bmp"}, "--format must be one of"),
        ({"device": "tpu"}, "unknown device"),
        ({"precision": "fp8"}, "--precision must be one of"),
        ({"precision": "fp16"}, "fp16 runs on CUDA only"),
        ({"seeds": ()}, "no seeds to sample"),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(
    finish, request_for, tmp_path, settings, message
):
    with pytest.raises(RequestError, match=message):
        finish(sample, request_for(**settings))
    assert not (tmp_path / "out").exists()


def test_guidance_changes_the_image_and_weight_one_does_not(
    finish, request_for, tiny_class_checkpoint, tmp_path
):
    for name, guidance in (("plain", None), ("one", 1.0), ("three", 3.0)):
        request = request_for(name, ckpt=tiny_class_checkpoint, seeds=(0,), guidance=guidance)
        finish(sample, request)
    assert torch.equal(pixels(tmp_path / "plain", 0), pixels(tmp_path / "one", 0))
    assert not torch.equal(pixels(tmp_path / "plain", 0), pixels(tmp_path / "three", 0))


def test_values_that_are_not_finite_name_the_seed_and_the_step(
    finish, request_for, tmp_path, monkeypatch
):
    def start(plan, images, device):
        x_T = seeded_noise([plan.seeds[i] for i in images], plan.shape)
        for row, i in enumerate(images):
            if plan.seeds[i] == 3:
                x_T[row] = float("nan")
        return x_T

    monkeypatch.setattr(Plan, "start", start)
    with pytest.raises(NumericsError, match=r"seed 3: .* step at t = 999"):
        finish(sample, request_for())


def test_a_dry_run_tells_the_settings_and_writes_nothing(finish, request_for, tmp_path):
    result = finish(sample, request_for(dry_run=True)).result
    assert result.settings["timesteps"] == [0, 500, 999]
    assert result.outputs == {}
    assert not (tmp_path / "out").exists()


def test_without_out_every_run_gets_the_next_folder(finish, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = sample_request(ckpt=str(tiny_checkpoint), steps=1, seeds=(0,))
    folders = [str(finish(sample, request).result.out) for _ in range(2)]
    assert folders == ["runs/00000-sample", "runs/00001-sample"]


def test_a_damaged_manifest_is_not_resumed(finish, request_for, tmp_path):
    finish(sample, request_for())
    (tmp_path / "out/manifest.json").write_text("{")
    with pytest.raises(DataError, match="is not the manifest"):
        finish(sample, request_for(resume=True))


def test_a_run_streams_its_images_instead_of_keeping_them(
    finish, request_for, tmp_path, monkeypatch
):
    monkeypatch.setattr(sampling_store, "GRID_LIMIT", 2)
    kept = []
    original = sampling_store.SampleStore.finish

    def finish_store(self):
        kept.append(len(self._kept.pixels))
        return original(self)

    monkeypatch.setattr(sampling_store.SampleStore, "finish", finish_store)
    finish(sample, request_for(steps=1, seeds=tuple(range(9)), batch_size=4))
    assert kept == [2]
    assert len(list((tmp_path / "out/images").iterdir())) == 9


def test_latents_of_a_class_that_the_checkpoint_lacks_are_refused(
    finish, request_for, tiny_class_checkpoint, tmp_path
):
    path = tmp_path / "strange.pt"
    save_latents(path, seeded_noise([0], (3, 16, 16)), {"labels": [77]})
    with pytest.raises(RequestError, match="no class '77'"):
        finish(sample, request_for(ckpt=tiny_class_checkpoint, latents=path))


def test_numbers_that_are_class_names_do_not_change_recorded_labels(
    finish, tiny_class_checkpoint, tmp_path
):
    folder = shutil.copytree(tiny_class_checkpoint, tmp_path / "numbered")
    settings = json.loads((folder / "ddimctl.json").read_text())
    settings["class_names"] = ["1", "10", "2", "3", "5"]
    (folder / "ddimctl.json").write_text(json.dumps(settings))
    common = {"ckpt": str(folder), "steps": 2}
    finish(sample, sample_request(out=tmp_path / "a", seeds=(0,), classes=("10",), **common))
    finish(sample, sample_request(out=tmp_path / "b", latents=tmp_path / "a/latents.pt", **common))
    for name in ("a", "b"):
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert [(image["label"], image["class"]) for image in manifest["images"]] == [(1, "10")]


def test_resume_wins_over_force(finish, request_for, tmp_path):
    finish(sample, request_for(force=True))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}
    finished = finish(sample, request_for(force=True, resume=True))
    assert "already complete" in finished.notices()
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}


def test_latents_of_another_schedule_are_refused(finish, request_for, tmp_path):
    path = tmp_path / "other.pt"
    save_latents(path, seeded_noise([0], (3, 16, 16)), {"schedule": {"kind": "cosine"}})
    with pytest.raises(RequestError, match="another noise schedule"):
        finish(sample, request_for(latents=path))


def test_the_checkpoint_of_the_environment_is_found_again(
    finish, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("DDIMCTL_CKPT", str(tiny_checkpoint))
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "cache"))
    finish(sample, sample_request(out=tmp_path / "a", steps=1, seeds=(0,)))
    monkeypatch.delenv("DDIMCTL_CKPT")
    finish(sample, sample_request(out=tmp_path / "b", latents=tmp_path / "a/latents.pt"))


def test_an_image_s_bytes_do_not_depend_on_how_many_were_asked_for(finish, request_for, tmp_path):
    finish(sample, request_for("a", seeds=(3,), batch_size=1))
    finish(sample, request_for("b", seeds=(2, 3), batch_size=1))
    name = "images/000003.png"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"settings": {}}, {"images": [3]}, {"checkpoint": "x"}, {"settings": {"batch_size": -1}}],
)
def test_a_strange_manifest_is_not_resumed(finish, request_for, tmp_path, change):
    finish(sample, request_for())
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="is not the manifest"):
        finish(sample, request_for(resume=True))
