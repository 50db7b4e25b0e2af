"""Files of denoising-diffusion-pytorch, against what the package's own code made of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddimctl.api.sampling import invert
from ddimctl.checkpoints import load_checkpoint
from ddimctl.cli.main import main
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.errors import CheckpointError, RequestError
from ddimctl.files.latents import load_latents, save_latents

DATA = Path(__file__).parent.parent / "data" / "lucidrains"
CASES = {
    "bare_diffusion_v_linear": ("v", {}),
    "bare_unet_eps_cosine": ("eps", {"objective": "pred_noise", "beta_schedule": "cosine"}),
    "gray_28_ddpm_minsnr": ("eps", {}),
    "learned_variance_cosine": ("eps", {}),
    "v1_11_groupnorm": ("v", {}),
    "v1_5_weight_standardized": ("eps", {}),
    "x0_cosine_selfcond": ("x_0", {}),
}


class Recorded:
    """One folder of recordings: tensors by name, the cases, the size of the images."""

    def __init__(self, name):
        self.file = safe_open(DATA / f"{name}.cases.safetensors", "pt")
        about = self.file.metadata()
        self.cases, self.size = json.loads(about["cases"]), json.loads(about["size"])

    def __getitem__(self, key):
        return self.file.get_tensor(key)

    def timesteps_of(self, prefix):
        return [
            (key, int(key[len(prefix) :]))
            for key in self.file.keys()  # noqa: SIM118, a file, no dict
            if key.startswith(prefix)
        ]


def load(name, **options):
    size = (Recorded(name).size,) * 2
    return load_checkpoint(DATA / f"{name}.pt", size=size, **({"flags": CASES[name][1]} | options))


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_the_packages_own(name):
    recorded, checkpoint = Recorded(name), load(name)
    assert checkpoint.prediction == CASES[name][0]
    x = recorded["x_T"]
    assert recorded.timesteps_of("out.t")
    with torch.no_grad():
        for key, t in recorded.timesteps_of("out.t"):
            found = checkpoint.network(x, torch.full((len(x),), t))
            assert relative_error(found, recorded[key]) < 1e-5
        for key, t in recorded.timesteps_of("out_selfcond.t"):
            times, known = torch.full((len(x),), t), recorded["x_self_cond"]
            assert relative_error(checkpoint.network(x, times, None, known), recorded[key]) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_trajectories_are_the_packages_own(name):
    recorded, checkpoint = Recorded(name), load(name)
    assert recorded.cases
    for case, settings in recorded.cases.items():
        timesteps, drawn = settings["timesteps"], {}
        if settings["eta"]:
            drawn = dict(zip(reversed(timesteps), recorded[f"{case}.noise"], strict=False))
        with torch.no_grad():
            *_, last = trajectory(
                make_denoiser(checkpoint, clip="static" if "clip1" in case else "none"),
                recorded["x_T"],
                checkpoint.schedule,
                timesteps,
                eta=settings["eta"],
                noise=lambda t, _, drawn=drawn: drawn[t],
            )
        assert relative_error(last.x, recorded[f"{case}.x_0"]) < 2e-3


def test_the_command_line_gives_the_same(tmp_path, capsys):
    name = "v1_11_groupnorm"
    recorded = Recorded(name)
    ((case, settings),) = recorded.cases.items()
    save_latents(tmp_path / "x_T.pt", recorded["x_T"], {})
    tau = ",".join(map(str, settings["timesteps"]))
    arguments = ["sample", "--ckpt", DATA / f"{name}.pt", "--size", recorded.size, "--tau", tau]
    arguments += ["--latents", tmp_path / "x_T.pt", "--clip", "static", "--save", "samples"]
    assert main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 0
    found = load_latents(tmp_path / "out" / "samples.pt", "samples").latents
    assert relative_error(found, recorded[f"{case}.x_0"]) < 2e-3
    assert "--clip static --tau trailing" in capsys.readouterr().err


def test_raw_and_averaged_weights():
    averaged, raw = (load("x0_cosine_selfcond", weights=kind) for kind in ("ema", "raw"))
    assert (averaged.provenance.weights, raw.provenance.weights) == ("ema", "raw")
    one, other = averaged.unet.final_conv.weight, raw.unet.final_conv.weight
    assert one.shape == other.shape
    assert not torch.equal(one, other)
    with pytest.raises(CheckpointError, match="ema weights only"):
        load("v1_11_groupnorm", weights="raw")


def test_a_self_conditioned_network_starts_each_trajectory_anew():
    recorded, checkpoint = Recorded("x0_cosine_selfcond"), load("x0_cosine_selfcond")
    denoise, x = make_denoiser(checkpoint), recorded["x_T"]
    with torch.no_grad():
        first, second = denoise(x, 400, None), denoise(x, 200, None)
        again, alone = denoise(x, 400, None), make_denoiser(checkpoint)(x, 200, None)
    assert torch.equal(first.x_0, again.x_0)
    assert not torch.equal(second.x_0, alone.x_0)


def test_what_has_no_meaning_with_self_conditioning_is_refused(tmp_path, capsys):
    name = "x0_cosine_selfcond"
    checkpoint = load(name)
    with pytest.raises(RequestError, match="self-conditioned"):
        invert(checkpoint, torch.zeros(1, 3, 16, 16), timesteps=(0, 100, 499))
    options = ["--ckpt", str(DATA / f"{name}.pt"), "--size", "16", "--out", str(tmp_path / "out")]
    assert main(["sample", "--tau", "auto", "--steps", "4", *options]) == 2
    assert "--tau trailing" in capsys.readouterr().err


def test_a_converted_checkpoint_is_the_same_network(tmp_path, capsys):
    name, out = "v1_5_weight_standardized", tmp_path / "converted"
    assert main(["convert", str(DATA / f"{name}.pt"), str(out), "--size", "16"]) == 0
    assert "diffusers cannot read this network" in capsys.readouterr().err
    checkpoint, converted = load(name), load_checkpoint(out)
    assert converted.prediction == checkpoint.prediction
    torch.testing.assert_close(converted.schedule.alpha_bar, checkpoint.schedule.alpha_bar)
    x, t = Recorded(name)["x_T"], torch.tensor([700, 3])
    with torch.no_grad():
        assert torch.equal(converted.network(x, t), checkpoint.network(x, t))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({}, "do not show its objective, beta_schedule"),
        ({"objective": "pred_noise"}, "do not show its beta_schedule"),
        ({"objective": "noise", "beta_schedule": "cosine"}, "objective is 'noise'"),
        ({"objective": "pred_v", "beta_schedule": "quadratic"}, "beta_schedule is 'quadratic'"),
        ({"objective": "pred_v", "beta_schedule": "cosine", "channels": "1"}, "channels is 1"),
    ],
)
def test_what_a_bare_network_does_not_tell_must_be_said(flags, says):
    with pytest.raises(RequestError, match=says):
        load("bare_unet_eps_cosine", flags=flags)


def test_a_flag_that_the_loss_weights_contradict_is_refused():
    with pytest.raises(RequestError, match="objective is pred_v, but the weights of"):
        load("gray_28_ddpm_minsnr", flags={"objective": "pred_v"})


@pytest.mark.parametrize(
    ("schedule", "steps"), [("linear", 200), ("cosine", 500), ("sigmoid", 1000)]
)
def test_named_schedules_are_the_packages_own(schedule, steps):
    of = {"linear": "bare_diffusion_v_linear", "cosine": "x0_cosine_selfcond"}
    expected = load(of.get(schedule, "v1_11_groupnorm")).schedule.alpha_bar
    flags = {"objective": "pred_v", "beta_schedule": schedule, "timesteps": str(steps)}
    found = load("bare_unet_eps_cosine", flags=flags).schedule.alpha_bar
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_networks_of_other_kinds_are_refused_by_name(tmp_path):
    weights = torch.load(DATA / "bare_unet_eps_cosine.pt", weights_only=True)
    flags = CASES["bare_unet_eps_cosine"][1]
    one_dimensional = {
        key: tensor[..., 0] if tensor.ndim == 4 else tensor for key, tensor in weights.items()
    }
    others = {
        "for 1D data": one_dimensional,
        "for continuous time": weights | {"time_mlp.0.weights": torch.zeros(8)},
    }
    for says, content in others.items():
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=says):
            load_checkpoint(tmp_path / "model.pt", size=(16, 16), flags=flags)


def test_a_damaged_file_is_one_error(tmp_path):
    whole = torch.load(DATA / "bare_diffusion_v_linear.pt", weights_only=True)
    for key, tensor in (
        ("model.downs.0.2.to_qkv.weight", None),
        ("model.init_conv.weight", torch.zeros(8)),
        ("betas", torch.zeros(3, 3)),
        ("betas", torch.full((200,), 2.0)),
        ("model.mid_attn.mem_kv", torch.zeros(2, 3, 4, 5)),
    ):
        content = {k: v for k, v in whole.items() if k != key}
        torch.save(content | ({} if tensor is None else {key: tensor}), tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"model\.pt"):
            load_checkpoint(tmp_path / "model.pt", size=(16, 16))
