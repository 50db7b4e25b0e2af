"""load_checkpoint on Stable Diffusion's single files, and with LoRA files."""

import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from compvis_files import LATENT, SD1, SINGLE, sd2, sdxl, single
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddimctl.checkpoints import load_checkpoint
from ddimctl.checkpoints.model import Checkpoint
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.errors import CheckpointError, RequestError

FLAGS = {"norm_num_groups": "8", "vae_norm_num_groups": "4", "text_num_heads": "4"}
BESIDE = {"config": str(SD1)}
LORA = LATENT / "sd1-lora"
FILES = ("kohya.safetensors", "pytorch_lora_weights.safetensors")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="needs transformers"
)


def load(path: Path = SINGLE, **options: Any) -> Checkpoint:
    return load_checkpoint(path, **{"flags": BESIDE, **options})


def recorded() -> dict[str, Tensor]:
    return load_file(SD1 / "cases.safetensors")


def output(checkpoint: Checkpoint, t: int = 981) -> Tensor:
    """The UNet's, for the recorded noise and embeddings."""
    cases = recorded()
    with torch.no_grad():
        found: Tensor = checkpoint.unet(cases["x_T"], t, cases["text/embeddings"][:2])[0]
    return found


def test_single_file_computes_what_is_recorded() -> None:
    checkpoint, cases = load(), recorded()
    assert (checkpoint.sample_shape, checkpoint.picture_shape) == ((4, 8, 8), (3, 64, 64))
    assert (checkpoint.prediction, checkpoint.provenance.family) == ("eps", "ldm")
    for t in (1, 981):
        torch.testing.assert_close(output(checkpoint, t), cases[f"unet/t{t}"], rtol=0, atol=1e-4)
    decoded = checkpoint.decode(cases["vae/decode_input"])
    torch.testing.assert_close(decoded, cases["vae/decoded"], rtol=0, atol=1e-4)
    encoded = checkpoint.encode(cases["vae/image"])
    torch.testing.assert_close(encoded, cases["vae/latents_of_image"], rtol=0, atol=1e-4)


def test_what_is_recorded_of_a_file_gives_the_same_network() -> None:
    first = load()
    assert "config" not in first.provenance.flags  # a path
    again = load(flags=dict(first.provenance.flags))
    assert again.sample_shape == first.sample_shape
    assert torch.equal(output(again), output(first))
    assert again.provenance.sha256 == first.provenance.sha256


def test_settings_of_a_folder_that_the_file_lies_in_are_taken(tmp_path: Path) -> None:
    folder = tmp_path / "sd1"
    shutil.copytree(SD1, folder)
    shutil.copy(SINGLE, folder)
    assert torch.equal(output(load(folder / SINGLE.name, flags={})), output(load()))


def test_published_size_without_any_settings_beside(tmp_path: Path) -> None:
    checkpoint = load(shutil.copy(SINGLE, tmp_path), flags=FLAGS)
    assert checkpoint.picture_shape == (3, 512, 512)
    assert checkpoint.provenance.flags["size"] == "512x512"
    small = load(tmp_path / SINGLE.name, flags=FLAGS, size=(64, 128))
    assert small.sample_shape == (4, 8, 16)
    assert torch.equal(output(checkpoint), output(load()))


