"""`invert --resume`: what is done is kept, what is not of this run is refused."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import RequestError
from ddimctl.files.latents import load_latents, save_latents
from ddimctl.jobs.invert import round_trip as trips
from ddimctl.jobs.invert.job import invert
from flat_requests import invert_request
from forks import contents


@pytest.fixture
def inputs(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        colours = [(50 * i, 90, 200 - 50 * i), (0, 40 * i, 255)]
        image = Image.new("RGB", (16, 16), colours[0])
        image.paste(colours[1], (2, 3, 9, 4 + 2 * i))
        image.save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def request_for(tiny_checkpoint, inputs, tmp_path):
    def make(*some, **settings):
        common = {"out": tmp_path / "out", "ckpt": str(tiny_checkpoint), "steps": 3}
        common |= {"batch_size": 2, "method": "naive"}
        return invert_request(some or inputs, **(common | settings))

    return make


@pytest.fixture
def inverted(monkeypatch):
    """How many input images each inversion had, from now on."""
    sizes, original = [], trips.invert_steps

    def counted(denoise, x_0, *given, **named):
        sizes.append(len(x_0))
        return original(denoise, x_0, *given, **named)

    monkeypatch.setattr(trips, "invert_steps", counted)
    return sizes


def test_only_groups_that_miss_something_are_inverted_again(
    finish, request_for, tmp_path, inverted
):
    first = finish(invert, request_for()).result
    whole = contents(tmp_path / "out")
    (tmp_path / "out/3.pt").unlink()
    (tmp_path / "out/3.inversion.png").unlink()
    (tmp_path / "out/4.inversion.png").unlink()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[012].*")}
    kept[tmp_path / "out/2.pt"] = (tmp_path / "out/2.pt").stat().st_mtime_ns
    inverted.clear()
    resumed = finish(invert, request_for(resume=True))
    assert inverted == [2, 1]
    assert contents(tmp_path / "out") == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert resumed.result.images == first.images


def test_a_complete_run_is_complete_and_one_that_never_was_begins(finish, request_for, inverted):
    first = finish(invert, request_for(resume=True))
    assert inverted == [2, 2, 1]
    again = finish(invert, request_for(resume=True))
    assert inverted == [2, 2, 1]
    assert "already complete: 5 input images." in again.notices()
    assert again.result.images == first.result.images


def test_the_recorded_batch_size_is_used_unless_another_is_said(
    finish, request_for, tmp_path, inverted
):
    finish(invert, request_for())
    for size, groups in ((None, [2]), (3, [3])):
        (tmp_path / "out/0.pt").unlink()
        (tmp_path / "out/0.inversion.png").unlink()
        inverted.clear()
        finish(invert, request_for(resume=True, batch_size=size))
        assert inverted == groups


def test_inputs_may_be_added_at_the_end(finish, request_for, inputs, tmp_path, inverted):
    finish(invert, request_for(*inputs[:2]))
    kept = contents(tmp_path / "out")
    finish(invert, request_for(resume=True))
    assert inverted == [2, 2, 1]
    assert contents(tmp_path / "out").items() > kept.items()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fixed-point"}, "method was 'naive', is 'fixed-point'"),
        ({"steps": 4}, "steps was 3, is 4"),
        ({"timesteps": "trailing"}, "tau was 'linspace', is 'trailing'"),
        ({"tolerance": 0.5}, "tolerance was 1e-06, is 0.5"),
        ({"size": (8, 8)}, r"shape was \[3, 16, 16\], is \[3, 8, 8\]"),
        ({"fit": "pad"}, "not the image that was inverted: fit was 'crop', is 'pad'"),
    ],
)
def test_another_run_is_refused_and_force_writes_over_it(
    finish, request_for, tmp_path, changes, message
):
    finish(invert, request_for())
    before = contents(tmp_path / "out")
    with pytest.raises(RequestError, match=f"--resume: .*{message}"):
        finish(invert, request_for(resume=True, **changes))
    assert contents(tmp_path / "out") == before
    forced = finish(invert, request_for(resume=True, force=True, **changes))
    assert len(forced.result.images) == 5
    after = contents(tmp_path / "out")
    assert all(after[name] != before[name] for name in before if name.endswith(".pt"))


def test_another_image_of_that_name_is_refused(finish, request_for, inputs, tmp_path):
    finish(invert, request_for())
    before = contents(tmp_path / "out")
    Image.new("RGB", (16, 16), (1, 2, 3)).save(inputs[1])
    with pytest.raises(RequestError, match=r"1\.png is not the image .* its pixels differ"):
        finish(invert, request_for(resume=True))
    assert contents(tmp_path / "out") == before


def test_files_that_invert_did_not_write_are_refused(finish, request_for, tmp_path):
    (tmp_path / "out").mkdir()
    path = tmp_path / "out/2.pt"
    save_latents(path, torch.zeros(1, 3, 16, 16), {"method": "naive"})
    with pytest.raises(RequestError, match=r"2\.pt is not a latent of ddimctl invert"):
        finish(invert, request_for(resume=True))
    path.write_bytes(b"anything")
    with pytest.raises(RequestError, match=r"--resume: .*2\.pt cannot be read"):
        finish(invert, request_for(resume=True))
    path.rename(tmp_path / "out/2.inversion.png")
    with pytest.raises(RequestError, match="exists already"):
        finish(invert, request_for(resume=True))


def test_inputs_that_failed_are_tried_again(
    finish, request_for, inputs, tiny_checkpoint, tmp_path, monkeypatch
):
    """One that cannot be read, and one without a finite latent for now."""
    good = inputs[1].read_bytes()
    inputs[1].write_bytes(b"no image")
    checkpoint = load_checkpoint(tiny_checkpoint)
    unet = checkpoint.unet

    class Poisoned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, x, *given, **named):
            (output,) = self.unet(x, *given, **named)
            return (output * torch.nan if len(x) == 1 else output,)  # a group of the last alone

    monkeypatch.setattr(
        "ddimctl.jobs.checkpoint.open_checkpoint",
        lambda *_, **__: replace(checkpoint, unet=Poisoned()),
    )
    first = finish(invert, request_for(batch_size=4)).result
    assert [name for name, _ in first.failed] == [str(inputs[1]), str(inputs[4])]
    monkeypatch.undo()
    inputs[1].write_bytes(good)
    second = finish(invert, request_for(resume=True)).result
    assert (len(second.images), second.failed) == (5, ())
    assert len(contents(tmp_path / "out")) == 10


def test_the_record_says_how_well_a_input_image_was_inverted(finish, request_for, tmp_path):
    result = finish(invert, request_for()).result
    metadata = load_latents(tmp_path / "out/0.pt").metadata
    record = metadata["inversion"]
    assert (record["tolerance"], record["batch_size"]) == (1e-6, 2)
    assert record["figures"].items() <= result.images[0].items()
    assert len(record["pixels_sha256"]) == 64
