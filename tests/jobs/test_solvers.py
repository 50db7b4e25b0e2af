"""--solver and --tau auto: what the files record of them, and what is kept between runs."""

import json

import pytest

import ddimctl
from ddimctl.diffusion.multistep import SOLVERS
from ddimctl.diffusion.timesteps import KINDS, timesteps
from ddimctl.errors import RequestError
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.files.pictures.images import read_image_text
from ddimctl.jobs.events import Progress
from ddimctl.jobs.interpolate.job import interpolate
from ddimctl.jobs.sample import auto_timesteps
from ddimctl.jobs.sample.job import sample
from flat_requests import interpolate_request, sample_request


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(auto_timesteps, "IMAGES", 2)
    return tmp_path / "cache" / "timesteps"


@pytest.fixture
def request_for(tiny_checkpoint, tmp_path):
    def make(out="out", **settings):
        seeds = {} if "latents" in settings else {"seeds": (0, 1)}
        settings = {"steps": 4, "ckpt": str(tiny_checkpoint)} | seeds | settings
        return sample_request(out=tmp_path / out, **settings)

    return make


def interpolate_of(request, **inputs):
    """An interpolation in three frames, sampled as the request says."""
    common = {"solver": request.sampler.solver, "steps": request.sampler.steps, "frames": 3}
    common |= {"ckpt": request.checkpoint.ckpt, "out": request.output.out}
    return interpolate_request(**common, **inputs)


def settings_of(folder):
    return json.loads((folder / "manifest.json").read_text())["settings"]


def images(folder):
    return [path.read_bytes() for path in sorted((folder / "images").iterdir())]


def phases(finished):
    return {event.phase for event in finished.events if isinstance(event, Progress)}


def test_the_solver_is_recorded_and_reused(finish, request_for, tmp_path):
    finish(sample, request_for("a", solver="ipndm"))
    assert settings_of(tmp_path / "a")["solver"] == "ipndm"
    path = tmp_path / "a" / "latents.pt"
    assert load_latents(path).metadata["solver"] == "ipndm"
    path_of_one = tmp_path / "a" / "images" / "000000.png"
    text = json.loads(read_image_text(path_of_one)["ddimctl"])
    assert text["solver"] == "ipndm"
    finish(
        sample, sample_request(out=tmp_path / "b", latents=path, ckpt=request_for().checkpoint.ckpt)
    )
    finish(sample, request_for("c", solver="ddim"))
    assert settings_of(tmp_path / "b")["solver"] == "ipndm"
    a, b, c = (load(tmp_path / name) for name in "abc")
    assert a == b != c


def load(folder):
    from PIL import Image

    images = []
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            images.append(image.tobytes())
    return images


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_images_are_those_of_the_python_api(finish, request_for, tmp_path, solver):
    import torch

    finish(sample, request_for(solver=solver, save=("samples",)))
    checkpoint = ddimctl.load_checkpoint(request_for().checkpoint.ckpt)
    x_T = ddimctl.seeded_noise([0, 1], checkpoint.sample_shape)
    tau = ddimctl.timesteps("linspace", 4, 1000)
    x_0 = ddimctl.sample(checkpoint, x_T, timesteps=tau, solver=solver)
    stored = load_latents(tmp_path / "out" / "samples.pt", key="samples").latents
    torch.testing.assert_close(stored, x_0, rtol=1e-4, atol=1e-4 * float(x_0.abs().max()))


def test_latents_with_an_impossible_solver_are_refused(finish, request_for, tmp_path):
    import torch

    path = tmp_path / "x.pt"
    save_latents(path, torch.zeros(1, 3, 16, 16), {"solver": "heun"})
    with pytest.raises(RequestError, match="unknown solver 'heun'"):
        finish(sample, request_for(latents=path))


def test_noise_and_a_solver_without_any_are_refused(finish, request_for):
    with pytest.raises(RequestError, match="is deterministic"):
        finish(sample, request_for(solver="dpm++2m", eta=0.5))


def test_an_inverted_latent_may_be_decoded_otherwise_with_a_warning(finish, request_for, tmp_path):
    import torch

    path = tmp_path / "x.pt"
    save_latents(path, torch.zeros(1, 3, 16, 16), {"method": "exact"})
    assert "inexact" in finish(sample, request_for("a", latents=path, solver="ipndm")).notices()
    assert "near" not in finish(sample, request_for("b", latents=path)).notices()


