"""`ddimctl convert`, and files of other families on the command line of the other commands."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddimctl.checkpoints import load_checkpoint
from ddimctl.jobs.checkpoint_requests import ConvertRequest
from ddimctl.jobs.convert import convert
from ddimctl.jobs.option import make_request

DATA = Path(__file__).parents[1] / "data"
SAID = ["noise_schedule=linear", "diffusion_steps=1000", "num_heads=2"]
SAID += ["use_new_attention_order=false", "image_size=16"]


@pytest.fixture
def bare(tmp_path):
    """An OpenAI file with nothing beside it."""
    return Path(shutil.copy(DATA / "guided_diffusion_tiny_class" / "model.pt", tmp_path))


def flags(said):
    return [word for flag in said for word in ("--model-flag", flag)]


def worst_error(folder, recorded):
    """Of the folder's network: the largest relative error against outputs that a peer recorded."""
    network, x = load_checkpoint(folder).network, recorded["x_T"]
    errors = []
    with torch.inference_mode():
        for t in (0, 1, 500, 999):
            ours = network(x, torch.full((len(x),), t), recorded.get("y"))
            theirs = recorded[f"out.t{t}"]
            errors.append(float((ours - theirs).norm() / theirs.norm()))
    return max(errors)


@pytest.mark.parametrize(
    ("name", "weights", "output"),
    [
        ("ermongroup_tiny", "ema", "eps"),
        ("ermongroup_tiny", "raw", "raw_eps"),
        ("improved_diffusion_tiny", "auto", "out"),
        ("guided_diffusion_tiny", "auto", "out"),
        ("guided_diffusion_tiny_class", "auto", "out"),
    ],
)
def test_a_converted_folder_computes_what_the_peer_recorded(tmp_path, name, weights, output):
    convert(
        make_request(ConvertRequest, source=str(DATA / name), out=tmp_path / "out", weights=weights)
    )
    cases = load_file(DATA / name / "cases.safetensors")
    outputs = {key.replace(f"{output}.", "out."): tensor for key, tensor in cases.items()}
    assert worst_error(tmp_path / "out", outputs) < 1e-5


def test_a_network_with_a_wrong_flag_computes_something_else(tmp_path):
    source = DATA / "guided_diffusion_tiny"
    wrong = (("use_new_attention_order", "true"),)
    convert(
        make_request(ConvertRequest, source=str(source), out=tmp_path / "out", model_flags=wrong)
    )
    assert worst_error(tmp_path / "out", load_file(source / "cases.safetensors")) > 1e-2


