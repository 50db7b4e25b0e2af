"""Latent pipeline folders: their parts, what the parts must be, and what a prompt does."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from latent_cases import DATA, TEXT, case, change, copy_of
from safetensors.torch import load_file, save_file
from tiny_unets import tiny_unet, write_json

from ddimctl.checkpoints import checkpoint_files, load_checkpoint
from ddimctl.checkpoints.build.unet_config import check_condition_config
from ddimctl.checkpoints.table import Table
from ddimctl.errors import CheckpointError, NumericsError, RequestError

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = "UNet2DConditionModel"


@pytest.fixture
def sd1(tmp_path: Path) -> Path:
    return copy_of("sd1", tmp_path)


def test_what_is_not_run_is_refused_by_name(tmp_path: Path) -> None:
    folder = copy_of("sd1", tmp_path)
    for settings, reason in (
        ({"in_channels": 9}, "inpainting"),
        ({"in_channels": 8}, "InstructPix2Pix"),
        ({"in_channels": 7}, "upscaler"),
        ({"in_channels": 5}, "depth map"),
        ({"in_channels": 12}, "works from an image .12 channels in, 4 out"),
        ({"class_embed_type": "projection"}, "unCLIP"),
        ({"num_class_embeds": 1000}, "noise levels"),
        ({"encoder_hid_dim_type": "image_proj"}, "Kandinsky"),
        ({"encoder_hid_dim": 4096}, "DeepFloyd"),
        ({"time_cond_proj_dim": 256}, "LCM"),
        ({"addition_embed_type": "image"}, "image"),
        ({"attention_type": "gated"}, "GLIGEN"),
        ({"_class_name": "UNetMotionModel"}, "UNetMotionModel"),
        ({"_class_name": "UNetSpatioTemporalConditionModel"}, "SpatioTemporal"),
    ):
        path = folder / "unet/config.json"
        before = path.read_bytes()
        change(path, **settings)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(folder)
        path.write_bytes(before)


def test_pipelines_of_other_kinds_are_refused_by_their_index(sd1: Path) -> None:
    path = sd1 / "model_index.json"
    before = path.read_bytes()
    for settings, reason in (
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
        ({"text_encoder": ["alt", "RobertaSeriesModelWithTransformation"]}, "Roberta"),
        ({"bert": ["latent_diffusion", "LDMBertModel"]}, "no CLIP model"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny"),
        ({"movq": ["diffusers", "VQModel"]}, "Kandinsky"),
        ({"transformer": ["diffusers", "SD3Transformer2DModel"]}, "transformer, not a UNet"),
        ({"unet": ["diffusers", "OnnxRuntimeModel"]}, "ONNX"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "works from text"),
        ({"requires_aesthetics_score": True}, "refiner"),
    ):
        change(path, **settings)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(sd1)
        path.write_bytes(before)


def test_super_resolution_of_latents_is_refused(tmp_path: Path) -> None:
    folder = copy_of("ldm-vq", tmp_path)
    change(folder / "unet/config.json", in_channels=6)
    with pytest.raises(CheckpointError, match="super-resolution"):
        load_checkpoint(folder)


def test_other_autoencoders_are_refused(sd1: Path) -> None:
    for settings, reason in (
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "normalised by channel"),
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
        ({"_class_name": "AsymmetricAutoencoderKL"}, "Asymmetric"),
        ({"scaling_factor": "0.18"}, "scaling_factor is '0.18'"),
        ({"block_out_channels": [2**40]}, "block_out_channels"),
        ({"layers_per_block": 10**6}, "layers_per_block"),
        ({"latent_channels": 3}, "do not fit|works on 4 channels"),
    ):
        path = sd1 / "vae/config.json"
        before = path.read_bytes()
        change(path, **settings)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(sd1)
        path.write_bytes(before)


def test_text_encoders_are_checked_before_they_are_read(sd1: Path) -> None:
    for settings, reason in (
        ({"architectures": ["T5EncoderModel"]}, "T5EncoderModel"),
        ({"architectures": ["BertModel"]}, "BertModel"),
        ({"architectures": ["XLMRobertaModel"]}, "XLMRobertaModel"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"hidden_size": 64}, "channels, but its text encoders give 64"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_act": "exec"}, "hidden_act"),
    ):
        path = sd1 / "text_encoder/config.json"
        before = path.read_bytes()
        change(path, **settings)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(sd1)
        path.write_bytes(before)


def test_settings_of_a_condition_network_have_bounds() -> None:
    for settings, reason in (
        ({"cross_attention_dim": 2**40}, "cross_attention_dim"),
        ({"cross_attention_dim": "768"}, "cross_attention_dim"),
        ({"transformer_layers_per_block": [1, [2, 10**6]]}, "transformer_layers_per_block"),
        ({"attention_head_dim": [8, "8"]}, "attention_head_dim"),
        ({"use_linear_projection": 1}, "use_linear_projection"),
        ({"upcast_attention": "yes"}, "upcast_attention"),
        ({"only_cross_attention": [True, 2]}, "only_cross_attention"),
        ({"conv_in_kernel": 10**9}, "conv_in_kernel"),
        (
            {"block_out_channels": [32] * 16, "layers_per_block": 8}
            | {"transformer_layers_per_block": 64},
            "8192 transformer blocks",
        ),
    ):
        with pytest.raises(CheckpointError, match=reason):
            check_condition_config(settings, "here")


def test_missing_parts_are_named(sd1: Path) -> None:
    for part, reason in (
        ("vae/config.json", "no autoencoder"),
        ("text_encoder/config.json", "no text encoder"),
        ("tokenizer/vocab.json", "vocab.json"),
        ("text_encoder/model.safetensors", "text_encoder.*no weights|no weights .text_encoder"),
        (f"vae/{WEIGHTS}", "no weights .vae"),
    ):
        kept = (sd1 / part).read_bytes()
        (sd1 / part).unlink()
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(sd1)
        (sd1 / part).write_bytes(kept)


def test_an_sdxl_without_its_first_text_encoder_is_the_refiner(tmp_path: Path) -> None:
    folder = copy_of("sdxl", tmp_path)
    (folder / "text_encoder/config.json").unlink()
    with pytest.raises(CheckpointError, match="refiner"):
        load_checkpoint(folder)


def test_the_hash_covers_all_parts_in_their_order(sd1: Path) -> None:
    files = (f"unet/{WEIGHTS}", "text_encoder/model.safetensors", f"vae/{WEIGHTS}")
    content = b"".join((sd1 / each).read_bytes() for each in files)
    assert load_checkpoint(sd1).provenance.sha256 == hashlib.sha256(content).hexdigest()


def test_a_part_without_the_variant_takes_its_plain_file_with_a_note(sd1: Path) -> None:
    weights = load_file(sd1 / f"unet/{WEIGHTS}")
    half = {key: tensor.half() for key, tensor in weights.items()}
    save_file(half, sd1 / "unet/diffusion_pytorch_model.fp16.safetensors")
    (sd1 / f"unet/{WEIGHTS}").unlink()
    checkpoint = load_checkpoint(sd1, variant="fp16", dtype=torch.float16)
    notes = " ".join(checkpoint.provenance.notes)
    assert "text_encoder has no variant fp16" in notes
    assert "vae has no variant fp16" in notes
    assert next(checkpoint.unet.parameters()).dtype == torch.float16
    assert {each.dtype for each in checkpoint.codec.model.parameters()} == {torch.float32}
    assert not any("variant" in note for note in case("sd1").checkpoint.provenance.notes)


def test_flax_names_beside_torch_weights_are_taken(sd1: Path) -> None:
    change(sd1 / "unet/config.json", _class_name="FlaxUNet2DConditionModel")
    change(sd1 / "vae/config.json", _class_name="FlaxAutoencoderKL")
    change(sd1 / "model_index.json", unet=["diffusers", "FlaxUNet2DConditionModel"])
    assert load_checkpoint(sd1).parameters == case("sd1").checkpoint.parameters


def test_another_autoencoder_takes_the_place_of_the_own(tmp_path: Path) -> None:
    other = copy_of("sd1", tmp_path) / "vae"
    weights = load_file(other / WEIGHTS)
    weights["decoder.conv_out.bias"] += 0.25
    save_file(weights, other / WEIGHTS)
    change(other / "config.json", scaling_factor=0.5, shift_factor=0.125)
    for spec in (other, other.parent):  # the autoencoder itself, and a pipeline with one
        checkpoint = load_checkpoint(DATA / "sd1", vae=spec)
        own = case("sd1").checkpoint
        z = torch.ones(1, 4, 8, 8)
        expected = own.decode((z / 0.5 + 0.125) * 0.18215) + 0.25
        assert torch.allclose(checkpoint.decode(z), expected, atol=1e-5)
        assert torch.allclose(
            checkpoint.encode(expected), (own.encode(expected) / 0.18215 - 0.125) * 0.5, atol=1e-5
        )
        assert checkpoint.codec.settings["shift_factor"] == 0.125
        assert checkpoint.provenance.record()["parts"] == {"vae": spec.name}
        assert checkpoint.provenance.sha256 != own.provenance.sha256
    with pytest.raises(CheckpointError, match="no autoencoder"):
        load_checkpoint(DATA / "sd1", vae=DATA / "sd1/tokenizer")
    with pytest.raises(CheckpointError, match="works on 3 channels"):
        load_checkpoint(DATA / "ldm-vq", vae=other)


def test_scaling_factors_that_files_leave_out(tmp_path: Path) -> None:
    assert "scaling_factor" not in json.loads((DATA / "sd1/vae/config.json").read_text())
    assert case("sd1").checkpoint.codec.settings["scaling_factor"] == 0.18215
    folder = copy_of("ldm-vq", tmp_path)
    change(folder / "vqvae/config.json", scaling_factor=None)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.codec.settings["scaling_factor"] == 1.0
    assert any("scaling_factor" in note for note in checkpoint.provenance.notes)


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    checkpoint, _, tensors = case("sd1")
    z, image = tensors["vae/decode_input"], tensors["vae/image"]
    assert torch.equal(checkpoint.decode(z)[1:], checkpoint.decode(z[1:]))
    assert torch.equal(checkpoint.encode(image)[:1], checkpoint.encode(image[:1]))
    assert torch.equal(checkpoint.decode(z), checkpoint.decode(z.double()))


def test_tiles_are_for_images_that_exceed_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = case("sd1").checkpoint.codec
    z = torch.randn(1, 4, 72, 72, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(z)
    assert not codec.needs_tiles(576, 576)
    monkeypatch.setattr("ddimctl.checkpoints.codec._free_memory", lambda device: 10**6)
    assert codec.needs_tiles(576, 576)
    assert not codec.needs_tiles(512, 512)
    tiled = codec.decode(z)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert (tiled - whole).abs().mean() < 0.1
    monkeypatch.undo()
    assert torch.equal(codec.decode(z), whole)


def test_values_that_the_autoencoder_makes_infinite_name_it(tmp_path: Path) -> None:
    folder = copy_of("sd1", tmp_path)
    weights = load_file(folder / "vae" / WEIGHTS)
    for name in ("conv_norm_out", "conv_out"):  # their product overflows
        weights[f"decoder.{name}.weight"] *= 1e30
    save_file(weights, folder / "vae" / WEIGHTS)
    checkpoint = load_checkpoint(folder)
    z = torch.ones(1, 4, 8, 8)
    with pytest.raises(NumericsError, match=r"autoencoder \(AutoencoderKL\)"):
        checkpoint.decode(z)
    assert checkpoint.decode(z * float("nan")).isnan().any()  # not its fault


def test_prompts_are_rows_and_the_negative_one_is_the_null_class() -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    checkpoint = case("sd1").checkpoint
    ready = checkpoint.with_prompts(["a red fox", "snow"], "blurry")
    assert ready.class_names == ("a red fox", "snow")
    assert (ready.num_classes, ready.null_class, len(ready.table)) == (2, 2, 3)
    assert ready.class_name(2) == "none"
    assert checkpoint.table is None
    x, t = torch.ones(3, 4, 8, 8), torch.tensor([5, 5, 5])
    with torch.inference_mode():
        both = ready.network(x, t, torch.tensor([0, 1, 2]))
        assert not torch.allclose(both[0], both[1])
        assert torch.allclose(ready.network(x, t), both[2:].expand(3, -1, -1, -1), atol=1e-5)
        alone = checkpoint.with_prompts(["snow"], "other").network(x[:1], t[:1], t[:1] * 0)
        assert torch.allclose(alone, both[1:2], atol=1e-5)
    with pytest.raises(RequestError, match="needs a prompt"):
        checkpoint.network(x, t)


def test_a_row_depends_on_its_prompt_alone() -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    conditioner = case("sdxl").checkpoint.conditioner
    many = conditioner.table(["a fox", "snow", "!"], "x", (64, 96))
    one = conditioner.table(["snow"], "x", (64, 96))
    assert torch.equal(many.embeddings[1], one.embeddings[0])
    assert torch.equal(many.pooled[1], one.pooled[0])
    assert one.time_ids.tolist() == [[64, 96, 0, 0, 64, 96]] * 2


def test_prompts_too_long_are_cut_with_a_notice_and_weights_are_text() -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    conditioner = case("sd1").checkpoint.conditioner
    table = conditioner.table(["fox " * 75 + "SNOW (a:1.2)"], None, (64, 64))
    cut, weights = table.notices
    assert "'SNOW (a:1.2)'" in cut
    assert "'(a:1.2)' is taken as plain text" in weights
    assert conditioner.table(["fox " * 75], None, (64, 64)).notices == ()
    with pytest.raises(RequestError, match="10,001 characters"):
        conditioner.table(["x" * 10_001], None, (64, 64))
    with pytest.raises(RequestError, match="no prompt"):
        conditioner.table([], None, (64, 64))


def test_without_transformers_a_prompt_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    checkpoint = load_checkpoint(DATA / "sd1")
    with pytest.raises(RequestError, match=r"pip install 'ddimctl\[text\]'"):
        checkpoint.with_prompts(["a fox"])
    with pytest.raises(RequestError, match="takes no prompts"):
        case("ldm-vq").checkpoint.with_prompts(["a fox"])


def test_damaged_text_encoders_and_tokenizers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    weights = load_file(DATA / "sd1/text_encoder/model.safetensors")
    gone = "text_model.final_layer_norm.weight"
    for number, (spoilt, reason) in enumerate(
        (
            (
                {key: value for key, value in weights.items() if key != gone},
                "1 weights are missing",
            ),
            (weights | {"text_model.more.weight": torch.zeros(2)}, "unknown to it"),
            (weights | {gone: torch.zeros(3)}, "do not fit"),
            (weights | {gone: torch.full((32,), torch.nan)}, "NaN"),
            (
                weights | {"text_model.embeddings.token_embedding.weight": torch.zeros(9, 32)},
                "582 tokens",
            ),
        )
    ):
        folder = copy_of("sd1", tmp_path / str(number))
        save_file(spoilt, folder / "text_encoder/model.safetensors")
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(folder).with_prompts(["a fox"])
    for name, content, reason in (
        ("vocab.json", b"[1]", "JSON object"),
        ("vocab.json", b'{"a": "b"}', "no vocabulary"),
        ("vocab.json", b'{"a": 1}', "tokenizer cannot be used"),
        ("merges.txt", b"#version: 0.2\na b c\n", "no pairs"),
        ("merges.txt", b"zz qq\n", "tokenizer cannot be used"),
        ("merges.txt", b"\xff\xfe\x00", "UTF-8"),
        ("tokenizer_config.json", b'{"tokenizer_class": "T5Tokenizer"}', "T5Tokenizer"),
        ("tokenizer_config.json", b'{"pad_token": {"content": 5}}', "special token"),
    ):
        folder = copy_of("sd1", tmp_path / f"{name}{len(content)}")
        (folder / "tokenizer" / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(folder).with_prompts(["a fox"])


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(sd1: Path) -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    path = sd1 / "tokenizer/vocab.json"
    tokens = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(tokens | {"fox</w>": 600}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="more tokens than its text encoder"):
        load_checkpoint(sd1).with_prompts(["a fox"])


@pytest.mark.parametrize("name", TEXT)
def test_a_tokenizer_json_alone_gives_the_same_ids(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("transformers", reason="prompts need transformers")
    folder = copy_of(name, tmp_path)
    library.CLIPTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(folder / "new")
    for old in (folder / "tokenizer").iterdir():
        old.unlink()
    for new in (folder / "new").iterdir():
        new.rename(folder / "tokenizer" / new.name)
    assert not (folder / "tokenizer/vocab.json").exists()
    prompts = tuple(case(name).settings["prompts"] + case(name).settings["more_prompts"])
    found = load_checkpoint(folder).conditioner.encoders[0].token_ids(prompts)
    assert torch.equal(found, case(name).checkpoint.conditioner.encoders[0].token_ids(prompts))


def test_rows_between_prompts_are_on_the_straight_line() -> None:
    rows = torch.arange(12.0).view(3, 2, 2)
    table = Table(rows, rows[:, 0], torch.ones(3, 6))
    between = table.blend([(0, 1, 0.0), (0, 1, 0.25), (1, 0, 0.0), (2, 2, 0.5)])
    expected = torch.stack([rows[0], 0.75 * rows[0] + 0.25 * rows[1], rows[1], rows[2]])
    assert torch.equal(between.embeddings, expected)
    assert torch.equal(between.pooled, expected[:, 0])
    assert between.time_ids.shape == (4, 6)
    assert torch.equal(table.joined(between).embeddings, torch.cat((rows, expected)))


def test_frames_between_prompts_are_labels_of_a_table_of_their_own() -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    ready = case("sdxl").checkpoint.with_prompts(["a fox", "snow"], "blurry")
    frames = [(0, 1, i / 4) for i in range(5)] + [(2, 2, 0.0)]
    between = ready.with_table(ready.table.blend(frames), tuple("01234"))
    assert (between.num_classes, between.null_class) == (5, 5)
    x, t = torch.ones(2, 4, 8, 8), torch.tensor([5, 5])
    with torch.inference_mode():
        ends = between.network(x, t, torch.tensor([0, 4]))
        assert torch.allclose(ends, ready.network(x, t, torch.tensor([0, 1])), atol=1e-5)
        null = between.network(x, t)
        assert torch.allclose(null, ready.network(x, t), atol=1e-5)


def test_the_table_of_a_class_embedder_makes_labels_classes(sd1: Path) -> None:
    weight = torch.randn(11, 32, generator=torch.Generator().manual_seed(0))
    shutil.rmtree(sd1 / "text_encoder")
    change(sd1 / "model_index.json", text_encoder=None, tokenizer=None)
    path = sd1 / "class_embedder" / WEIGHTS
    path.parent.mkdir()
    save_file({"embedding.weight": weight}, path)
    classes = load_checkpoint(sd1)
    assert (classes.num_classes, classes.null_class, classes.conditioner) == (10, 10, None)
    assert (classes.class_name(3), classes.class_name(10)) == ("3", "none")
    x, t = torch.ones(2, 4, 8, 8), torch.tensor([5, 9])
    with torch.inference_mode():
        found = classes.network(x, t, torch.tensor([3, 10]))
        expected = classes.unet(x, t, weight[[3, 10]][:, None], return_dict=False)[0]
        assert torch.equal(found, expected)
        assert torch.equal(classes.network(x, t, torch.tensor([10, 10])), classes.network(x, t))
    for spoilt, reason in (
        ({"embedding.weight": weight[:, :8].clone()}, "embeddings of 32 channels"),
        ({"embedding.weight": weight[:, None].clone()}, "not one table"),
        ({"other": weight}, "not one table"),
        ({"embedding.weight": weight * torch.inf}, "infinite"),
    ):
        save_file(spoilt, path)
        with pytest.raises(CheckpointError, match=reason):
            load_checkpoint(sd1)


def test_latent_checkpoints_are_not_written_as_networks_of_pixels() -> None:
    for name in ("sd1", "ldm-vq"):
        with pytest.raises(RequestError, match="works on latents"):
            checkpoint_files(case(name).checkpoint)


def test_networks_of_pixels_are_as_they_were(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    write_json(tmp_path / "scheduler/scheduler_config.json", _class_name="DDPMScheduler")
    checkpoint = load_checkpoint(tmp_path)
    assert (checkpoint.codec, checkpoint.conditioner, checkpoint.table) == (None, None, None)
    assert checkpoint.picture_shape == checkpoint.sample_shape
    assert checkpoint.picture_divisor == checkpoint.size_divisor
    x = torch.ones(1, 3, 16, 16)
    assert checkpoint.decode(x) is x
    assert checkpoint.encode(x) is x
    assert "parts" not in checkpoint.provenance.record()
