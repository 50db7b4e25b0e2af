"""Replays of runs, of single images, and of records that strangers wrote."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bad_input import FAST, value_or_our_error
from ddimctl.errors import DataError, RequestError
from ddimctl.files.pictures.images import (
    encode_image,
    image_pixels,
    read_image,
    read_image_text,
    to_pil,
)
from ddimctl.jobs.interpolate.job import interpolate
from ddimctl.jobs.replay.job import BYTES, LEVEL, OTHER, SAME, UNKNOWN, ReplayRequest, replay
from ddimctl.jobs.replay.record import read_record
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.manifest import sha256_hex
from flat_requests import interpolate_request, sample_request


@pytest.fixture(scope="module")
def recorded(tiny_class_checkpoint, tmp_path_factory):
    """A run of five images in batches of two, with noise in each step."""
    out = tmp_path_factory.mktemp("recorded") / "old"
    request = sample_request(
        out=out,
        ckpt=str(tiny_class_checkpoint),
        seeds=(7, 3, 11, 2, 40),
        steps=3,
        timesteps="quadratic",
        eta=0.5,
        batch_size=2,
        guidance=2.0,
    )
    sample(request)
    return out


@pytest.fixture
def old(recorded, tmp_path):
    """A copy of the run, to be spoiled."""
    return shutil.copytree(recorded, tmp_path / "old")


@pytest.fixture
def again(finish, tmp_path):
    def run(source, **settings):
        settings = {"out": tmp_path / "new"} | settings
        return finish(replay, ReplayRequest(source, **settings))

    return run


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def edit(folder, **entries):
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | entries))


def found(finished):
    return [image.found for image in finished.result.images]


def spoil(folder, place, change):
    """Change the pixels of a recorded image, and the manifest with it."""
    record = manifest(folder)
    path = folder / record["images"][place]["file"]
    pixels = change(image_pixels(read_image(path, 3)))
    path.write_bytes(encode_image(to_pil(pixels), "png", read_image_text(path)))
    record["images"][place]["sha256"] = sha256_hex(path.read_bytes())
    edit(folder, **record)


def test_a_run_has_the_same_bytes_and_the_same_record(recorded, again, tmp_path):
    finished = again(recorded)
    assert found(finished) == [SAME] * 5
    assert finished.result.changes == ()
    assert manifest(tmp_path / "new") == manifest(recorded)
    for name in ("grid.png", "latents.pt"):
        assert (tmp_path / "new" / name).read_bytes() == (recorded / name).read_bytes()
    assert found(again(tmp_path / "new/manifest.json", out=tmp_path / "newer")) == [SAME] * 5


def test_latents_are_taken_from_beside_the_manifest(finish, recorded, again, tmp_path):
    finish(sample, sample_request(out=tmp_path / "old", latents=recorded / "latents.pt", eta=1.0))
    assert found(again(tmp_path / "old")) == [SAME] * 5
    assert manifest(tmp_path / "new") == manifest(tmp_path / "old")
    shutil.copyfile(recorded / "latents.pt", tmp_path / "elsewhere.pt")
    (tmp_path / "old/latents.pt").unlink()
    with pytest.raises(DataError, match="is missing"):
        again(tmp_path / "old", out=tmp_path / "x")


def test_other_latents_are_refused(old, again):
    images = manifest(old)["images"]
    edit(old, images=[image | {"latent_sha256": "0" * 64} for image in images])
    with pytest.raises(DataError, match="does not hold the latents"):
        again(old)


@pytest.mark.parametrize("grid", [None, (2, 2)])
def test_frames_are_decoded_again(finish, again, tiny_checkpoint, tmp_path, grid):
    request = interpolate_request(
        seeds=(1, 2, 5, 9),
        frames=None if grid else 6,
        grid=grid,
        out=tmp_path / "old",
        ckpt=str(tiny_checkpoint),
        steps=2,
        batch_size=3,
    )
    finish(interpolate, request)
    finished = again(tmp_path / "old")
    assert found(finished) == [SAME] * (4 if grid else 6)
    assert finished.result.images[1].name == "frames/0001.png"
    assert (tmp_path / "new/frames/0001.png").exists()


@pytest.mark.parametrize("format", ["png", "webp"])
def test_an_image_is_enough(finish, again, tiny_class_checkpoint, tmp_path, format):
    request = sample_request(
        out=tmp_path / "old",
        ckpt=str(tiny_class_checkpoint),
        seeds=(4,),
        steps=2,
        eta=1.0,
        format=format,
        batch_size=1,
    )
    finish(sample, request)
    image = tmp_path / f"sent.{format}"
    shutil.move(tmp_path / f"old/images/000004.{format}", image)
    finished = again(image)
    assert found(finished) == [SAME]
    assert "do not record the batch size" in finished.notices()
    assert (tmp_path / f"new/images/000004.{format}").read_bytes() == image.read_bytes()


def test_an_image_of_a_latent_finds_it_in_its_run(finish, recorded, again, tmp_path):
    request = sample_request(out=tmp_path / "old", latents=recorded / "latents.pt", batch_size=1)
    finish(sample, request)
    assert found(again(tmp_path / "old/images/000011.png")) == [SAME]
    shutil.copyfile(tmp_path / "old/images/000011.png", tmp_path / "alone.png")
    with pytest.raises(DataError, match="is missing"):
        again(tmp_path / "alone.png", out=tmp_path / "x")


def test_images_compare_by_levels(old, again):
    spoil(old, 0, lambda pixels: pixels ^ 1)
    spoil(old, 1, lambda pixels: torch.where(pixels > 127, pixels - 9, pixels + 9))
    spoil(old, 2, lambda pixels: pixels ^ 1)
    (old / manifest(old)["images"][2]["file"]).unlink()
    path = old / manifest(old)["images"][3]["file"]
    Image.open(path).save(path, compress_level=1)
    images = manifest(old)["images"]
    images[3]["sha256"] = sha256_hex(path.read_bytes())
    del images[4]["sha256"]
    edit(old, images=images)
    finished = again(old)
    assert found(finished) == [LEVEL, OTHER, UNKNOWN, BYTES, None]
    assert [image.levels for image in finished.result.images] == [1, 9, None, 0, None]


def test_the_recorded_batches_threads_and_options_are_used(old, again, tmp_path, monkeypatch):
    before, threads = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    edit(old, smaller_batches=[[2, 1]], threads=before + 1, metadata=False)
    finished = again(old)
    totals = {event.total for event in finished.events if getattr(event, "phase", "") == "sampling"}
    assert totals == {3 * 4}  # steps; groups of 2, 1, 1 and 1 images
    assert threads == [before + 1, before]
    assert manifest(tmp_path / "new")["smaller_batches"] == [[2, 1]]
    assert read_image_text(tmp_path / "new/images/000007.png") == {}
    assert set(found(finished)) <= {BYTES, LEVEL}


def test_what_is_not_as_it_was_is_told(old, again):
    edit(old, device="NVIDIA H100", ddimctl="0.0.1", versions={"torch": "1.0", "pillow": "1"})
    finished = again(old)
    for sentence in ("ddimctl was 0.0.1, is ", "torch was 1.0, is ", "device was NVIDIA H100, is "):
        assert sentence in finished.notices()
    assert len(finished.result.changes) == 4


def test_another_meaning_of_the_networks_output_is_told(old, again, tiny_class_checkpoint):
    edit(old, prediction="v")
    with pytest.raises(RequestError, match="another prediction"):
        again(old)
    finished = again(old, ckpt=str(tiny_class_checkpoint))
    assert "the prediction target was v, is eps" in finished.notices()


def test_another_checkpoint_needs_to_be_named(old, again, tiny_class_checkpoint, tmp_path):
    edit(old, checkpoint=manifest(old)["checkpoint"] | {"sha256": "0" * 64})
    with pytest.raises(RequestError, match="was not found"):
        again(old)
    finished = again(old, ckpt=str(tiny_class_checkpoint))
    assert "the checkpoint is not the recorded one" in finished.notices()
    assert found(finished) == [BYTES] * 5 or found(finished) == [SAME] * 5


def test_old_images_are_never_written_over(old, again):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for settings in ({}, {"force": True}, {"resume": True}):
        with pytest.raises(RequestError, match="holds the images to compare with"):
            again(old, out=old, **settings)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_a_stopped_replay_goes_on(recorded, again, tmp_path, cut_at):
    with pytest.raises(InterruptedError):
        replay(ReplayRequest(recorded, out=tmp_path / "new"), cut_at(4))
    assert not manifest(tmp_path / "new")["complete"]
    assert found(again(recorded, resume=True)) == [SAME] * 5
    assert "already complete" in again(recorded, resume=True).notices()
    with pytest.raises(RequestError, match="not empty"):
        again(recorded)
    assert found(again(recorded, force=True)) == [SAME] * 5


def test_what_says_nothing_is_refused(recorded, again, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "list.json").write_text("[1]")
    for source, words in (
        (tmp_path / "plain.png", "does not say how it was made"),
        (recorded / "grid.png", "is the grid of a run"),
        (tmp_path / "list.json", "is not the manifest"),
        (tmp_path, "no such file"),
        (recorded / "latents.pt", "is a latent file"),
    ):
        with pytest.raises(DataError, match=words):
            again(source)


def test_paths_of_strangers_are_not_followed(old):
    images = manifest(old)["images"]
    for strange in ("../secret.png", "/etc/passwd", "images/../../x.png", 3, None):
        edit(old, images=[image | {"file": strange} for image in images])
        assert {image.path for image in read_record(old).images} == {None}


PARTS = (
    *("settings", "steps", "eta", "tau", "size", "precision", "timesteps", "batch_size", "format"),
    *("checkpoint", "images", "seed", "label", "latent_sha256", "threads", "versions", "schedule"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def test_any_manifest_is_a_record_or_refused(recorded, tmp_path):
    good = manifest(recorded)

    @FAST
    @given(st.dictionaries(st.sampled_from(PARTS), VALUES, min_size=1, max_size=3))
    def check(strange):
        bad = json.loads(json.dumps(good))
        for key, value in strange.items():
            for table in (bad, bad["settings"], bad["images"][0]):
                if isinstance(table, dict) and key in table and key not in ("settings", "images"):
                    table[key] = value
        bad |= {key: strange[key] for key in ("settings", "images") if key in strange}
        (tmp_path / "manifest.json").write_text(json.dumps(bad))
        value_or_our_error(lambda: read_record(tmp_path))

    check()


def test_any_text_is_a_record_or_refused(recorded, tmp_path):
    path = recorded / "images/000007.png"
    good, pixels = (
        json.loads(read_image_text(path)["ddimctl"]),
        image_pixels(read_image(path, 3)),
    )

    @FAST
    @given(st.dictionaries(st.sampled_from(PARTS), VALUES, min_size=1, max_size=3))
    def check(strange):
        (tmp_path / "x.png").write_bytes(
            encode_image(to_pil(pixels), "png", {"ddimctl": json.dumps(good | strange)})
        )
        value_or_our_error(lambda: read_record(tmp_path / "x.png"))

    check()
