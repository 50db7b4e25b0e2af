import json
import math
import shutil

import pytest
import torch
from PIL import Image

import ddimctl
from ddimctl.errors import DataError, RequestError
from ddimctl.files.latents import load_latents
from ddimctl.files.pictures.images import from_uint8, read_image_text, to_uint8
from ddimctl.jobs.checkpoint import Model
from ddimctl.jobs.events import ignore
from ddimctl.jobs.invert import round_trip as trips
from ddimctl.jobs.invert.job import invert
from ddimctl.jobs.invert.reconstruct import reconstruct
from ddimctl.jobs.invert.request import DatasetImageOptions, InversionOptions
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.prompts import Prompted
from flat_requests import invert_request, reconstruct_request, sample_request


def noise_image(path, seed=0, size=(16, 16), mode="RGB"):
    """An image (W, H) of smooth random colours."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (4, 4, len(mode)), generator=generator, dtype=torch.uint8)
    Image.frombytes(mode, (4, 4), levels.numpy().tobytes()).resize(size).save(path)
    return path


def predicting_v(checkpoint, folder, **changes):
    """A copy whose random network predicts v, which decodes mildly: x_0 stays near x."""
    shutil.copytree(checkpoint, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | {"prediction_type": "v_prediction"} | changes
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def v_checkpoint(tiny_checkpoint, tmp_path_factory):
    return predicting_v(tiny_checkpoint, tmp_path_factory.mktemp("v") / "tiny-v")


@pytest.fixture(scope="session")
def v_class_checkpoint(tiny_class_checkpoint, tmp_path_factory):
    return predicting_v(tiny_class_checkpoint, tmp_path_factory.mktemp("v") / "tiny-class-v")


@pytest.fixture
def request_for(v_checkpoint, tmp_path):
    def make(*inputs, ckpt=v_checkpoint, out="out", steps=8, **settings):
        return invert_request(inputs, out=tmp_path / out, ckpt=str(ckpt), steps=steps, **settings)

    return make


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def pixels(path):
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).int()


def test_latents_decode_to_the_image_without_another_word(finish, request_for, tmp_path):
    inputs = [noise_image(tmp_path / f"{name}.png", seed) for seed, name in enumerate("abc")]
    result = finish(invert, request_for(*inputs, batch_size=2)).result
    assert [record["worst_level"] for record in result.images] == [0, 0, 0]
    assert names(tmp_path / "out") == [
        f"{name}.{end}" for name in "abc" for end in ("inversion.png", "pt")
    ]
    for name in "abc":
        out = tmp_path / f"decoded-{name}"
        finish(sample, sample_request(out=out, latents=tmp_path / "out" / f"{name}.pt"))
        difference = pixels(out / "images/000000.png") - pixels(tmp_path / f"{name}.png")
        assert int(difference.abs().max()) <= 1


def test_the_latents_are_those_of_the_python_api(finish, request_for, v_checkpoint, tmp_path):
    input_image = noise_image(tmp_path / "a.png")
    finish(invert, request_for(input_image))
    x_0 = from_uint8(pixels(input_image).view(1, 16, 16, 3).to(torch.uint8))
    tau = ddimctl.timesteps("linspace", 8)
    found = ddimctl.invert(ddimctl.load_checkpoint(v_checkpoint), x_0, timesteps=tau)
    stored = load_latents(tmp_path / "out" / "a.pt")
    torch.testing.assert_close(stored.latents, found.latents, rtol=1e-3, atol=1e-3)


def test_what_a_latent_records(finish, request_for, v_class_checkpoint, tmp_path):
    input_image = noise_image(tmp_path / "a.png", size=(40, 20))
    result = finish(invert, request_for(input_image, ckpt=v_class_checkpoint, fit="pad")).result
    metadata = load_latents(tmp_path / "out" / "a.pt").metadata
    expected = {
        "method": "exact", "top": 999, "steps": 8, "eta": 0.0,
        "clip": "none", "guidance": 1.0, "precision": "fp32", "labels": [5], "picture": "a.png",
        "fit": "pad", "original_size": [20, 40], "background": [0, 0, 0], "prediction": "v",
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected
    assert "seeds" not in metadata
    assert str(tmp_path) not in json.dumps(metadata)
    record = result.images[0]
    assert record["psnr"] == pytest.approx(-10 * math.log10(record["mse"]))
    assert record["latent_mean"] == pytest.approx(
        float(load_latents(tmp_path / "out" / "a.pt").latents.mean()), abs=1e-5
    )
    text = json.loads(read_image_text(tmp_path / "out" / "a.inversion.png")["ddimctl"])
    assert (text["method"], text["label"]) == ("exact", 5)


def test_a_class_is_recorded_and_reused(finish, request_for, v_class_checkpoint, tmp_path):
    input_image = noise_image(tmp_path / "a.png")
    finish(invert, request_for(input_image, ckpt=v_class_checkpoint, classes=("monster",)))
    assert load_latents(tmp_path / "out" / "a.pt").metadata["labels"] == [3]
    finish(sample, sample_request(out=tmp_path / "back", latents=tmp_path / "out" / "a.pt"))
    manifest = json.loads((tmp_path / "back" / "manifest.json").read_text())
    assert manifest["images"][0]["class"] == "monster"
    difference = pixels(tmp_path / "back/images/000000.png") - pixels(input_image)
    assert int(difference.abs().max()) <= 1


def test_bad_files_are_told_and_the_others_go_on(finish, request_for, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    inputs = [
        tmp_path / "text.png",
        noise_image(tmp_path / "good.png"),
        tmp_path / "missing.jpg",
        noise_image(tmp_path / "gray.png", size=(30, 20), mode="L"),
    ]
    finished = finish(invert, request_for(*inputs, batch_size=1))
    assert [record["fit"] for record in finished.result.images] == ["crop", "crop"]
    failed = dict(finished.result.failed)
    assert "not an image" in failed[str(inputs[0])]
    assert "no such file" in failed[str(inputs[2])]
    assert "cropped to the middle 20x20 and resized to 16x16" in finished.notices()
    assert names(tmp_path / "out") == ["good.inversion.png", "good.pt", "gray.inversion.png", "gray.pt"]  # fmt: skip


def test_inputs_of_one_stem_get_names_of_their_own(finish, request_for, tmp_path):
    (tmp_path / "other").mkdir()
    inputs = [
        noise_image(tmp_path / "a.png", 0),
        noise_image(tmp_path / "a.bmp", 1),
        noise_image(tmp_path / "A-2.png", 2),
        noise_image(tmp_path / "other" / "a.png", 3),
        tmp_path / "a.png",
    ]
    finish(invert, request_for(*inputs, method="naive"))
    latents = [name for name in names(tmp_path / "out") if name.endswith(".pt")]
    assert sorted(latents) == ["A-2-2.pt", "a-2.pt", "a-3.pt", "a.pt"]
    images = [load_latents(tmp_path / "out" / name).metadata["picture"] for name in sorted(latents)]
    assert images == ["A-2.png", "a.bmp", "a.png", "a.png"]


def test_a_folder_is_read_without_the_sheets_of_an_earlier_run(finish, request_for, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise_image(folder / "a.png")
    finish(invert, request_for(folder, out="photos", method="naive"))
    again = finish(invert, request_for(folder, out="photos", method="naive", force=True)).result
    assert len(again.images) == 1


def test_an_empty_folder_is_refused(finish, request_for, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        finish(invert, request_for(tmp_path / "empty"))


def test_nothing_is_overwritten_without_force(finish, request_for, tmp_path):
    input_image = noise_image(tmp_path / "a.png")
    finish(invert, request_for(input_image, method="naive"))
    before = (tmp_path / "out" / "a.pt").read_bytes()
    with pytest.raises(RequestError, match="exists already"):
        finish(invert, request_for(input_image))
    assert (tmp_path / "out" / "a.pt").read_bytes() == before
    finish(invert, request_for(input_image, force=True))
    assert (tmp_path / "out" / "a.pt").read_bytes() != before


def test_a_input_image_is_never_its_own_result(finish, request_for, tmp_path):
    input_image = noise_image(tmp_path / "a.png").rename(tmp_path / "a.inversion.png")
    finish(invert, request_for(input_image, method="naive", out=".", force=True))
    assert (tmp_path / "a.inversion.inversion.png").exists()
    assert pixels(input_image).shape == (16 * 16 * 3,)


def test_a_dry_run_writes_nothing(finish, request_for, tmp_path):
    input_image = noise_image(tmp_path / "a.png")
    finished = finish(invert, request_for(input_image, dry_run=True, steps=None))
    assert finished.result.settings["steps"] == 50
    assert finished.result.images[0]["latents"] == str(tmp_path / "out" / "a.pt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "edict"}, "--method must be one of"),
        ({"tolerance": -1.0}, "not above 0"),
        ({"fit": "squeeze"}, "--fit must be one of"),
        ({"classes": ("0",)}, "has no classes"),
        ({"precision": "bf16"}, "would not be exact"),
        ({"size": (9, 16)}, "multiples of 2"),
        ({"steps": 1001}, "at most 1000"),
    ],
)
def test_wrong_requests_are_refused_and_leave_nothing(
    finish, request_for, tmp_path, settings, message
):
    input_image = noise_image(tmp_path / "a.png")
    with pytest.raises(RequestError, match=message):
        finish(invert, request_for(input_image, **settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("classes", "message"), [(("dragon",), "no class 'dragon'"), (("0", "1"), "Name one")]
)
def test_classes_that_cannot_be_are_refused(
    finish, request_for, v_class_checkpoint, tmp_path, classes, message
):
    input_image = noise_image(tmp_path / "a.png")
    with pytest.raises(RequestError, match=message):
        finish(invert, request_for(input_image, ckpt=v_class_checkpoint, classes=classes))


def test_zero_terminal_snr_is_refused(finish, request_for, tiny_checkpoint, tmp_path):
    folder = predicting_v(tiny_checkpoint, tmp_path / "zero", rescale_betas_zero_snr=True)
    input_image = noise_image(tmp_path / "a.png")
    with pytest.raises(RequestError, match="zero terminal SNR"):
        finish(invert, request_for(input_image, ckpt=folder))
    below = request_for(input_image, ckpt=folder, steps=None, timesteps=(0, 300, 600, 900))
    assert finish(invert, below).result.images[0]["worst_level"] <= 1


def plan_of(checkpoint, method="exact"):
    images, inversion = DatasetImageOptions(), InversionOptions(steps=8, method=method)
    model = Model(checkpoint, torch.device("cpu"), "fp32")
    return trips.inversion_plan(images, inversion, model, Prompted(checkpoint), 2, batch_size=None)


def test_what_a_loose_tolerance_missed_is_tried_again_tighter(v_checkpoint):
    checkpoint = ddimctl.load_checkpoint(v_checkpoint)
    plan = plan_of(checkpoint)
    x_0 = ddimctl.seeded_noise([0, 1], checkpoint.sample_shape).clamp(-1, 1)
    found = trips.round_trip(checkpoint, plan, x_0, 0.1, ignore, trips.Steps(0, 8, {}))
    once = ddimctl.invert(checkpoint, x_0, timesteps=plan.timesteps, tolerance=0.1)
    assert (found.evaluations > once.evaluations.sum(1)).all()
    left = ddimctl.sample(checkpoint, once.latents, timesteps=plan.timesteps) - x_0
    assert ((found.decoded - x_0).abs().max()) < left.abs().max()
    torch.testing.assert_close(
        found.decoded, ddimctl.sample(checkpoint, found.latents, timesteps=plan.timesteps)
    )


def test_fidelity_in_closed_form():
    x_0 = torch.zeros(2, 3, 2, 2)
    decoded = x_0.clone()
    decoded[1, 0, 0, 0] = 2 * 2 / 255
    same, other = trips.fidelity(x_0, decoded)
    assert (same.mse, same.psnr, same.worst_level, same.exact_pixels) == (0, None, 0, 1)
    assert other.mse == pytest.approx((2 / 255) ** 2 / 12)
    assert other.largest_error == pytest.approx(2)
    assert other.worst_level == 2
    assert other.exact_pixels == 0.75
    assert to_uint8(decoded).shape == (2, 2, 2, 3)


def test_the_warning_names_the_steps_that_were_not_solved(
    finish, request_for, tmp_path, monkeypatch
):
    monkeypatch.setattr("ddimctl.diffusion.anderson.LIMIT", 1)
    input_image = noise_image(tmp_path / "a.png")
    finished = finish(invert, request_for(input_image))
    assert "the decoded image is off by up to" in finished.notices()
    assert "at t = " in finished.notices()


# --- reconstruct --------------------------------------------------------------------------------


@pytest.fixture
def table_for(v_checkpoint, tmp_path):
    for seed in range(5):
        (tmp_path / "data").mkdir(exist_ok=True)
        noise_image(tmp_path / "data" / f"{seed}.png", seed)

    def make(**settings):
        common = {"ckpt": str(v_checkpoint), "out": tmp_path / "table"}
        settings = {"steps": (8, 12), "limit": 2} | common | settings
        return reconstruct_request(tmp_path / "data", **settings)

    return make


def test_the_table_has_a_row_for_each_method_and_number_of_steps(finish, table_for, tmp_path):
    result = finish(reconstruct, table_for()).result
    assert [(row["method"], row["steps"]) for row in result.rows] == [
        ("exact", 8), ("exact", 12), ("naive", 8), ("naive", 12),
    ]  # fmt: skip
    exact, naive = result.rows[0], result.rows[2]
    assert exact["pictures"] == 2
    assert exact["within_one_level"] == 1
    assert exact["mse"] < naive["mse"]
    assert naive["evaluations_per_step"] == 1
    lines = (tmp_path / "table" / "table.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("method,steps,decode_steps,pictures,mse")
    stored = json.loads((tmp_path / "table" / "table.json").read_text())
    assert stored["rows"] == list(result.rows)
    with Image.open(tmp_path / "table" / "plot.png") as plot:
        assert plot.height > plot.width
    assert (tmp_path / "table" / "table.md").read_text().count("\n| exact | ") == 2
    assert (tmp_path / "table" / "table.tex").read_text().count("\nnaive & ") == 2


def test_latents_are_decoded_in_other_numbers_of_steps(finish, table_for):
    result = finish(reconstruct, table_for(methods=("exact",), decode_steps=(8, 12))).result
    error = {(row["steps"], row["decode_steps"]): row["mse"] for row in result.rows}
    assert set(error) == {(8, 8), (8, 12), (12, 8), (12, 12)}
    assert max(error[8, 8], error[12, 12]) < min(error[8, 12], error[12, 8])


def test_decoding_from_another_top_is_refused(finish, table_for, tmp_path):
    request = table_for(steps=(4,), decode_steps=(3,), timesteps="uniform")
    with pytest.raises(RequestError, match="ends at 666"):
        finish(reconstruct, request)
    assert not (tmp_path / "table").exists()


def test_a_table_is_not_overwritten_without_force(finish, table_for):
    finish(reconstruct, table_for(steps=(2,), methods=("naive",)))
    with pytest.raises(RequestError, match="holds a table already"):
        finish(reconstruct, table_for())


def test_only_images_held_out_of_training_are_taken(finish, table_for):
    result = finish(reconstruct, table_for(holdout=0.4, limit=None, dry_run=True)).result  # fmt: skip
    assert 0 < result.images < 5
    with pytest.raises(DataError, match="keeps no image aside"):
        finish(reconstruct, table_for(holdout=1e-9))
