"""Latent checkpoints compute what diffusers' own pipelines recorded."""

import json
from dataclasses import replace

import pytest
import torch
from latent_cases import DATA, NAMES, TEXT, case
from torch import Tensor

from ddimctl.api.sampling import invert, sample
from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.runtime.device import prepare_for_inference


def run_names(name: str) -> list[str]:
    runs = json.loads((DATA / name / "cases.json").read_text("utf-8"))["runs"]
    return [run for run in runs if "zero-snr" not in run]


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def prompted(checkpoint: Checkpoint, run: dict, x_T: Tensor) -> Checkpoint:
    """With the run's prompts, and for SDXL with the sizes that it names."""
    negatives = run.get("negative_prompt")
    height, width = (side * checkpoint.codec.factor for side in x_T.shape[2:])
    negative = negatives[0] if isinstance(negatives, list) else negatives
    ready = checkpoint.with_prompts(run["prompt"], negative, (height, width))
    if run.get("original_size") is None:
        return ready
    ids = [*run["original_size"], *run["crops_coords_top_left"], *run["target_size"]]
    table = replace(ready.table, time_ids=torch.tensor([ids] * len(ready.table)).float())
    return replace(ready, table=table)


@pytest.mark.parametrize("name", TEXT)
def test_token_ids_and_embeddings_are_those_of_the_peer(name: str) -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    checkpoint, settings, tensors = case(name)
    conditioner = checkpoint.conditioner
    for key, prompts in (("text", settings["prompts"]), ("more", settings["more_prompts"])):
        for encoder, suffix in zip(conditioner.encoders, ("", "_2"), strict=False):
            assert torch.equal(encoder.token_ids(tuple(prompts)), tensors[f"{key}{suffix}/ids"])
        table = conditioner.table(prompts, None, (64, 64))
        assert len(table) == len(prompts) + 1
        assert gap(table.embeddings[:-1], tensors[f"{key}/embeddings"]) < 1e-5
        if name == "sdxl":
            assert gap(table.pooled[:-1], tensors[f"{key}/pooled"]) < 1e-5


def test_a_negative_that_is_not_given_is_zeros_for_sdxl_and_an_empty_one_is_encoded() -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    checkpoint, _, tensors = case("sdxl")
    for negative, key in ((None, "no_negative"), ("", "empty_negative")):
        table = checkpoint.conditioner.table(["a fox"], negative, (64, 64))
        assert gap(table.embeddings[-1:], tensors[f"text/{key}"]) < 1e-5
        assert gap(table.pooled[-1:], tensors[f"text/{key}_pooled"]) < 1e-5
    assert not table.embeddings[-1].eq(0).all()
    for name in ("sd1", "sd2"):
        rows = case(name).checkpoint.conditioner.table([""], None, (64, 64)).embeddings
        assert torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("name", NAMES)
