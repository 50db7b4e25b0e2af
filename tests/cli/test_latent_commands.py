"""Latent and text checkpoints from the command line, on tiny ones whose pipelines were recorded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddimctl.cli.main import main
from ddimctl.files.latents import load_latents, save_latents

DATA = Path(__file__).parent.parent / "data" / "latent"
RUNS = {
    "sd1": ("s5-g1-one", "s10-g5-one", "s10-g5-one-oblong", "s10-g5-one-rescaled"),
    "sd2": ("s10-g5-one", "s10-g5-one-no-negative", "s10-g5-one-empty-negative"),
    "sdxl": ("s10-g5-one-no-negative", "s10-g5-one-empty-negative", "s10-g5-one-oblong"),
    "ldm-vq": ("s10-leading",),
}
SD1 = ["--ckpt", DATA / "sd1"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("transformers", reason="prompts need transformers")

    def command(*arguments, code=0):
        found = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert found == code, output.err
        return output

    return command


def pixels(path):
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as opened:
        return torch.frombuffer(bytearray(opened.convert("RGB").tobytes()), dtype=torch.uint8).int()


def images(folder):
    return sorted((folder / "images").iterdir())


@pytest.fixture
def photo(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.linear_gradient("L").rotate(30).resize((64, 64)).convert("RGB").save(
        tmp_path / "photo.png"
    )
    return tmp_path / "photo.png"


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in RUNS for case in RUNS[name]])
def test_recorded_runs_of_the_pipelines(run, tmp_path, name, case):
    settings = json.loads((DATA / name / "cases.json").read_text("utf-8"))["runs"][case]
    tensors = load_file(DATA / name / "cases.safetensors")
    save_latents(tmp_path / "x_T.pt", tensors[settings.get("x_T", "x_T")], {})
    tau = ",".join(map(str, sorted(settings["timesteps"])))
    arguments = ["--ckpt", DATA / name, "--latents", "x_T.pt", "--tau", tau]
    arguments += ["--guidance", settings.get("guidance", 1)]
    for prompt in settings.get("prompt", ()):
        arguments += ["--prompt", prompt]
    negative = settings.get("negative_prompt")
    if negative is not None:
        arguments += ["--negative", negative[0] if isinstance(negative, list) else negative]
    if settings.get("guidance_rescale"):
        arguments += ["--guidance-rescale", settings["guidance_rescale"]]
    run("sample", *arguments, "--save", "samples", "--out", "out")
    content = torch.load(tmp_path / "out" / "samples.pt", weights_only=True)
    expected = tensors[f"runs/{case}/latents"]
    assert (content["x_0"] - expected).abs().max() < 1e-4 * expected.abs().max()
    if f"runs/{case}/decoded" in tensors:
        decoded = tensors[f"runs/{case}/decoded"]
        assert content["samples"].shape == decoded.shape
        assert (content["samples"] - decoded).abs().max() < 2e-3


def test_an_inverted_photo_comes_back_and_can_be_edited(run, photo, tmp_path):
    run("invert", photo, *SD1, "--prompt", "a cat", "--steps", 20, "--out", "inv")
    latents = load_latents(tmp_path / "inv" / "photo.pt")
    assert latents.metadata["prompts"] == ["a cat"]
    assert latents.metadata["codec"]["class"] == "AutoencoderKL"
    figures = latents.metadata["inversion"]["figures"]
    assert figures["worst_level"] <= 1
    assert figures["autoencoder"]["mse"] > figures["mse"]
    run("sample", "--latents", "inv/photo.pt", "--save", "images,samples", "--out", "back")
    run("sample", "--latents", "inv/photo.pt", "--prompt", "a dog", "--out", "edit")
    (back,), (edit,) = images(tmp_path / "back"), images(tmp_path / "edit")
    assert (pixels(back) - pixels(edit)).abs().max() > 1
    again = run(
        "invert", photo, *SD1, "--prompt", "a cat", "--steps", 20, "--out", "inv", "--resume"
    )
    assert "already complete" in again.err
    refused = run(
        "invert",
        photo,
        *SD1,
        "--prompt",
        "a dog",
        "--steps",
        20,
        "--out",
        "inv",
        "--resume",
        code=2,
    )
    assert "prompts was" in refused.err


@pytest.mark.parametrize("guidance", [3, 7.5])
def test_inversion_under_guidance_comes_back(run, photo, tmp_path, guidance):
    settings = ["--prompt", "a cat", "--guidance", guidance, "--steps", 50]
    run("invert", photo, *SD1, *settings, "--out", "inv")
    figures = load_latents(tmp_path / "inv" / "photo.pt").metadata["inversion"]["figures"]
    assert figures["worst_level"] <= 1


def test_batches_resuming_and_replay_change_no_image(run, tmp_path):
    text = ["--prompt", "a red fox", "--prompt", "a wolf", "--steps", 4, "-n", 3]
    run("sample", *SD1, *text, "--batch-size", 3, "--out", "three")
    run("sample", *SD1, *text, "--batch-size", 1, "--out", "one")
    for left, right in zip(images(tmp_path / "three"), images(tmp_path / "one"), strict=True):
        assert (pixels(left) - pixels(right)).abs().max() <= 1
    whole = [path.read_bytes() for path in images(tmp_path / "three")]
    images(tmp_path / "three")[1].unlink()
    run("sample", *SD1, *text, "--batch-size", 3, "--out", "three", "--resume")
    assert [path.read_bytes() for path in images(tmp_path / "three")] == whole
    assert "3 of 3 images have the same bytes" in run("replay", "three", "--out", "again").out
    manifest = json.loads((tmp_path / "three" / "manifest.json").read_text("utf-8"))
    assert [image["prompt"] for image in manifest["images"]] == ["a red fox", "a wolf", "a red fox"]
    assert manifest["settings"]["guidance"] == 7.5
    assert manifest["settings"]["size"] == [64, 64]


def test_prompts_are_blended_between_inputs(run, tmp_path):
    options = [*SD1, "--steps", 4, "--guidance", 3]
    prompts = ["--prompt", "a red fox", "--prompt", "a wolf"]
    run("interpolate", *options, *prompts, "--seeds", 3, "--frames", 3, "--out", "way")
    first, middle, last = sorted((tmp_path / "way" / "frames").iterdir())
    for prompt, frame in (("a red fox", first), ("a wolf", last)):
        run("sample", *options, "--prompt", prompt, "--seeds", 3, "--out", "end", "--force")
        assert (pixels(images(tmp_path / "end")[0]) - pixels(frame)).abs().max() <= 1
    assert (pixels(first) - pixels(middle)).abs().max() > 1


def test_a_lora_is_found_again_with_the_latents(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lora = f"{DATA / 'sd1-lora' / 'kohya.safetensors'}:0.5"
    text = ["--prompt", "a red fox", "-n", 1, "--steps", 3]
    run("sample", *SD1, *text, "--out", "plain")
    run("sample", *SD1, *text, "--lora", lora, "--out", "lora")
    run("sample", "--latents", "lora/latents.pt", "--out", "again")
    plain, with_lora, again = (
        pixels(images(tmp_path / name)[0]) for name in ("plain", "lora", "again")
    )
    assert torch.equal(with_lora, again)
    assert not torch.equal(plain, with_lora)


def test_prompts_of_a_file(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red fox\nein Schloß, blau\n", encoding="utf-8")
    run("sample", *SD1, "--prompts", "prompts.txt", "-n", 2, "--steps", 2, "--out", "out")
    assert load_latents(tmp_path / "out" / "latents.pt").metadata["prompts"] == [
        "a red fox",
        "ein Schloß, blau",
    ]
    for content, says in ((b"", "is empty"), (b"a\n\nb\n", "line 2 is blank"), (b"\xff", "UTF-8")):
        (tmp_path / "prompts.txt").write_bytes(content)
        refused = run("sample", *SD1, "--prompts", "prompts.txt", "--out", "no", code=2)
        assert says in refused.err


def test_wrong_requests_are_one_line(run):
    text = [*SD1, "--prompt", "a red fox"]
    for arguments, says in (
        (SD1, "needs a prompt"),
        ([*text, "--class", "3"], "takes prompts"),
        ([*text, "--clip", "static"], "not bounded"),
        ([*text, "--tau", "auto"], "latents"),
        ([*text, "--size", "60"], "multiples of 8"),
        (["--prompt", "a red fox"], "does not take text"),
        (["--negative", "blurry"], "does not take text"),
        (["--ckpt", DATA / "ldm-vq", "--prompt", "a red fox"], "does not take text"),
    ):
        assert says in run("sample", *arguments, "--steps", 2, "--out", "no", code=2).err


def test_a_missing_lora_is_named(run):
    text = [*SD1, "--prompt", "a red fox", "--lora", "missing.safetensors"]
    assert "missing.safetensors" in run("sample", *text, "--out", "no", code=1).err


def test_what_latent_networks_are_not_for_is_refused(run, tmp_path):
    run("convert", DATA / "sd1", "converted", code=2)
    data = Path(__file__).parents[2] / "examples" / "avatars"
    refused = run("train", data, "--init", DATA / "ldm-vq", "--out", "run", "--steps", 1, code=2)
    assert "cannot be trained" in refused.err
    assert not (tmp_path / "converted").exists()


def test_evaluations_and_reconstructions(run, tmp_path):
    data = Path(__file__).parents[2] / "examples" / "avatars"
    text = ["--prompt", "a red fox", "--prompt", "a wolf"]
    small = ["--steps", 2, "--eta", 0, "-n", 3]
    run("evaluate", "--data", data, *SD1, *text, *small, "--out", "scores")
    table = json.loads((tmp_path / "scores" / "table.json").read_text("utf-8"))
    assert table["settings"]["prompts"] == ["a red fox", "a wolf"]
    assert table["settings"]["size"] == [64, 64]
    options = ["--steps", 10, "--limit", 2, "--method", "exact", "--out", "table"]
    run("reconstruct", data, "--ckpt", DATA / "ldm-vq", *options)
    rows = json.loads((tmp_path / "table" / "table.json").read_text("utf-8"))["rows"]
    assert rows[0]["worst_level"] <= 1


def test_info_names_the_parts(run):
    found = json.loads(run("info", DATA / "sdxl", "--json").out)
    assert found["autoencoder"]["scaling_factor"] == 0.13025
    assert (found["height"], found["width"]) == (64, 64)
    assert len(found["text_encoders"]) == 2
