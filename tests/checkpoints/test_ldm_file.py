"""Stable Diffusion in one file: its networks in diffusers' and transformers' words."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compvis_files import (
    SD1,
    SD2_UNET,
    SDXL_TEXT,
    SDXL_UNET,
    UNET,
    config_of,
    open_clip,
    sd2,
    sdxl,
    single,
    unet_weights,
)
from safetensors.torch import load_file
from torch import Tensor

from ddimctl.checkpoints.families.common import Flags
from ddimctl.checkpoints.families.ldm_file import Pipeline, convert, settings_beside
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import CheckpointError, DdimctlError, RequestError

GROUPS = {"vae_norm_num_groups": "4"}
TINY = {"norm_num_groups": "8", "text_num_heads": "4", **GROUPS}
PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def converted(
    weights: dict[str, Tensor], flags: dict[str, str] | None = None, wanted: str = "auto"
) -> Pipeline:
    flags = GROUPS if flags is None else flags
    return convert(weights, Flags("file.ckpt", flags, {}), wanted)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


@pytest.mark.parametrize("beside", [True, False])
def test_networks_of_a_single_file_are_those_of_the_folder(beside: bool) -> None:
    flags = Flags(
        "tiny", {} if beside else TINY, settings_beside(SD1) if beside else {}, config="c"
    )
    found = convert(single(), flags)
    networks = {"unet": found.unet, "vae": found.vae, "text_encoder": found.text[0].network}
    for part, network in networks.items():
        wanted = load_file(SD1 / part / PARTS[part])
        wanted.pop("text_model.embeddings.position_ids", None)
        assert_same(network.weights, wanted)
        config = config_of(part) | ({"scaling_factor": 0.18215} if part == "vae" else {})
        size = {} if beside else {"sample_size": 64}  # 512 pixels, as the published ones
        expected = {key: config[key] for key in network.config} | (size if part == "unet" else {})
        assert network.config == expected
    assert (found.kind, found.text[0].pad, found.weights) == ("sd1", "<|endoftext|>", "unknown")
    assert found.diffusion.prediction == "eps"
    usual = make_schedule("scaled_linear", 1000, 0.00085, 0.012)
    assert found.diffusion.schedule.settings == usual.settings


def test_what_was_settled_gives_the_same_again() -> None:
    first = convert(single(), Flags("tiny", {}, settings_beside(SD1)))
    again = converted(single(), {key: str(value) for key, value in first.settings.items()})
    assert again.unet.config == first.unet.config
    assert again.vae.config == first.vae.config
    assert [each.network.config for each in again.text] == [
        each.network.config for each in first.text
    ]


@pytest.mark.parametrize(("make", "config"), [(sd2, SD2_UNET), (sdxl, SDXL_UNET)])
def test_unets_of_other_kinds(
    make: Callable[[], dict[str, Tensor]], config: dict[str, Any]
) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    found = converted(make(), {"prediction": "v", **GROUPS})
    assert_same(found.unet.weights, unet_weights(config))
    expected_weights = convert_ldm_unet_checkpoint(make(), config)  # a mapping that is not ours
    assert_same(found.unet.weights, expected_weights)
    heads = [max(1, width // 64) for width in config["block_out_channels"]]
    expected = config | {"attention_head_dim": heads[0] if len({*heads}) == 1 else heads}
    assert {key: found.unet.config[key] for key in config} == expected
    assert found.diffusion.prediction == "v"


def test_text_encoder_of_sd2_loses_its_last_layer() -> None:
    from types import SimpleNamespace

    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    weights = sd2()
    (encoder,) = converted(weights, {"prediction": "eps", **GROUPS}).text
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=64))
    expected_weights = convert_open_clip_checkpoint(model, weights)
    kept = {
        key: t
        for key, t in expected_weights.items()
        if ".layers.2." not in key and "proj" not in key[:9]
    }
    kept.pop("text_projection.weight", None)
    assert_same(encoder.network.weights, kept)
    settings = encoder.network.config
    assert (settings["num_hidden_layers"], settings["hidden_act"]) == (2, "gelu")
    assert (settings["num_attention_heads"], encoder.pad) == (1, "!")


def test_a_file_whose_last_layer_is_gone_already_keeps_its_23() -> None:
    weights = {key: t for key, t in sd2().items() if not key.startswith("cond_stage_model.")}
    prefix = "cond_stage_model.model."
    for layers in (23, 24):
        found = converted(
            {**weights, **open_clip(prefix, layers=layers)}, {"prediction": "eps", **GROUPS}
        )
        assert found.text[0].network.config["num_hidden_layers"] == 23
    flags = {"prediction": "eps", "text_layers": "20", **GROUPS}
    found = converted({**weights, **open_clip(prefix, layers=24)}, flags)
    assert found.text[0].network.config["num_hidden_layers"] == 20


def test_sdxl_has_two_encoders_and_its_own_scale() -> None:
    weights = sdxl()
    found = converted(weights)
    first, second = found.text
    assert (found.kind, first.pad, second.pad) == ("sdxl", "<|endoftext|>", "!")
    assert_same(
        first.network.weights,
        {k.removeprefix(SDXL_TEXT[0]): t for k, t in weights.items() if k.startswith(SDXL_TEXT[0])},
    )
    projection = weights[f"{SDXL_TEXT[1]}text_projection"]
    assert torch.equal(second.network.weights["text_projection.weight"], projection.T)
    assert second.network.config["num_hidden_layers"] == 3
    assert second.network.config["architectures"] == ["CLIPTextModelWithProjection"]
    assert first.network.config["hidden_act"] == "quick_gelu"
    assert found.vae.config["scaling_factor"] == 0.13025
    assert found.unet.config["sample_size"] == 128
    assert converted({**weights, "v_pred": torch.empty(0)}).diffusion.prediction == "v"
    ends_in_noise = converted({**weights, "ztsnr": torch.empty(0)}).diffusion.schedule
    assert float(ends_in_noise.alpha_bar[-1]) == 0


def test_ema_weights_have_names_without_dots() -> None:
    weights = single()
    raw = {key: tensor for key, tensor in weights.items() if key.startswith(UNET)}
    for key, tensor in raw.items():
        spelled = key.removeprefix("model.").replace(".", "")
        weights[f"model_ema.{spelled}"] = tensor + 1
    weights["model_ema.decay"] = torch.tensor(0.9999)
    found = converted(weights, TINY)
    assert found.weights == "ema"
    assert "--weights raw" in found.notes[0]
    plain = converted(weights, TINY, "raw")
    assert (plain.weights, plain.notes) == ("raw", ())
    for key, tensor in plain.unet.weights.items():
        assert torch.equal(found.unet.weights[key], tensor + 1)
    del weights["model_ema.diffusion_modelout2weight"]
    with pytest.raises(CheckpointError, match=r"1 of its EMA weights are missing"):
        converted(weights, TINY)


def test_ema_weights_that_are_not_there_are_refused() -> None:
    with pytest.raises(CheckpointError, match="raw weights only"):
        converted(single(), TINY, "ema")


def test_schedule_comes_from_the_files_levels() -> None:
    weights = single()
    other = make_schedule("scaled_linear", 800, 0.0015, 0.0195)
    weights["alphas_cumprod"] = other.alpha_bar.float()
    found = converted(weights, TINY).diffusion.schedule
    torch.testing.assert_close(found.alpha_bar, other.alpha_bar, rtol=1e-5, atol=0)
    del weights["alphas_cumprod"]
    assert converted(weights, TINY).diffusion.schedule.settings["beta_end"] == 0.012
    weights["alphas_cumprod"] = make_schedule(
        "scaled_linear", 1000, 0.00085, 0.012
    ).alpha_bar.half()
    assert converted(weights, TINY).diffusion.schedule.settings["beta_end"] == 0.012


def test_scale_factor_comes_from_the_file() -> None:
    weights = {**single(), "scale_factor": torch.tensor(0.25)}
    assert converted(weights, TINY).vae.config["scaling_factor"] == 0.25
    flags = TINY | {"scaling_factor": "0.5"}
    assert converted(weights, flags).vae.config["scaling_factor"] == 0.5


def _widened(channels: int) -> dict[str, Tensor]:
    weights = single()
    key = f"{UNET}input_blocks.0.0.weight"
    return {**weights, key: torch.zeros(16, channels, 3, 3)}


def _without(prefix: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in single().items() if not key.startswith(prefix)}


def _with(key: str, *shape: int) -> dict[str, Tensor]:
    return {**single(), key: torch.zeros(shape)}


WRONG = {
    "inpainting": (lambda: _widened(9), "inpainting network"),
    "pix2pix": (lambda: _widened(8), "InstructPix2Pix"),
    "upscaler": (lambda: _widened(7), "upscaler"),
    "depth": (lambda: _widened(5), "depth-to-image"),
    "super-resolution": (lambda: _widened(6), "super-resolution"),
    "lcm": (lambda: _with(f"{UNET}time_embed.cond_proj.weight", 16, 16), "latent consistency"),
    "controlnet": (lambda: _with("control_model.input_blocks.0.0.weight", 1), "ControlNet"),
    "unclip": (lambda: _with("noise_augmentor.data_mean", 1), "unCLIP"),
    "embeddings": (lambda: _with(f"{UNET}label_emb.0.0.weight", 64, 32), "other embeddings"),
    "refiner": (
        lambda: {
            **_without("cond_stage"),
            "conditioner.embedders.0.model.ln_final.bias": torch.ones(1),
        },
        "SDXL refiner",
    ),
    "bert": (
        lambda: {
            **_without("cond_stage"),
            "cond_stage_model.transformer.token_emb.weight": torch.ones(1),
        },
        "BERT",
    ),
    "classes": (
        lambda: {**_without("cond_stage"), "cond_stage_model.embedding.weight": torch.ones(9, 2)},
        "class-conditional",
    ),
    "no text": (lambda: _without("cond_stage"), "no text encoder"),
    "no vae": (lambda: _without("first_stage"), "no autoencoder"),
    "vq": (lambda: _with("first_stage_model.quantize.embedding.weight", 9, 4), "VQ autoencoder"),
    "no middle": (lambda: _without(f"{UNET}middle_block.1."), "no text attention"),
    "half a unet": (lambda: _without(f"{UNET}input_blocks.1.0."), "damaged: it has no weight"),
    "half a vae": (
        lambda: _without("first_stage_model.encoder.conv_in."),
        "no weight encoder.conv",
    ),
    "half a text encoder": (
        lambda: _without("cond_stage_model.transformer.text_model.embeddings.token"),
        "no weight text_model.embeddings.token",
    ),
    "channels": (
        lambda: _with("first_stage_model.decoder.conv_in.weight", 16, 8, 3, 3),
        "UNet has 4 channels, its autoencoder 8",
    ),
    "levels": (lambda: _with("alphas_cumprod", 2, 500), "alphas_cumprod has the shape"),
    "flat": (lambda: _with("alphas_cumprod", 1000), "does not fall"),
    "scalar": (lambda: _with(f"{UNET}input_blocks.0.0.weight"), r"of the shape \(\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_run_is_refused_by_name(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        converted(make(), TINY)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "do not show its text_num_heads"),
        ({"text_num_heads": "4"}, "do not show its vae_norm_num_groups"),
        (TINY | {"norm_num_groups": "5"}, "cannot be split into 5 groups"),
        (TINY | {"num_heads": "5"}, "do not fit num_heads 5"),
        (TINY | {"num_head_channels": "0"}, "do not fit num_head_channels 0"),
        (TINY | {"text_num_heads": "5"}, "cannot be split into 5 heads"),
        (TINY | {"prediction": "noise"}, "prediction is 'noise'"),
        (TINY | {"depth": "5"}, "depth is unknown"),
        (TINY | {"image_size": "60"}, "do not fit the 4 levels"),
    ],
)
def test_flags_that_are_missing_or_wrong(flags: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        converted(single(), flags)


def test_sd2_must_be_told_what_it_predicts() -> None:
    with pytest.raises(RequestError, match="do not show whether it predicts v") as caught:
        converted(sd2())
    assert "--model-flag prediction=v" in caught.value.remedy


@pytest.mark.parametrize("prefix", [UNET, "first_stage_model.", "cond_stage_model."])
def test_any_weight_may_be_missing_or_have_another_shape(prefix: str) -> None:
    """Nothing but our own errors comes of it, at once or when the weights are put in."""
    whole = single()
    for key in [key for key in whole if key.startswith(prefix)][::3]:
        for replacement in (None, torch.zeros(0), torch.zeros(3, 0, 1), torch.tensor(1.0)):
            weights = {k: t for k, t in whole.items() if k != key or replacement is not None}
            if replacement is not None:
                weights[key] = replacement
            try:
                converted(weights, TINY)
            except DdimctlError as error:
                assert "\n" not in str(error)