def test_the_autoencoder_is_the_peers(name: str) -> None:
    checkpoint, _, tensors = case(name)
    codec = checkpoint.codec
    scale = codec.settings["scaling_factor"]
    assert (codec.factor, codec.channels) == ((4, 3) if name == "ldm-vq" else (8, 3))
    assert checkpoint.picture_shape == (3, 64, 64)
    encoded = checkpoint.encode(tensors["vae/image"])
    if name == "ldm-vq":  # recorded without the scale
        assert gap(encoded / scale, tensors["vae/encoded"]) < 1e-4
        latents = tensors["vae/decode_input"] * scale
    else:
        assert gap(encoded, tensors["vae/latents_of_image"]) < 1e-4
        latents = tensors["vae/decode_input"]
    assert gap(checkpoint.decode(latents), tensors["vae/decoded"]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_the_unet_is_the_peers(name: str) -> None:
    checkpoint, settings, tensors = case(name)
    labels = None
    if name in TEXT:
        pytest.importorskip("transformers", reason="prompts need transformers")
        checkpoint = checkpoint.with_prompts(settings["prompts"][:2], None, (64, 64))
        labels = torch.tensor([0, 1])
    for key in [key for key in tensors if key.startswith("unet/t")]:
        t = torch.full((2,), int(key.removeprefix("unet/t")))
        with torch.inference_mode():
            assert gap(checkpoint.network(tensors["x_T"], t, labels), tensors[key]) < 1e-4


@pytest.mark.parametrize(
    ("name", "run"), [(name, run) for name in NAMES for run in run_names(name)]
)
def test_whole_runs_are_the_peers(name: str, run: str) -> None:
    checkpoint, settings, tensors = case(name)
    asked = settings["runs"][run]
    x_T, labels = tensors[asked["x_T"]], None
    if name in TEXT:
        pytest.importorskip("transformers", reason="prompts need transformers")
        checkpoint = prompted(checkpoint, asked, x_T)
        labels = torch.arange(len(x_T))
    denoise = make_denoiser(
        checkpoint,
        asked.get("guidance", 1.0),
        guidance_rescale=asked.get("guidance_rescale") or 0.0,
    )
    with torch.inference_mode():
        *_, last = trajectory(
            denoise, x_T, checkpoint.schedule, sorted(asked["timesteps"]), labels=labels
        )
    expected = tensors[f"runs/{run}/latents"]
    assert gap(last.x, expected) < 1e-4 * float(expected.abs().max())
    if f"runs/{run}/decoded" in tensors:
        assert gap(checkpoint.decode(last.x), tensors[f"runs/{run}/decoded"]) < 1e-3


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_networks_made_ready_for_inference_compute_the_same(name: str) -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    _, settings, tensors = case(name)
    checkpoint = load_checkpoint(DATA / name)
    prepare_for_inference(checkpoint.unet)
    ready = checkpoint.with_prompts(settings["prompts"][:2], None, (64, 64))
    for t in (1, 501):
        with torch.inference_mode():
            found = ready.network(tensors["x_T"], torch.full((2,), t), torch.tensor([0, 1]))
        assert gap(found, tensors[f"unet/t{t}"]) < 1e-4


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_comes_back_from_its_latent_under_guidance(guidance: float) -> None:
    pytest.importorskip("transformers", reason="prompts need transformers")
    checkpoint, _, tensors = case("sd1")
    ready = checkpoint.with_prompts(["a red fox"], "blurry")
    z, labels = checkpoint.encode(tensors["vae/image"]), torch.zeros(2, dtype=torch.int64)
    tau = timesteps("linspace", 50, 1000)
    found = invert(ready, z, timesteps=tau, labels=labels, guidance=guidance)
    back = sample(ready, found.latents, timesteps=tau, labels=labels, guidance=guidance)
    assert gap(back, z) < 1e-4
    assert gap(checkpoint.decode(back), checkpoint.decode(z)) < 1e-3


def test_guidance_rescale_is_off_at_0_and_wholly_on_at_1() -> None:
    class Model:
        schedule, prediction, learned_variance, null_class = None, "eps", False, 1
        self_conditioned = False
        outputs = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))

        def network(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
            return self.outputs[: len(x)]

    model = Model()
    model.schedule = make_schedule()
    x, labels = torch.zeros(2, 3, 4, 4), torch.tensor([0, 0])
    given, null = model.outputs.chunk(2)
    plain = null + 3 * (given - null)
    for rescale in (0.0, 0.5, 1.0):
        eps = make_denoiser(model, 3.0, guidance_rescale=rescale)(x, 500, labels).eps
        ratio = torch.stack([g.std() / p.std() for g, p in zip(given, plain, strict=True)])
        expected = plain * (1 - rescale + rescale * ratio.view(-1, 1, 1, 1))
        assert torch.allclose(eps, expected, atol=1e-6)
    assert torch.allclose(eps.flatten(1).std(1), given.flatten(1).std(1))