def test_frames_take_the_solver_and_images_refuse_it(finish, request_for, tmp_path):
    request = interpolate_of(request_for(solver="dpm++2m"), seeds=(0, 1))
    finish(interpolate, request)
    assert settings_of(tmp_path / "out")["solver"] == "dpm++2m"
    image = tmp_path / "image.png"
    image.write_bytes(next((tmp_path / "out" / "frames").iterdir()).read_bytes())
    again = interpolate_of(request_for("again", solver="dpm++2m"), files=(image,), seeds=(1,))
    with pytest.raises(RequestError, match="solver dpm"):
        finish(interpolate, again)


def test_auto_timesteps_are_found_once_and_recorded(
    finish, request_for, tmp_path, cache, monkeypatch
):
    monkeypatch.setenv("DDIMCTL_CACHE_GB", "0")
    cache.mkdir(parents=True)
    (cache / "older.json").write_text("{}")
    first = finish(sample, request_for("a", timesteps="auto"))
    assert "240 evaluations" in first.notices()
    assert "choosing timesteps" in phases(first)
    assert not (cache / "older.json").exists()
    recorded = settings_of(tmp_path / "a")
    assert recorded["tau"] == "auto"
    assert len(recorded["timesteps"]) == 4
    assert recorded["timesteps"][-1] == 999
    assert all(recorded["timesteps"] != list(timesteps(kind, 4)) for kind in KINDS)
    path_of_one = tmp_path / "a" / "images" / "000000.png"
    text = json.loads(read_image_text(path_of_one)["ddimctl"])
    assert text["timesteps"] == recorded["timesteps"]

    again = finish(sample, request_for("b", timesteps="auto"))
    assert phases(again) == {"sampling"}
    assert images(tmp_path / "a") == images(tmp_path / "b")
    other = finish(sample, request_for("c", timesteps="auto", steps=5, solver="ipndm"))
    assert phases(other) == {"sampling"}  # from the probe that was kept
    assert len(settings_of(tmp_path / "c")["timesteps"]) == 5

    latents = sample_request(
        out=tmp_path / "d",
        latents=tmp_path / "a" / "latents.pt",
        ckpt=request_for().checkpoint.ckpt,
    )
    next(cache.iterdir()).unlink()
    assert phases(finish(sample, latents)) == {"sampling"}  # the file names them
    assert settings_of(tmp_path / "d")["timesteps"] == recorded["timesteps"]


def test_a_resumed_run_keeps_the_timesteps_that_it_began_with(finish, request_for, tmp_path, cache):
    """Without its cache, on another machine, a search might find others."""
    finish(sample, request_for(timesteps="auto", save=("images",)))
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["timesteps"] = [0, 7, 500, 999]
    path.write_text(json.dumps(manifest))
    next(cache.iterdir()).unlink()
    next((tmp_path / "out" / "images").iterdir()).unlink()
    resumed = finish(sample, request_for(timesteps="auto", save=("images",), resume=True))
    assert phases(resumed) == {"sampling"}
    assert settings_of(tmp_path / "out")["timesteps"] == [0, 7, 500, 999]
    manifest["settings"]["timesteps"] = [0, 7, 7, 999]
    path.write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="holds 7 twice"):
        finish(sample, request_for(timesteps="auto", save=("images",), resume=True))


@pytest.mark.parametrize("content", ["{", "[]", '{"timesteps": [1, 2]}', "null"])
def test_a_damaged_cache_is_made_again(finish, request_for, tmp_path, cache, content):
    finish(sample, request_for("a", timesteps="auto"))
    next(cache.iterdir()).write_text(content)
    assert "choosing timesteps" in phases(finish(sample, request_for("b", timesteps="auto")))
    assert images(tmp_path / "a") == images(tmp_path / "b")


def test_a_dry_run_searches_for_nothing(finish, request_for, cache):
    result = finish(sample, request_for(timesteps="auto", dry_run=True))
    assert "takes 240 evaluations" in result.notices()
    assert "timesteps" not in result.result.settings
    assert not cache.exists()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_the_bundled_checkpoint_brings_its_timesteps(finish, tmp_path, cache, solver, steps):
    request = sample_request(seeds=(0,), timesteps="auto", steps=steps, solver=solver, dry_run=True)
    result = finish(sample, request).result
    assert len(result.settings["timesteps"]) == steps
    known = json.loads(auto_timesteps.BUNDLED_FILE.read_text("utf-8"))
    assert result.settings["timesteps"] == known["timesteps"][solver][str(steps)]
    assert not cache.exists()


def test_more_steps_than_the_search_has_timesteps_are_refused(finish, request_for, cache):
    with pytest.raises(RequestError, match="too few for --steps 51"):
        finish(sample, request_for(timesteps="auto", steps=51))
