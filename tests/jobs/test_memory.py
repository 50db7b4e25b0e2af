"""A device that runs out of memory: smaller batches, the same images, and a record of it."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import DataError, DeviceError, NumericsError, Stopped
from ddimctl.jobs.interpolate.job import interpolate
from ddimctl.jobs.invert.job import invert
from ddimctl.jobs.invert.reconstruct import reconstruct
from ddimctl.jobs.sample.batches import (
    Group,
    Smaller,
    batch_groups,
    bounded,
    dealt,
    halved,
    merged,
    read_smaller,
)
from ddimctl.jobs.sample.job import sample
from flat_requests import (
    interpolate_request,
    invert_request,
    reconstruct_request,
    sample_request,
)
from forks import contents

EVERYTHING = ("grid", "images", "latents", "samples", "trajectory")
CPU_WORDS = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


class Small(torch.nn.Module):
    """A network on a device that has room for so many images; `after` calls it has less."""

    def __init__(self, unet, limit=2, after=0, error=None):
        super().__init__()
        self.unet, self.limit, self.after = unet, limit, after
        self.config = unet.config
        self.error = error or torch.OutOfMemoryError("no room")
        self.sizes = []

    def forward(self, x, *given, **named):
        self.sizes.append(len(x))
        if len(x) > self.limit and len(self.sizes) > self.after:
            raise self.error
        return self.unet(x, *given, **named)


@pytest.fixture
def small(tiny_checkpoint, monkeypatch):
    """small(limit, after, error): from now on all jobs run on such a device."""

    def install(*settings, **named):
        checkpoint = load_checkpoint(tiny_checkpoint)
        network = Small(checkpoint.unet, *settings, **named)
        monkeypatch.setattr(
            "ddimctl.jobs.checkpoint.open_checkpoint",
            lambda *_, **__: replace(checkpoint, unet=network),
        )
        return network

    return install


@pytest.fixture
def request_for(tmp_path):
    def make(out="out", **settings):
        settings = {"steps": 3, "seeds": tuple(range(11)), "batch_size": 8} | settings
        return sample_request(**{"out": tmp_path / out, "save": EVERYTHING} | settings)

    return make


@pytest.fixture
def inputs(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.new("RGB", (16, 16), (50 * i, 90, 220 - 50 * i)).save(tmp_path / f"photos/{i}.png")
    return sorted((tmp_path / "photos").iterdir())


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def levels(folder):
    images = []
    for path in sorted((folder / "images").iterdir()):
        with Image.open(path) as image:
            pixels = bytearray(image.tobytes())
        images.append(torch.frombuffer(pixels, dtype=torch.uint8).int())
    return torch.stack(images)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError(CPU_WORDS),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_smaller_batches_make_the_same_images(finish, request_for, small, tmp_path, error):
    small(limit=99)
    finish(sample, request_for("whole"))
    network = small(limit=2, error=error)
    finished = finish(sample, request_for())
    assert network.sizes == [8, 4, *[2] * 3 * 6]
    assert "out of memory with 8 images at a time; continuing with 4." in finished.notices()
    assert int((levels(tmp_path / "out") - levels(tmp_path / "whole")).abs().max()) <= 1
    found = manifest(tmp_path / "out")
    assert (found["settings"]["batch_size"], found["smaller_batches"]) == (8, [[0, 2]])
    assert found["complete"]
    assert len(found["images"]) == 11


def test_a_resume_repeats_the_smaller_batches(finish, request_for, small, tmp_path, terminate_at):
    """Memory runs out in the second group; then the run is stopped, and resumed with room enough."""
    settings = {"batch_size": 4, "eta": 1.0, "save": ("images", "samples", "grid")}
    small(limit=2, after=5)
    finish(sample, request_for("whole", **settings))
    assert manifest(tmp_path / "whole")["smaller_batches"] == [[4, 2]]
    for stop_at in (4, 8, 11):
        small(limit=2, after=5)
        with pytest.raises(Stopped):
            sample(request_for(f"out{stop_at}", **settings), terminate_at(stop_at))
        network = small(limit=99 if stop_at > 5 else 2, after=0 if stop_at > 5 else 2)
        finish(sample, request_for(f"out{stop_at}", resume=True, **settings))
        found, whole = contents(tmp_path / f"out{stop_at}"), contents(tmp_path / "whole")
        assert [name for name in whole | found if whole.get(name) != found.get(name)] == []
        assert 4 not in network.sizes[3:]


def test_the_record_comes_before_the_images_of_the_smaller_batches(
    finish, request_for, small, tmp_path
):
    small(limit=2)
    told = []

    def on_event(event):
        if "continuing with 2" in getattr(event, "text", ""):
            assert manifest(tmp_path / "out")["smaller_batches"] == [[0, 2]]
            assert not any((tmp_path / "out/images").iterdir())
            told.append(event)

    sample(request_for(), on_event)
    assert told


def test_one_image_at_a_time_is_the_end(finish, request_for, small, tmp_path):
    small(limit=0)
    with pytest.raises(DeviceError, match="out of memory with one image at a time"):
        finish(sample, request_for())
    small(limit=9)
    finish(sample, request_for(resume=True))
    assert manifest(tmp_path / "out")["smaller_batches"] == [[0, 1]]


def test_a_bug_is_no_lack_of_memory(finish, request_for, small):
    network = small(limit=2, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        finish(sample, request_for())
    assert network.sizes == [8]


def test_loading_without_room_is_a_device_error(finish, request_for, monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("ddimctl.jobs.checkpoint.open_checkpoint", full)
    with pytest.raises(DeviceError, match="out of memory"):
        finish(sample, request_for())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("strange", [[[0, 0]], [[4, 2], [2, 1]], [[0]], {"0": 2}, [[True, 2]], 7])
def test_strange_records_are_not_resumed(finish, request_for, small, tmp_path, strange):
    small(limit=99)
    finish(sample, request_for())
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(manifest(tmp_path / "out") | {"smaller_batches": strange}))
    with pytest.raises(DataError, match="is not the manifest"):
        finish(sample, request_for(resume=True))


def test_groups_in_closed_form():
    assert [list(g.images) for g in batch_groups(5, 2, [])] == [[0, 1], [2, 3], [4]]
    smaller = halved([], Group(range(8, 16), 8))
    assert smaller == [Smaller(8, 4)]
    groups = list(batch_groups(20, 8, smaller))
    assert [(g.images.start, g.images.stop, g.size) for g in groups] == [
        (0, 8, 8), (8, 12, 4), (12, 16, 4), (16, 20, 4),
    ]  # fmt: skip
    assert halved(smaller, Group(range(12, 16), 4)) == [Smaller(8, 4), Smaller(12, 2)]
    assert halved(smaller, Group(range(8, 12), 4)) == [Smaller(8, 2)]
    # a resume on a smaller device: what followed is no larger than the half
    assert halved(smaller, Group(range(8), 8)) == [Smaller(0, 4)]
    assert halved([Smaller(8, 2)], Group(range(8), 8)) == [Smaller(0, 4), Smaller(8, 2)]
    assert read_smaller([list(change) for change in smaller]) == smaller
    covered = [i for g in batch_groups(23, 6, [Smaller(3, 4), Smaller(10, 1)]) for i in g.images]
    assert covered == list(range(23))


def test_interpolation_backs_off_too(finish, small, tmp_path):
    small(limit=2)
    request = interpolate_request(seeds=(1, 2), frames=6, out=tmp_path / "out", steps=2)
    finish(interpolate, request)
    assert manifest(tmp_path / "out")["smaller_batches"] == [[0, 1]]


def test_inversion_goes_on_in_halves(finish, small, inputs, tmp_path):
    settings = {"method": "naive", "steps": 4, "batch_size": 5}
    network = small(limit=99)
    whole = finish(invert, invert_request(inputs, out=tmp_path / "whole", **settings))
    network = small(limit=2)
    settings["out"] = tmp_path / "out"
    finished = finish(invert, invert_request(inputs, **settings))
    assert "out of memory with 5 images at a time; continuing with 2." in finished.notices()
    assert [size for size in network.sizes if size > 2] == [5]
    steps = [event.done for event in finished.events if hasattr(event, "done")]
    assert steps == sorted(steps)
    for one, other in zip(finished.result.images, whole.result.images, strict=True):
        assert one["mse"] == pytest.approx(other["mse"], rel=1e-2)
    small(limit=0)
    with pytest.raises(DeviceError, match="one image at a time"):
        finish(invert, invert_request(inputs[:1], **settings, force=True))


def test_reconstruction_goes_on_in_halves(finish, small, inputs, tmp_path):
    small(limit=2)
    request = reconstruct_request(
        tmp_path / "photos", steps=(4,), methods=("naive",),
        out=tmp_path / "out", batch_size=5,
    )  # fmt: skip
    assert finish(reconstruct, request).result.rows[0]["pictures"] == 5


# --- numbers ------------------------------------------------------------------------------------


class Poisoned(torch.nn.Module):
    """A network that makes NaN of what is nearly white."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x, *given, **named):
        (output,) = self.unet(x, *given, **named)
        white = x.flatten(1).mean(1) > 0.9
        return (torch.where(white[:, None, None, None], torch.nan, output),)


