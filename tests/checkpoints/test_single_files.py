"""Single files of weights: which weights are taken, what is refused, and what is said of it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peer_files
import pytest
import torch
from peer_files import outputs
from peer_weights import relative
from safetensors.torch import save_file
from torch import Tensor

from ddimctl.checkpoints import Checkpoint, checkpoint_files, load_checkpoint
from ddimctl.errors import CheckpointError, DdimctlError, RequestError

DATA = Path(__file__).parents[1] / "data"
FLAGS = {
    key: str(peer_files.TINY_OPENAI[key])
    for key in (
        *("image_size", "num_heads", "use_new_attention_order"),
        *("noise_schedule", "diffusion_steps"),
    )
}


def refusal(path: Path, kind: type[DdimctlError] = CheckpointError, **options: Any) -> str:
    with pytest.raises(kind) as error:
        load_checkpoint(path, **options)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return str(error.value)


def scaled(weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {key: factor * tensor for key, tensor in weights.items()}


def first(checkpoint: Checkpoint) -> Tensor:
    return checkpoint.unet.state_dict()["conv_in.weight"]


# Which weights


def test_the_training_list_holds_raw_and_ema_weights() -> None:
    path = DATA / "ermongroup_tiny" / "ckpt_1234.pth"
    raw, *_, ema = torch.load(path, weights_only=True)
    chosen = {wanted: load_checkpoint(path, weights=wanted) for wanted in ("auto", "ema", "raw")}
    assert torch.equal(first(chosen["raw"]), raw["module.conv_in.weight"])
    assert torch.equal(first(chosen["ema"]), ema["conv_in.weight"])
    assert torch.equal(first(chosen["auto"]), ema["conv_in.weight"])
    kinds = {wanted: checkpoint.provenance.weights for wanted, checkpoint in chosen.items()}
    assert kinds == {"auto": "ema", "ema": "ema", "raw": "raw"}
    assert any("--weights raw" in note for note in chosen["auto"].provenance.notes)
    assert not chosen["raw"].provenance.notes


WRAPPED: dict[str, Callable[[Any, Any], Any]] = {
    "state_dict": lambda raw, ema: {"state_dict": raw, "epoch": 3},
    "model and ema": lambda raw, ema: {"model": raw, "ema": ema, "step": 5},
    "unet and ema_model": lambda raw, ema: {"unet": raw, "ema_model": ema, "opt": {"state": {}}},
    "ema alone": lambda raw, ema: {"ema": ema},
    "list without ema": lambda raw, ema: [raw, {"state": {}, "param_groups": []}, 1, 2],
    "module.": lambda raw, ema: {f"module.{key}": tensor for key, tensor in raw.items()},
    "state_dict of module.": lambda raw, ema: {
        "state_dict": {f"module.{key}": tensor for key, tensor in raw.items()}
    },
    "parameters": lambda raw, ema: {k: torch.nn.Parameter(v) for k, v in raw.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_weights_are_found_in_what_holds_them(tmp_path: Path, name: str) -> None:
    peer = peer_files.openai(tmp_path)
    ema = scaled(peer.weights, 2)
    content = WRAPPED[name](peer.weights, ema)
    for wanted in ("auto", "raw", "ema"):
        torch.save(content, peer.path)
        has_ema = isinstance(content, dict) and bool(content.keys() & {"ema", "ema_model"})
        has_raw = name != "ema alone"
        says_which = has_ema or name.startswith("list")
        if says_which and ((wanted == "ema" and not has_ema) or (wanted == "raw" and not has_raw)):
            assert "Leave --weights at auto." in refusal(peer.path, weights=wanted)
            continue
        checkpoint = load_checkpoint(peer.path, weights=wanted)
        took_ema = has_ema and wanted != "raw"
        expected = ema if took_ema else peer.weights
        assert torch.equal(first(checkpoint), expected["input_blocks.0.0.weight"])
        if says_which:
            assert checkpoint.provenance.weights == ("ema" if took_ema else "raw")
        else:  # the user's word
            assert checkpoint.provenance.weights == ("unknown" if wanted == "auto" else wanted)


def test_names_tell_which_weights_a_file_has(tmp_path: Path) -> None:
    for name, kind in (
        ("ema_0.9999_200000.pt", "ema"),
        ("ema_model.ckpt", "ema"),
        ("model-ema.pth", "ema"),
        ("model200000.pt", "raw"),
        ("schema.pt", "unknown"),
        ("cinema.pt", "unknown"),
        ("model.pt", "unknown"),
    ):
        peer = peer_files.openai(tmp_path)
        path = peer.path.rename(tmp_path / name)
        assert load_checkpoint(path).provenance.weights == kind
        if kind != "unknown":
            assert load_checkpoint(path, weights=kind).provenance.weights == kind
            other = "raw" if kind == "ema" else "ema"
            assert f"has {kind} weights only" in refusal(path, weights=other)


@pytest.mark.parametrize("family", ["ermongroup", "openai"])
def test_half_precision_weights_and_safetensors(tmp_path: Path, family: str) -> None:
    peer = getattr(peer_files, family)(tmp_path)
    half = {key: tensor.half() for key, tensor in peer.weights.items()}
    peer.weights.update({key: tensor.float() for key, tensor in half.items()})
    torch.save(half, peer.path)
    assert relative(*outputs(peer, load_checkpoint(peer.path), (16, 16))) <= 1e-5
    path = peer.path.with_suffix(".safetensors")
    save_file(half, path)
    assert relative(*outputs(peer, load_checkpoint(path), (16, 16))) <= 1e-5


def test_a_folder_with_one_weight_file(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt200000.pt")
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.provenance.name == "model.pt"
    torch.save(peer.weights, tmp_path / "ema_0.9999_200000.pt")
    assert "ema_0.9999_200000.pt, model.pt" in refusal(tmp_path)


# Files that hold something else


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, in_channels=6)
    assert "model.pt is an upsampler" in refusal(peer.path)
    small = peer_files.openai(tmp_path, in_channels=2)
    out = {"out.2.weight": small.weights["out.2.weight"][:1], "out.2.bias": torch.zeros(1)}
    torch.save(small.weights | out, small.path)
    assert "model.pt is an upsampler" in refusal(small.path)
    encoder = {k: v for k, v in peer.weights.items() if not k.startswith("output_blocks")}
    torch.save(encoder, peer.path)
    assert "model.pt is a classifier" in refusal(peer.path)
    torch.save({"state": {0: {"step": torch.tensor(1)}}, "param_groups": []}, peer.path)
    assert "model.pt holds an optimizer's state." in refusal(peer.path)
    for nothing in ({}, [], [1, 2], {"a": 1}, torch.zeros(3), {"state_dict": {}}, "text", [{}] * 5):
        torch.save(nothing, peer.path)
        assert "model.pt holds no network's weights." in refusal(peer.path)
    torch.save({"fc.weight": torch.zeros(3)}, peer.path)
    assert "not supported" in refusal(peer.path)


def test_weights_that_are_no_plain_floats(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    for tensor in (
        torch.zeros(32, 3, 3, 3, dtype=torch.int64),
        torch.zeros(32, 3, 3, 3, dtype=torch.complex64),
        torch.zeros(32, 3, 3, 3).to_sparse(),
        torch.zeros(32, 3, 3, 3, device="meta"),
    ):
        torch.save(peer.weights | {"input_blocks.0.0.weight": tensor}, peer.path)
        refusal(peer.path)


# Weights that do not fit


@pytest.mark.parametrize("family", ["ermongroup", "openai"])
def test_every_missing_weight_is_named_as_in_the_file(tmp_path: Path, family: str) -> None:
    peer = getattr(peer_files, family)(tmp_path)
    for key in list(peer.weights)[::13]:
        torch.save({k: v for k, v in peer.weights.items() if k != key}, peer.path)
        text = refusal(peer.path)
        assert key in text or "not supported" in text  # the name by which a family is known
        assert "down_blocks" not in text


@pytest.mark.parametrize("family", ["ermongroup", "openai"])
def test_every_misshapen_weight_is_named_as_in_the_file(tmp_path: Path, family: str) -> None:
    peer = getattr(peer_files, family)(tmp_path)
    for key in list(peer.weights)[::29]:
        for bad in (torch.zeros(()), torch.zeros(0), torch.zeros(7, 3, 2, 2)):
            torch.save(peer.weights | {key: bad}, peer.path)
            assert "mid_block" not in refusal(peer.path)


def test_many_misfits_are_counted_and_five_shown(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    gone = [key for key in peer.weights if key.startswith("middle_block.0.")]
    kept = {key: tensor for key, tensor in peer.weights.items() if key not in gone}
    torch.save(kept | {f"head.{i}.weight": torch.zeros(1) for i in range(6)}, peer.path)
    text = refusal(peer.path)
    assert f"{len(gone)} missing (middle_block.0.in_layers.0.weight" in text
    assert "6 extra (head.0.weight, head.1.weight" in text
    assert "head.5.weight" not in text


def test_hostile_names_take_no_time(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    for key in (
        "input_blocks.99999999999999.0.weight",
        "input_blocks.999.0.weight",
        f"input_blocks.{'9' * 5000}.0.weight",
        "output_blocks.998.0.weight",
        "input_blocks.٣.0.weight",
    ):
        torch.save(peer.weights | {key: torch.zeros(1)}, peer.path)
        with pytest.raises(CheckpointError):
            load_checkpoint(peer.path)


# What is said of a network


def test_missing_flags_are_asked_for_by_name(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    (tmp_path / "flags.json").unlink()
    text = refusal(peer.path, RequestError)
    for name in ("image_size", "num_heads or num_head_channels", "use_new_attention_order"):
        assert name in text
    assert "noise_schedule, diffusion_steps, rescale_timesteps" in text
    text = refusal(peer.path, RequestError, size=(16, 16), flags={"num_heads": "1"})
    assert "show noise_schedule, diffusion_steps, rescale_timesteps." in text

    checkpoint = load_checkpoint(peer.path, flags=FLAGS)
    assert relative(*outputs(peer, checkpoint, (16, 16))) <= 1e-5
    recorded = checkpoint.provenance.record()["flags"]
    assert recorded.items() >= {key: value.lower() for key, value in FLAGS.items()}.items()
    again = load_checkpoint(peer.path, flags=recorded)
    assert again.provenance == checkpoint.provenance


WRONG_FLAGS = {
    "num_heads": ["3", "two", "1.5", "0", "true"],
    "num_head_channels": ["24"],
    "num_heads_upsample": ["5"],
    "image_size": ["15", "0", "-16", "big"],
    "use_new_attention_order": ["1", "yes"],
    "noise_schedule": ["quadratic", "7"],
    "diffusion_steps": ["0", "-1", "5", "1000000000000", "nan"],
    "num_channels": ["64"],
    "learn_sigma": ["true"],
    "class_cond": ["true"],
    "colour": ["red"],
}


def test_wrong_flags_are_the_users_fault(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, rescale_timesteps=True)
    for key in WRONG_FLAGS:
        for value in WRONG_FLAGS[key]:
            text = refusal(peer.path, RequestError, flags={key: value})
            assert f"--model-flag {key}" in text or (key, value) == ("num_heads", "0")


def test_the_flags_of_their_scripts_that_change_no_image_are_taken(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, rescale_timesteps=True)
    load_checkpoint(peer.path, flags={"dropout": "0.1", "use_fp16": "True"})


def test_wrong_settings_beside_are_the_files_fault(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, rescale_timesteps=True)
    for key in WRONG_FLAGS.keys() - {"colour"}:
        for value in [*WRONG_FLAGS[key], [1], {"a": 1}, "x" * 5000]:
            flags = json.loads(json.dumps(peer.settings)) | {key: value}
            (tmp_path / "flags.json").write_text(json.dumps({"model": flags}))
            if key == "num_heads" and value == "0":
                refusal(peer.path, RequestError)  # as if it were not there: asked for
            elif not isinstance(value, dict):  # a section
                assert "flags.json: " in refusal(peer.path)


def test_heads_that_differ_by_order_cannot_be_left_unsaid(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path)
    (tmp_path / "flags.json").unlink()
    said = {k: v for k, v in FLAGS.items() if k != "use_new_attention_order"}
    for heads in ({"num_heads": "2"}, {"num_heads": "1", "num_head_channels": "16"}):
        text = refusal(peer.path, RequestError, flags=said | heads)
        assert "use_new_attention_order" in text
    assert load_checkpoint(peer.path, flags=said | {"num_heads": "1"})


def test_wrong_settings_of_ermongroup(tmp_path: Path) -> None:
    for key, value in (
        ("beta_schedule", "cosine"),
        ("beta_start", "-1"),
        ("beta_end", "inf"),
        ("num_diffusion_timesteps", "0"),
        ("num_diffusion_timesteps", "99999999999"),
        ("ch", "64"),
        ("in_channels", "1"),
        ("num_res_blocks", "2"),
        ("resamp_with_conv", "false"),
        ("image_size", "7"),
    ):
        peer = peer_files.ermongroup(tmp_path)
        assert f"--model-flag {key}" in refusal(peer.path, RequestError, flags={key: value})
        (tmp_path / "config.yml").write_text(f"all:\n  image_size: 16\n  {key}: {value}\n")
        text = refusal(peer.path)
        assert text.startswith("config.yml: ")
        assert key in text or "images of 7x7" in text


def test_the_schedules_of_ermongroup(tmp_path: Path) -> None:
    for kind in ("linear", "quad", "const", "jsd", "sigmoid"):
        peer = peer_files.ermongroup(
            tmp_path, beta_schedule=kind, beta_start=0.001, beta_end=0.1, num_diffusion_timesteps=5
        )
        betas = {
            "linear": [0.001, 0.02575, 0.0505, 0.07525, 0.1],
            "quad": [(0.001**0.5 + i / 4 * (0.1**0.5 - 0.001**0.5)) ** 2 for i in range(5)],
            "const": [0.1] * 5,
            "jsd": [1 / 5, 1 / 4, 1 / 3, 1 / 2, 1],
            "sigmoid": [0.001 + 0.099 / (1 + 2.718281828459045 ** (6 - 3 * i)) for i in range(5)],
        }[kind]
        found = load_checkpoint(peer.path).schedule.alpha_bar
        expected = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
        assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_the_linear_schedule_of_openai_scales_with_its_length(tmp_path: Path) -> None:
    for steps in (100, 1000, 4000):
        peer = peer_files.openai(tmp_path, diffusion_steps=steps)
        schedule = load_checkpoint(peer.path).schedule
        betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        assert torch.allclose(schedule.alpha_bar, torch.cumprod(1 - betas, 0), rtol=1e-10, atol=0)


def test_predict_xstart_and_learned_variance(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, predict_xstart=True, learn_sigma=True)
    checkpoint = load_checkpoint(peer.path)
    assert checkpoint.prediction == "x_0"
    assert checkpoint.learned_variance


def test_a_size_that_no_file_tells(tmp_path: Path) -> None:
    peer = peer_files.ermongroup(tmp_path)
    (tmp_path / "config.yml").unlink()
    assert "--model-flag image_size=32" in refusal(peer.path, RequestError)
    checkpoint = load_checkpoint(peer.path, size=(16, 24))
    assert checkpoint.sample_shape == (3, 16, 24)
    assert any("assuming linear" in note for note in checkpoint.provenance.notes)
    assert "--size: images of 15x16" in refusal(peer.path, RequestError, size=(15, 16))


def test_logvar_takes_no_part(tmp_path: Path) -> None:
    peer = peer_files.ermongroup(tmp_path)
    torch.save(peer.weights | {"logvar": torch.zeros(1000)}, peer.path)
    checkpoint = load_checkpoint(peer.path)
    assert any("logvar" in note for note in checkpoint.provenance.notes)
    assert relative(*outputs(peer, checkpoint, (16, 16))) <= 1e-5


# The settings file beside


def test_a_config_that_ermongroup_wrote(tmp_path: Path) -> None:
    peer = peer_files.ermongroup(tmp_path)
    tag = "!!python/object:argparse.Namespace"
    (tmp_path / "config.yml").write_text(
        f"{tag}\ndata: {tag}\n  image_size: 16\n  sizes: !!python/tuple\n  - 1\n"
        f"diffusion: {tag}\n  beta_start: 1e-4\n  num_diffusion_timesteps: 70\n"
        f"device: !!python/object/apply:torch.device\n- cuda\n"
    )
    checkpoint = load_checkpoint(peer.path)
    assert checkpoint.sample_shape == (3, 16, 16)
    assert checkpoint.schedule.num_train_timesteps == 70
    assert checkpoint.schedule.settings["beta_start"] == 1e-4


_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]}}\n"
    for name in "bcdefghij"
)
HOSTILE = {
    "bomb of merges": _BOMB,
    "aliases": "a: &a [1, 2]\nb: [*a, *a]\n",
    "deep": "a: " + "[" * 20_000 + "]" * 20_000,
    "large": "a: " + "x" * 2_000_000,
    "not text": "\x00\x01\x02",
    "no settings": "- 1\n- 2\n",
    "a word": "hello\n",
    "unclosed": "{'model': ",
    "unknown tag": "a: !thing 3\n",
    "wrong int": "a: !!int ''\n",
    "wrong int again": f"a: {'9' * 5000}\n",
    "wrong bool": "a: !!bool perhaps\n",
    "wrong date": "a: 2020-99-99\n",
    "wrong timestamp": "a: !!timestamp never\n",
    "unhashable key": "? [1, 2]\n: 3\n",
    "wrong binary": "a: !!binary é\n",
    "wrong float": "a: !!float 1e\n",
    "large base 60": "a: " + "1:" * 400 + "0.5\n",
    "doubled document": "a: 1\n---\nb: 2\n",
}


@pytest.mark.timeout(60)
def test_hostile_settings_are_refused(tmp_path: Path) -> None:
    peer = peer_files.ermongroup(tmp_path)
    for text in HOSTILE.values():
        (tmp_path / "config.yml").write_text(text, encoding="utf-8")
        assert "config.yml" in refusal(peer.path)


def test_no_object_of_a_settings_file_is_made(tmp_path: Path) -> None:
    peer = peer_files.ermongroup(tmp_path)
    trap = tmp_path / "trap"
    for call in (
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:subprocess.Popen {{args: ['touch', '{}']}}",
    ):
        (tmp_path / "config.yml").write_text(f"image_size: 16\nmodel: {call.format(trap)}\n")
        load_checkpoint(peer.path)
        assert not trap.exists()


# What is saved


def test_a_damaged_network_section_is_refused(tmp_path: Path) -> None:
    peer = peer_files.openai(tmp_path, num_heads_upsample=4, attention_resolutions="16,8")
    for name, content in checkpoint_files(load_checkpoint(peer.path)).items():
        (tmp_path / "saved" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "saved" / name).write_bytes(content)
    path = tmp_path / "saved" / "ddimctl.json"
    sidecar = json.loads(path.read_text())
    assert sidecar["network"] == {"heads": 2, "heads_up": 4}
    load_checkpoint(tmp_path / "saved")
    for network in (
        "wide",
        {"heads": 0},
        {"heads": 7},
        {"heads": "2"},
        {"heads": True},
        {"heads_up": 7},
        {"stem_channels": 33},
        {"stem_channels": 2**19},
        {"time_channels": -32},
        {"time_channels": 64},
        {"resample_conv": 0},
        {"resample_conv": False},
        {"timestep_scale": 0},
        {"timestep_scale": "1"},
        {"timestep_scale": float("nan")},
        {"colour": 1},
    ):
        path.write_text(json.dumps(sidecar | {"network": network}))
        refusal(tmp_path / "saved")