def test_a_converted_folder_says_what_the_source_was(run_forked, tmp_path):
    source = DATA / "guided_diffusion_tiny_class"
    ran = run_forked("convert", source, "folder", "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert set(told) == {"out", "checkpoint"}
    assert told["out"] == "folder"
    ours, theirs = load_checkpoint(tmp_path / "folder"), load_checkpoint(source)
    assert ours.schedule.settings == theirs.schedule.settings
    assert ours.num_classes == 10
    sidecar = json.loads((tmp_path / "folder" / "ddimctl.json").read_text())
    assert sidecar["training"]["converted_from"]["family"] == "openai"
    assert str(tmp_path) not in json.dumps(sidecar)


def test_a_file_whose_name_is_not_utf_8_is_converted(tmp_path):
    source = tmp_path / os.fsdecode(b"caf\xe9.pt")
    shutil.copy(DATA / "guided_diffusion_tiny" / "model.pt", source)
    shutil.copy(DATA / "guided_diffusion_tiny" / "flags.json", tmp_path)
    convert(
        make_request(ConvertRequest, source=str(source), out=tmp_path / "out")
    )  # whose ddimctl.json names it
    assert load_checkpoint(tmp_path / "out").provenance.family == "diffusers"


def test_an_existing_folder_is_left_alone(run_forked, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    ran = run_forked("convert", DATA / "guided_diffusion_tiny", "folder")
    assert ran.code == 2
    assert "--force" in ran.stderr
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["mine.txt"]


def test_what_a_file_does_not_say_is_asked_for_by_name(run_forked, bare):
    ran = run_forked("info", bare)
    assert ran.code == 2
    assert "Traceback" not in ran.stderr
    assert "image_size" in ran.stderr
    ran = run_forked("info", bare, "--size", "16", *flags(SAID[:1]))
    assert ran.code == 2
    for name in ("num_heads", "use_new_attention_order", "diffusion_steps"):
        assert name in ran.stderr
    assert "noise_schedule" not in ran.stderr
    ran = run_forked("info", bare, "--json", *flags(SAID))
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert (told["family"], told["height"], told["learned_variance"]) == ("openai", 16, True)
    assert told["flags"].items() >= dict(word.split("=") for word in SAID).items()
    assert told["network"]["channels"] == [32, 64]


def test_flags_that_are_unknown_or_no_flags_are_refused(run_forked, bare):
    ran = run_forked("info", bare, "--model-flag", "num_heads")
    assert ran.code == 2
    assert "is not a name and a value" in ran.stderr
    ran = run_forked("info", bare, "--model-flag", "heads=4")
    assert ran.code == 2
    assert "num_heads" in ran.stderr
    ran = run_forked("info", "--model-flag", "num_heads=4")
    assert ran.code == 2
    assert "Leave out --model-flag" in ran.stderr


def test_latents_remember_what_was_said_of_their_checkpoint(run_forked, bare, tmp_path):
    ran = run_forked(
        "sample", "--ckpt", bare, *flags(SAID), "--seeds", "3,9", "--class", "7",
        "--steps", "2", "--out", "first",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    again = run_forked("sample", "--latents", "first/latents.pt", "--out", "second")
    assert again.code == 0, again.stderr
    first, second = (
        [Image.open(path).tobytes() for path in sorted((tmp_path / run / "images").iterdir())]
        for run in ("first", "second")
    )
    assert len(first) == 2
    assert first == second
    manifests = [
        json.loads((tmp_path / run / "manifest.json").read_text()) for run in ("first", "second")
    ]
    assert manifests[0]["checkpoint"] == manifests[1]["checkpoint"]
    assert manifests[0]["checkpoint"]["flags"]["num_heads"] == "2"


def test_latents_keep_their_network_when_the_settings_beside_it_change(run_forked, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(DATA / "guided_diffusion_tiny", source)
    ran = run_forked("sample", "--ckpt", source, "-n", "1", "--steps", "2", "--out", "first")
    assert ran.code == 0, ran.stderr
    whole = (source / "flags.json").read_text()
    changed = whole.replace('"use_new_attention_order": false', '"use_new_attention_order": true')
    assert changed != whole
    (source / "flags.json").write_text(changed)
    for out in ("second", "third"):
        ran = run_forked("sample", "--latents", "first/latents.pt", "--out", out)
        assert ran.code == 0, ran.stderr
        images = [Image.open(tmp_path / run / "images/000000.png") for run in ("first", out)]
        assert images[0].tobytes() == images[1].tobytes()
        (source / "flags.json").unlink(missing_ok=True)


def test_averaged_weights_of_another_checkpoint_are_not_left_beside_new_ones(run_forked, tmp_path):
    (tmp_path / "folder" / "unet_ema").mkdir(parents=True)
    ran = run_forked("convert", DATA / "guided_diffusion_tiny", "folder", "--force")
    assert ran.code == 2
    assert "unet_ema" in ran.stderr


def test_a_copy_of_another_name_decodes_the_latents_too(run_forked, tmp_path):
    weights = torch.load(DATA / "ermongroup_tiny" / "ckpt_1234.pth", weights_only=True)[4]
    shutil.copy(DATA / "ermongroup_tiny" / "config.yml", tmp_path)
    for name in ("ema_model.ckpt", "other.ckpt"):
        torch.save(weights, tmp_path / name)
    shutil.copy(tmp_path / "ema_model.ckpt", tmp_path / "other.ckpt")
    for name in ("ema_model.ckpt", "other.ckpt"):
        ran = run_forked("sample", "--ckpt", name, "-n", "1", "--steps", "1", "--out", name[:3])
        assert ran.code == 0, ran.stderr
    ran = run_forked("sample", "--latents", "ema/latents.pt", "--out", "again")
    assert ran.code == 0, ran.stderr


def test_latents_remember_the_size_that_was_said(run_forked, bare, tmp_path):
    said = flags(flag for flag in SAID if not flag.startswith("image_size"))
    ran = run_forked(
        "sample", "--ckpt", bare, *said, "--size", "24x16", "-n", "1", "--class", "7",
        "--steps", "1", "--out", "first", "--save", "latents",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    again = run_forked("sample", "--latents", "first/latents.pt", "--out", "second", "--json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["settings"]["size"] == [24, 16]
