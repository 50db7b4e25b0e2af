"""What cannot be run is refused by name, by what is in it, whatever it is called."""

import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_unets import tiny_unet, write_flat, write_json

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 143000000\n"
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
PIPELINE = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}


def test_pipelines_are_refused_by_their_index(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    for index, reason in (
        (
            {
                "_class_name": "DiTPipeline",
                "transformer": ["diffusers", "DiTTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            },
            "DiTPipeline.*transformer",
        ),
        (
            {"_class_name": "FluxPipeline", "text_encoder_2": ["transformers", "T5EncoderModel"]},
            "FluxPipeline.*T5EncoderModel",
        ),
        (
            {
                "_class_name": "ConsistencyModelPipeline",
                "unet": ["diffusers", "UNet2DModel"],
                "scheduler": ["diffusers", "CMStochasticIterativeScheduler"],
            },
            "consistency model",
        ),
        (
            {
                "_class_name": "ScoreSdeVePipeline",
                "unet": ["diffusers", "UNet2DModel"],
                "scheduler": ["diffusers", "ScoreSdeVeScheduler"],
            },
            "variance-exploding",
        ),
        ({"_class_name": "AudioPipeline", "unet": ["diffusers", "UNet1DModel"]}, "UNet1DModel"),
        ({"_class_name": "OddPipeline"}, "has no UNet"),
    ):
        write_json(tmp_path / "model_index.json", **index)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path)


def test_unused_parts_of_a_pipeline_do_not_matter(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    write_json(tmp_path / "scheduler/scheduler_config.json", _class_name="DDPMScheduler")
    write_json(tmp_path / "model_index.json", **PIPELINE, vae=[None, None])
    assert load_checkpoint(tmp_path).parameters > 0


def test_pipeline_folders_without_an_index_are_refused_by_their_parts(tmp_path: Path) -> None:
    for part in ("bert", "prior", "movq", "transformer"):
        tiny_unet().save_pretrained(tmp_path / part / "unet")
        write_json(tmp_path / part / part / "config.json", _class_name="Something")
        with pytest.raises(CheckpointError, match="cannot be run"):
            load_checkpoint(tmp_path / part)


def test_other_networks_are_refused_by_their_config(tmp_path: Path) -> None:
    for config, reason in (
        ({"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
        ({"_class_name": "DiTTransformer2DModel"}, "DiTTransformer2DModel"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "BertModel"),
        ({"model_type": "vit"}, "vit"),
        ({}, "unknown model"),
    ):
        write_json(tmp_path / "config.json", **config)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path)


def test_unets_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    config = json.loads((tmp_path / "config.json").read_text())
    for change, reason in (
        ({"time_embedding_type": "fourier"}, "variance-exploding"),
        ({"class_embed_type": "identity"}, "conditioned on vectors"),
    ):
        write_json(tmp_path / "config.json", **(config | change))
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path)


class _Edm:
    """Pickles as NVlabs' snapshots do: a call that rebuilds a class from its source."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconstruct_persistent_obj, ({"module_src": "raise SystemExit(99)"},)


def _reconstruct_persistent_obj(meta: dict[str, str]) -> None:
    raise AssertionError("the pickle was run")


@pytest.mark.parametrize("form", ["safetensors", "torch", "legacy"])
def test_single_files_are_named_by_the_weights_in_them(tmp_path: Path, form: str) -> None:
    for keys, reason in (
        ("model.diffusion_model.input_blocks.0.0.weight", "has no text encoder"),
        ("model.diffusion_model.joint_blocks.0.x.weight", "Stable Diffusion 3"),
        ("lora_unet_conv_in.lora_down.weight", "pass it with --lora"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("blocks.0.adaLN_modulation.1.weight", "DiT"),
        ("down_blocks.0.attentions.0.attn2.to_k.weight", "text embeddings"),
        ("input_blocks.0.0.weight", "classifier of guided-diffusion"),
        ("down.0.block.0.norm1.weight", r"has no weight conv_in\.weight"),
        ("down_blocks.0.resnets.0.norm1.weight", r"without their config\.json"),
        ("something.else", "not supported yet"),
    ):
        path = tmp_path / "download"  # the name says nothing
        weights = {keys: torch.zeros(2)}
        if form == "safetensors":
            save_file(weights, path)
        else:
            torch.save(weights, path, _use_new_zipfile_serialization=form == "torch")
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(path)


def test_an_edm_pickle_is_named_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"ema": _Edm()}))
    with pytest.raises(CheckpointError, match="EDM"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match="EDM"):
        load_checkpoint(tmp_path)  # the only file of its folder


def test_other_single_files_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("a.png", b"picture")
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        tar.add(tmp_path / "data.zip", "data.zip")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "notes.ckpt").write_text("hello")
    for name, reason in [
        ("data.zip", "zip archive"),
        ("old.tar", "tar archive"),
        ("plain.pkl", "bare pickle"),
        ("notes.ckpt", "not a checkpoint"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path / name)


def test_what_a_failed_download_leaves_is_told(tmp_path: Path) -> None:
    for content, reason in ((b"", "is empty"), (LFS_POINTER, "git lfs pull"), (HTML, "web page")):
        for name in ("config.json", WEIGHTS, "scheduler_config.json"):
            folder = write_flat(tmp_path / f"{name}-{len(content)}", tiny_unet())
            (folder / name).write_bytes(content)
            with pytest.raises(CheckpointError, match=reason) as caught:
                load_checkpoint(folder)
            assert name in caught.value.cause
            with pytest.raises(CheckpointError, match=reason):
                load_checkpoint(folder / name)


def test_a_safetensors_header_that_names_a_weight_twice_is_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    entry = '"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f"{{{entry}, {entry}}}".encode()
    (tmp_path / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match="names 'a' twice"):
        load_checkpoint(tmp_path)


def test_a_truncated_safetensors_file_is_damaged(tmp_path: Path) -> None:
    path = write_flat(tmp_path, tiny_unet()) / WEIGHTS
    whole = path.read_bytes()
    for keep in (9, 2000, -4):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=WEIGHTS):
            load_checkpoint(tmp_path)


def test_a_truncated_bin_file_is_damaged(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path, safe_serialization=False)
    path = tmp_path / "diffusion_pytorch_model.bin"
    whole = path.read_bytes()
    for keep in (40, 5000, -40):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match=path.name):
            load_checkpoint(tmp_path)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_bin_file_that_calls_something_is_not_run(tmp_path: Path) -> None:
    tiny_unet().save_config(tmp_path)
    for zipped in (True, False):
        torch.save(
            {"conv_in.weight": _Canary(tmp_path / "canary")},
            tmp_path / "diffusion_pytorch_model.bin",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(
            CheckpointError, match=r"would call builtins\.getattr, so it was not read"
        ):
            load_checkpoint(tmp_path)
        assert not (tmp_path / "canary").exists()


def test_a_bin_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    tiny_unet().save_config(tmp_path)
    for content in ([1, 2], {"model": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}):
        torch.save(content, tmp_path / "diffusion_pytorch_model.bin")
        with pytest.raises(CheckpointError, match="not a state dict"):
            load_checkpoint(tmp_path)


def test_damaged_json_is_told_with_its_name(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    for content in (b"[1]", b"{", b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(tmp_path)


def test_wrong_folders_are_told_the_right_one(tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoint"
    tiny_unet().save_pretrained(folder / "unet")
    write_json(folder / "scheduler/scheduler_config.json")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder / "unet")
    assert str(folder) in caught.value.remedy
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "run")
    assert str(folder) in caught.value.remedy
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder / "unet" / WEIGHTS)
    assert str(folder / "unet") in caught.value.remedy


def test_folders_without_a_checkpoint_are_told_what_they_hold(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="empty folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(CheckpointError, match=r"it holds a\.txt, b\.txt"):
        load_checkpoint(tmp_path)
