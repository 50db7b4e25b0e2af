"""Every shape of diffusers folder loads as diffusers itself loads it, or is refused with the reason."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_unets import old_names, output, tiny_unet, write_flat, write_json

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import CheckpointError, RequestError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_saved_pipeline_folder_gives_exactly_the_outputs_of_from_pretrained(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    write_json(tmp_path / "scheduler/scheduler_config.json", _class_name="DDPMScheduler")
    theirs = UNet2DModel.from_pretrained(tmp_path / "unet")
    ours = load_checkpoint(tmp_path)
    assert torch.equal(output(ours), output(theirs))
    assert ours.sample_shape == (3, 16, 16)
    assert ours.size_divisor == 2
    assert not ours.unet.training
    assert ours.provenance.name == tmp_path.name


def test_flat_folder_with_old_attention_names_gives_exactly_the_outputs_of_from_pretrained(
    tmp_path: Path,
) -> None:
    unet = tiny_unet()
    write_flat(tmp_path, unet, old_names(unet))
    assert any("proj_attn" in key for key in load_file(tmp_path / WEIGHTS))
    theirs = UNet2DModel.from_pretrained(tmp_path)
    ours = output(load_checkpoint(tmp_path))
    assert torch.equal(ours, output(theirs))
    assert torch.equal(ours, output(unet))


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("shard", ["10GB", "200KB"], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_every_form_of_weight_file_loads_as_from_pretrained_does(
    tmp_path: Path, safe: bool, shard: str, variant: str | None
) -> None:
    unet = tiny_unet().half() if variant else tiny_unet()
    unet.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=shard, variant=variant)
    assert (len(list(tmp_path.glob("diffusion*"))) > 1) == (shard == "200KB")
    theirs = UNet2DModel.from_pretrained(
        tmp_path, variant=variant, torch_dtype=torch.float32, use_safetensors=safe
    )
    ours = load_checkpoint(tmp_path, variant=variant)
    assert {weight.dtype for weight in ours.unet.parameters()} == {torch.float32}
    assert torch.equal(output(ours), output(theirs))


def test_outputs_do_not_depend_on_where_the_weights_lie_in_the_file(tmp_path: Path) -> None:
    unet = tiny_unet()
    x, t = torch.linspace(-2, 2, 3 * 16 * 16).view(1, 3, 16, 16), torch.tensor([5])
    with torch.inference_mode():
        expected = unet(x, t, return_dict=False)[0]  # of one image: the path that shows alignment
        for padding in (0, 8, 24, 40):
            folder = write_flat(tmp_path / str(padding), unet)
            save_file(unet.state_dict(), folder / WEIGHTS, metadata={"padding": "x" * padding})
            assert torch.equal(load_checkpoint(folder).network(x, t), expected)


def test_old_style_torch_files_load(tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.save_config(tmp_path)
    torch.save(
        old_names(unet),
        tmp_path / "diffusion_pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    assert torch.equal(output(load_checkpoint(tmp_path)), output(unet))


def test_safetensors_are_taken_before_bin(tmp_path: Path) -> None:
    tiny_unet(seed=1).save_pretrained(tmp_path, safe_serialization=False)
    tiny_unet(seed=2).save_pretrained(tmp_path)
    assert torch.equal(output(load_checkpoint(tmp_path)), output(tiny_unet(seed=2)))


def test_weights_are_loaded_in_the_dtype_asked_for(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    checkpoint = load_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in checkpoint.unet.parameters()} == {torch.bfloat16}
    assert output(checkpoint).dtype == torch.float32


def test_training_the_loaded_weights_leaves_the_file_alone(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    before = (tmp_path / WEIGHTS).read_bytes()
    unet = load_checkpoint(tmp_path).unet
    with torch.no_grad():
        for weight in unet.parameters():
            assert weight.requires_grad
            weight.add_(1)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_the_hash_is_of_the_weight_files_in_name_order(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    content = b"".join(shard.read_bytes() for shard in shards)
    assert len(shards) > 1
    assert load_checkpoint(tmp_path).provenance.sha256 == hashlib.sha256(content).hexdigest()


def test_ema_weights_are_chosen_and_announced_unless_raw_is_wanted(tmp_path: Path) -> None:
    tiny_unet(seed=1).save_pretrained(tmp_path / "unet")
    tiny_unet(seed=2).save_pretrained(tmp_path / "unet_ema")
    auto, raw = load_checkpoint(tmp_path), load_checkpoint(tmp_path, weights="raw")
    assert torch.equal(output(auto), output(tiny_unet(seed=2)))
    assert torch.equal(output(raw), output(tiny_unet(seed=1)))
    assert (auto.provenance.weights, raw.provenance.weights) == ("ema", "raw")
    assert any("EMA" in note for note in auto.provenance.notes)
    assert not any("EMA" in note for note in raw.provenance.notes)


def test_a_choice_of_weights_that_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    for weights in ("ema", "raw"):
        with pytest.raises(CheckpointError, match="does not say which weights"):
            load_checkpoint(tmp_path, weights=weights)


def test_unknown_weights_and_revisions_of_paths_are_wrong_requests(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    with pytest.raises(RequestError, match="unknown weights"):
        load_checkpoint(tmp_path, weights="best")
    with pytest.raises(RequestError, match="no revisions"):
        load_checkpoint(tmp_path, revision="main")


def test_missing_extra_and_misshapen_weights_are_named_and_counted(tmp_path: Path) -> None:
    unet = tiny_unet()
    weights = dict(unet.state_dict())
    gone = [key for key in weights if key.startswith("up_blocks.0")]
    for key in gone:
        del weights[key]
    weights["lora.weight"] = torch.zeros(1)
    weights["conv_in.bias"] = torch.zeros(7)
    write_flat(tmp_path, unet, weights)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    cause = caught.value.cause
    assert f"{len(gone)} missing ({', '.join(gone[:5])}, …)" in cause
    assert gone[5] not in cause
    assert "1 extra (lora.weight)" in cause
    assert "1 of another shape (conv_in.bias (7,) for (32,))" in cause


def test_learned_variance_is_read_off_the_channels(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet(out_channels=6))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.learned_variance
    assert checkpoint.sample_shape == (3, 16, 16)
    assert output(checkpoint).shape == (2, 6, 16, 16)


def test_sample_size_is_a_side_or_a_pair(tmp_path: Path) -> None:
    for size, shape in ((16, (3, 16, 16)), ([8, 24], (3, 8, 24))):
        write_flat(tmp_path, tiny_unet(sample_size=size))
        assert load_checkpoint(tmp_path).sample_shape == shape


def test_class_labels_reach_the_network(tmp_path: Path) -> None:
    unet = tiny_unet(num_class_embeds=4)
    write_flat(tmp_path, unet)
    checkpoint = load_checkpoint(tmp_path)
    labels = torch.tensor([0, 3])
    assert torch.equal(output(checkpoint, labels), output(unet, labels))
    assert not torch.equal(output(checkpoint, labels), output(checkpoint, labels.flip(0)))
    assert (checkpoint.num_classes, checkpoint.null_class) == (4, None)


def test_ddimctl_json_names_the_classes_the_null_class_and_the_background(tmp_path: Path) -> None:
    tiny_unet(num_class_embeds=3).save_pretrained(tmp_path / "unet")
    write_json(
        tmp_path / "ddimctl.json",
        format_version=1,
        class_names=["door", "wall"],
        num_classes=2,
        null_class=2,
        background=[1, 2, 3],
        weights="ema",
        from_a_later_version=True,
    )
    checkpoint = load_checkpoint(tmp_path, weights="ema")
    assert checkpoint.class_names == ("door", "wall")
    assert (checkpoint.num_classes, checkpoint.null_class) == (2, 2)
    assert checkpoint.background == (1, 2, 3)
    assert checkpoint.provenance.weights == "ema"
    with pytest.raises(CheckpointError, match="ema weights only"):
        load_checkpoint(tmp_path, weights="raw")


def test_bad_values_in_ddimctl_json_are_named(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet(num_class_embeds=3))
    for change, reason in (
        ({"format_version": 2}, "format version 2"),
        ({"num_classes": 4}, "3 class embeddings"),
        ({"null_class": 3}, "3 class embeddings"),
        ({"null_class": True}, "null_class is True"),
        ({"class_names": ["one"]}, "class_names"),
        ({"class_names": "ab"}, "class_names"),
        ({"background": [0, 0, 256]}, "background"),
        ({"weights": "best"}, "weights"),
        ({"training": [], "num_classes": -1}, "num_classes is -1"),
    ):
        values = {"format_version": 1, "num_classes": 2, "null_class": 2} | change
        write_json(tmp_path / "ddimctl.json", **values)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(tmp_path)


def test_classes_without_an_embedding_are_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    write_json(tmp_path / "ddimctl.json", format_version=1, num_classes=2)
    with pytest.raises(CheckpointError, match="no class embedding"):
        load_checkpoint(tmp_path)


def test_settings_that_diffusers_does_not_know_are_told(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    config = json.loads((tmp_path / "config.json").read_text())
    write_json(tmp_path / "config.json", **config, wings=2)
    assert any("wings" in note for note in load_checkpoint(tmp_path).provenance.notes)


def test_configs_that_describe_no_network_are_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"block_out_channels": [32]},
        {"block_out_channels": "wide"},
        {"block_out_channels": [32, 30]},
        {"down_block_types": ["DownBlock2D", "NoSuchBlock"]},
        {"norm_num_groups": 0},
        {"layers_per_block": "two"},
        {"sample_size": None},
        {"sample_size": [16, 16, 16]},
        {"in_channels": 6},
    ):
        write_json(tmp_path / "config.json", **(config | change))
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load_checkpoint(tmp_path)


def test_no_spec_means_the_environment_variable_then_the_bundled_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = write_flat(tmp_path / "bundled", tiny_unet())
    other = write_flat(tmp_path / "other", tiny_unet(seed=1))
    monkeypatch.setattr("ddimctl.checkpoints.load.BUNDLED", bundled)
    monkeypatch.delenv("DDIMCTL_CKPT", raising=False)
    assert load_checkpoint(None).provenance.name == "bundled"
    monkeypatch.setenv("DDIMCTL_CKPT", "")
    assert load_checkpoint().provenance.name == "bundled"
    monkeypatch.setenv("DDIMCTL_CKPT", str(other))
    assert load_checkpoint(None).provenance.name == "other"
    monkeypatch.delenv("DDIMCTL_CKPT")
    monkeypatch.setattr("ddimctl.checkpoints.load.BUNDLED", tmp_path / "gone")
    with pytest.raises(CheckpointError, match="no bundled checkpoint"):
        load_checkpoint(None)


def test_the_bundled_checkpoint_has_a_name_which_comes_before_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_flat(tmp_path / "bundled", tiny_unet(seed=1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIMCTL_CKPT", str(other))
    own = load_checkpoint("bundled")
    assert own.sample_shape == (3, 32, 32)
    for path in ("./bundled", Path("bundled"), None):
        assert load_checkpoint(path).provenance.sha256 != own.provenance.sha256
    monkeypatch.setenv("DDIMCTL_CKPT", "bundled")
    assert load_checkpoint().provenance.sha256 == own.provenance.sha256
    with pytest.raises(RequestError, match="'bundled' is a path, which has no revisions"):
        load_checkpoint("bundled", revision="main")


def test_an_existing_path_is_a_path_even_when_it_looks_like_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flat(tmp_path / "owner/name", tiny_unet())
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("owner/name").provenance.revision is None


def test_what_is_neither_path_nor_hub_id_gets_both_readings() -> None:
    for spec in ("nothing-here", "./a/b", "a/b/c", "https://huggingface.co/a/b"):
        with pytest.raises(
            CheckpointError, match="neither an existing file or folder nor a hub id"
        ):
            load_checkpoint(spec)


def test_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    tiny_unet().save_config(tmp_path)
    for name in ("../other.safetensors", "sub/other.safetensors", ".hidden"):
        write_json(tmp_path / f"{WEIGHTS}.index.json", weight_map={"conv_in.weight": name})
        with pytest.raises(CheckpointError, match="names a file elsewhere"):
            load_checkpoint(tmp_path)


def test_a_missing_shard_and_a_missing_variant_are_named(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path, max_shard_size="200KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name} is missing"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="fp16"):
        load_checkpoint(tmp_path, variant="fp16")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    unet = tiny_unet()
    weights = {key: tensor.to(torch.int8) for key, tensor in unet.state_dict().items()}
    write_flat(tmp_path, unet, weights)
    with pytest.raises(CheckpointError, match=r"torch\.int8"):
        load_checkpoint(tmp_path)


def test_both_names_of_one_weight_are_refused(tmp_path: Path) -> None:
    unet = tiny_unet()
    both = {key: tensor.clone() for key, tensor in (unet.state_dict() | old_names(unet)).items()}
    unet.save_config(tmp_path)
    save_file(both, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match="occurs twice"):
        load_checkpoint(tmp_path)