def _lightning() -> dict[Any, Any]:
    """What the training of CompVis keeps beside the weights: a class as a key."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    kind = type("ModelCheckpoint", (), {"__module__": name})
    vars(module)["ModelCheckpoint"] = kind
    parts = name.split(".")
    packages = {".".join(parts[:i]): ModuleType(".".join(parts[:i])) for i in (1, 2)}
    sys.modules.update(packages | {name: module})
    return {kind: {"monitor": "val/loss", "best_model_score": torch.tensor(0.1)}}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".pt"])
def test_files_of_the_training_are_read(tmp_path: Path, suffix: str) -> None:
    before = set(sys.modules)
    content = {
        "epoch": 7,
        "global_step": 470_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": single(),
        "callbacks": _lightning(),
        "optimizer_states": [],
    }
    torch.save(content, tmp_path / f"sd{suffix}")
    for name in set(sys.modules) - before:
        if name.startswith("pytorch_lightning"):
            del sys.modules[name]
    assert torch.equal(output(load(tmp_path / f"sd{suffix}")), output(load()))
    assert "pytorch_lightning" not in sys.modules


def test_ema_weights_are_preferred(tmp_path: Path) -> None:
    weights, raw = single(), "model.diffusion_model."
    for key in [key for key in weights if key.startswith(raw)]:
        weights[f"model_ema.diffusion_model{key.removeprefix(raw).replace('.', '')}"] = weights[key]
        weights[key] = torch.zeros_like(weights[key])
    torch.save({"state_dict": weights}, tmp_path / "sd-full-ema.ckpt")
    found = load(tmp_path / "sd-full-ema.ckpt")
    assert found.provenance.weights == "ema"
    assert any("--weights raw" in note for note in found.provenance.notes)
    assert torch.equal(output(found), output(load()))
    plain = load(tmp_path / "sd-full-ema.ckpt", weights="raw")
    assert plain.provenance.weights == "raw"
    assert not output(plain).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files(tmp_path: Path, dtype: torch.dtype) -> None:
    halves = {k: t.to(dtype) if t.is_floating_point() else t for k, t in single().items()}
    save_file(halves, tmp_path / "half.safetensors")
    checkpoint = load(tmp_path / "half.safetensors")
    assert checkpoint.schedule.settings["kind"] == "scaled_linear"
    torch.testing.assert_close(output(checkpoint), output(load()), rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("make", "shape"), [(sd2, (4, 96, 96)), (sdxl, (4, 128, 128))])
def test_other_kinds(
    make: Callable[[], dict[str, Tensor]], shape: tuple[int, ...], tmp_path: Path
) -> None:
    save_file(make(), tmp_path / "file.safetensors")
    flags = {"vae_norm_num_groups": "4", "prediction": "v"}
    checkpoint = load(tmp_path / "file.safetensors", flags=flags)
    assert (checkpoint.prediction, checkpoint.sample_shape) == ("v", shape)
    assert checkpoint.conditioner is not None
    assert checkpoint.conditioner.pooled == (make is sdxl)
    assert len(checkpoint.conditioner.encoders) == (2 if make is sdxl else 1)


def test_another_autoencoder_takes_the_place_of_the_files(tmp_path: Path) -> None:
    weights = {key: t for key, t in single().items() if not key.startswith("first_stage_model.")}
    save_file(weights, tmp_path / "file.safetensors")
    checkpoint = load(tmp_path / "file.safetensors", vae=SD1 / "vae")
    cases = recorded()
    decoded = checkpoint.decode(cases["vae/decode_input"])
    torch.testing.assert_close(decoded, cases["vae/decoded"], rtol=0, atol=1e-4)
    assert checkpoint.provenance.parts == {"vae": "vae"}
    with pytest.raises(CheckpointError, match="no autoencoder"):
        load(tmp_path / "file.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.diffusion_model.out.2.weight": torch.zeros(4, 16, 1, 1)}, r"of another shape \(model\.diff"),
        ({"model.diffusion_model.extra.weight": torch.zeros(4)}, r"1 extra \(model\.diffusion_model\.ex"),
        ({"first_stage_model.decoder.norm_out.weight": torch.zeros(9)}, r"of another shape \(first_stage"),
        ({"first_stage_model.extra.weight": torch.zeros(9)}, r"1 extra \(first_stage_model\.extra"),
        ({"model.diffusion_model.out.0.bias": torch.full((16,), torch.nan)}, "NaN or infinite"),
        ({"model.diffusion_model.out.0.bias": torch.zeros(16, dtype=torch.int8)}, "has the type torch.int8"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(32, dtype=torch.int8)}, "int8"),
    ],
)  # fmt: skip
def test_wrong_weights_are_named_as_in_the_file(
    change: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    save_file({**single(), **change}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "file.safetensors")


def test_wrong_folders_for_its_settings(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is not a diffusers folder"):
        load(flags={"config": str(tmp_path)})
    with pytest.raises(RequestError, match="size is unknown"):
        load(flags={"size": "64"})


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("weight", ["1", "0.5"])
@pytest.mark.parametrize("single_file", [True, False])
def test_lora_is_fused(file: str, weight: str, single_file: bool) -> None:
    options: dict[str, Any] = {"lora": [f"{LORA / file}:{weight}"]}
    if single_file:
        changed, plain = load(**options), load()
    else:
        changed, plain = load(SD1, flags={}, **options), load(SD1, flags={})
    assert (output(changed) - output(plain)).abs().max() > 1e-3
    assert changed.provenance.parts == {"lora": f"{file}:{weight}"}
    assert changed.provenance.sha256 != plain.provenance.sha256
    same = load(lora=[f"{LORA / FILES[0]}:{weight}"])
    torch.testing.assert_close(output(changed), output(same), rtol=0, atol=1e-5)


@needs_transformers
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("weight", ["1", "0.5"])
@pytest.mark.parametrize("single_file", [True, False])
def test_runs_with_lora_are_those_recorded(file: str, weight: str, single_file: bool) -> None:
    path, flags = (SINGLE, BESIDE) if single_file else (SD1, {})
    checkpoint = load(path, flags=flags, lora=[f"{LORA / file}:{weight}"])
    cases = load_file(LORA / "cases.safetensors")
    prompts = ("a red fox in the snow", "an oil painting of a lighthouse, stormy sea")
    checkpoint = checkpoint.with_prompts(prompts, "blurry, low quality")
    assert checkpoint.table is not None
    wanted = cases[f"text/embeddings-scale-{weight}"]
    torch.testing.assert_close(checkpoint.table.embeddings[:2], wanted, rtol=0, atol=1e-5)
    x = cases["x_T"]
    timesteps = [*range(901, 0, -100), -1]
    with torch.no_grad():
        for t, after in pairwise(timesteps):
            a, b = checkpoint.schedule(t), checkpoint.schedule(after)
            at = torch.full((2,), t)
            eps = checkpoint.network(x, at)
            eps = eps + 5 * (checkpoint.network(x, at, torch.tensor([0, 1])) - eps)
            x = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    torch.testing.assert_close(x, cases[f"runs/scale-{weight}/latents"], rtol=0, atol=1e-4)


@needs_transformers
def test_prompts_of_a_single_file(tmp_path: Path) -> None:
    checkpoint, cases = load(), recorded()
    prompts = ("a red fox in the snow", "an oil painting of a lighthouse, stormy sea")
    table = checkpoint.with_prompts(prompts, "blurry, low quality").table
    assert table is not None
    torch.testing.assert_close(table.embeddings, cases["text/embeddings"][:3], rtol=0, atol=1e-5)
    # without a tokenizer beside it: CLIP's, which has more tokens than this tiny encoder
    bare = load(shutil.copy(SINGLE, tmp_path), flags=FLAGS)
    with pytest.raises(CheckpointError, match="more tokens than its text encoder"):
        bare.with_prompts(prompts)


@needs_transformers
def test_clips_own_ids() -> None:
    checkpoint = load(flags=FLAGS)
    assert checkpoint.conditioner is not None
    (encoder,) = checkpoint.conditioner.encoders
    ids = encoder.token_ids(("a photo of a cat",))[0].tolist()
    assert ids[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert len(ids) == 77


def test_lora_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    tensors = load_file(LORA / FILES[0])
    other = {
        f"lora_te2_{k.removeprefix('lora_te_')}": t for k, t in tensors.items() if "te_" in k[:8]
    }
    save_file(other, tmp_path / "xl.safetensors")
    with pytest.raises(CheckpointError, match="changes the text_encoder_2"):
        load(lora=[tmp_path / "xl.safetensors"])
    with pytest.raises(CheckpointError, match="changes the text_encoder_2"):
        load(SD1, flags={}, lora=[tmp_path / "xl.safetensors"])
    with pytest.raises(RequestError, match="is not a weight"):
        load(lora=[f"{tmp_path / 'xl.safetensors'}:much"])


def test_networks_of_images_take_no_lora() -> None:
    with pytest.raises(RequestError, match="has no lora"):
        load(LATENT.parent / "ermongroup_tiny" / "ckpt_1234.pth", lora=[LORA / FILES[0]])
    with pytest.raises(CheckpointError, match="changes the text_encoder"):
        load_checkpoint("bundled", lora=[LORA / FILES[0]])


def test_noise_has_the_latents_shape() -> None:
    checkpoint = load()
    assert seeded_noise([0, 1], checkpoint.sample_shape).shape == (2, 4, 8, 8)