@pytest.mark.parametrize("method", ["naive", "exact", "fixed-point"])
def test_a_input_image_without_a_finite_latent_is_told_and_the_others_go_on(
    finish, tiny_checkpoint, inputs, tmp_path, monkeypatch, method
):
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint = replace(checkpoint, prediction="v", unet=Poisoned(checkpoint.unet))
    monkeypatch.setattr("ddimctl.jobs.checkpoint.open_checkpoint", lambda *_, **__: checkpoint)
    Image.new("RGB", (16, 16), (255, 255, 255)).save(inputs[1])
    settings = {"out": tmp_path / "out", "batch_size": 3}
    request = invert_request(inputs[:4], method=method, steps=3, **settings)
    finished = finish(invert, request)
    ((name, reason),) = finished.result.failed
    assert name == str(inputs[1])
    assert "not finite" in reason
    assert reason in finished.notices()
    assert len(finished.result.images) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.pt")) == [
        "0.pt", "2.pt", "3.pt",
    ]  # fmt: skip
    table = reconstruct_request(
        tmp_path / "photos",
        steps=(3,),
        limit=3,
        methods=(method,),
        **settings,
        force=True,
    )
    with pytest.raises(NumericsError, match=f"{method} in 3 steps"):
        finish(reconstruct, table)
    frames = interpolate_request(files=tuple(inputs[:2]), steps=3, **settings, force=True)
    with pytest.raises(NumericsError, match=r"1\.png: its latent"):
        finish(interpolate, frames)


def test_stretches_of_several_processes_in_closed_form():
    groups = list(batch_groups(22, 4, []))
    stretches = [dealt(groups, rank, 3) for rank in range(3)]
    assert [len(stretch) for stretch in stretches] == [2, 2, 2]
    assert [group for stretch in stretches for group in stretch] == groups
    assert [len(dealt(groups[:2], rank, 3)) for rank in range(3)] == [0, 1, 1]

    # the second has no memory in its second group, the third in its first
    second = halved(bounded([], 4, 16), Group(range(12, 16), 4), 16)
    assert second == [Smaller(12, 2), Smaller(16, 4)]
    third = halved(bounded([], 4, 22), Group(range(16, 20), 4), 22)
    both = [Smaller(12, 2), Smaller(16, 2), Smaller(22, 4)]
    assert merged(merged([], second), third) == merged(merged([], third), second) == both
    assert merged(both, second) == merged(both, third) == both
    assert [group.images for group in batch_groups(22, 4, both)][:4] == [
        range(4), range(4, 8), range(8, 12), range(12, 14),
    ]  # fmt: skip
    # what was smaller before and after the stretch stays so
    known = [Smaller(0, 2), Smaller(8, 4), Smaller(16, 1)]
    again = halved(bounded(known, 4, 16), Group(range(8, 12), 4), 16)
    assert merged(known, again[1:]) == [Smaller(0, 2), Smaller(8, 2), Smaller(16, 1)]
