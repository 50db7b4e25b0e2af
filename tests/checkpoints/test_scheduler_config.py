"""scheduler_config.json becomes the schedule that diffusers' own scheduler has."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from tiny_unets import tiny_unet, write_flat, write_json

from ddimctl.checkpoints import load_checkpoint
from ddimctl.checkpoints.build.scheduler_config import (
    read_diffusion,
    sampler_note,
    scheduler_config,
)
from ddimctl.diffusion.schedules import from_betas, make_schedule
from ddimctl.errors import CheckpointError


def test_alpha_bar_is_that_of_diffusers() -> None:
    for settings in (
        {},
        {"num_train_timesteps": 250},
        {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.01},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3]},
        {"beta_schedule": "linear", "rescale_betas_zero_snr": True},
    ):
        theirs = DDPMScheduler(**settings)
        ours = read_diffusion(dict(theirs.config), "x").schedule.alpha_bar
        # diffusers computes in float32
        torch.testing.assert_close(ours.float(), theirs.alphas_cumprod, rtol=3e-4, atol=1e-6)


def test_prediction_type_in_our_words() -> None:
    for settings, prediction in (
        ({}, "eps"),
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "sample"}, "x_0"),
        ({"prediction_type": "v_prediction"}, "v"),
        ({"predict_epsilon": False}, "x_0"),
        ({"predict_epsilon": True}, "eps"),
    ):
        assert read_diffusion(settings, "x").prediction == prediction


def test_settings_that_are_not_of_a_ddpm_are_refused() -> None:
    for settings, reason in (
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"prediction_type": "flow_prediction"}, "flow_prediction"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ({"num_train_timesteps": True}, "num_train_timesteps"),
        ({"beta_start": "small"}, "beta_start"),
        ({"beta_end": float("nan")}, "beta_end"),
        ({"trained_betas": ["a"]}, "trained_betas"),
        ({"trained_betas": [0.5, 1.5]}, "betas"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01}, "variance-exploding"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "consistency model"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow-matching"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM"),
        ({"_class_name": "IPNDMScheduler"}, "does not hold the betas"),
    ):
        with pytest.raises(CheckpointError, match=reason) as caught:
            read_diffusion(settings, "x/scheduler_config.json")
        assert caught.value.cause.startswith("x/scheduler_config.json")


def test_sampler_settings_are_kept_aside_and_told(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    DDIMScheduler(clip_sample=True, timestep_spacing="leading").save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.ignored["clip_sample"] is True
    assert checkpoint.ignored["steps_offset"] == 0
    assert "beta_start" not in checkpoint.ignored
    assert any("clip_sample = True" in note for note in checkpoint.provenance.notes)


def test_settings_that_change_nothing_are_not_told() -> None:
    assert sampler_note("x", {"clip_sample": False, "timestep_spacing": "linspace"}) == ""


def test_no_scheduler_settings_mean_those_of_the_paper_and_a_note(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    checkpoint = load_checkpoint(tmp_path)
    assert torch.equal(checkpoint.schedule.alpha_bar, make_schedule().alpha_bar)
    assert checkpoint.prediction == "eps"
    assert any("no scheduler settings" in note for note in checkpoint.provenance.notes)


def test_a_scheduler_that_is_named_but_missing_is_not_guessed(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    write_json(
        tmp_path / "model_index.json",
        _class_name="DDPMPipeline",
        unet=["diffusers", "UNet2DModel"],
        scheduler=["diffusers", "DDPMScheduler"],
    )
    with pytest.raises(CheckpointError, match="its settings are missing"):
        load_checkpoint(tmp_path)


def test_writing_and_reading_a_schedule_gives_it_back() -> None:
    for kind in ("linear", "scaled_linear", "cosine", "sigmoid"):
        for prediction in ("eps", "x_0", "v"):
            for zero_snr in (False, True):
                schedule = make_schedule(kind, 100, 0.001, 0.03, rescale_zero_snr=zero_snr)
                found = read_diffusion(scheduler_config(schedule, prediction), "x")
                assert torch.equal(found.schedule.alpha_bar, schedule.alpha_bar)
                assert found.schedule.settings == schedule.settings
                assert found.prediction == prediction


def test_explicit_betas_are_written_and_read() -> None:
    schedule = from_betas([0.1, 0.2, 0.4])
    config = scheduler_config(schedule, "v")
    assert torch.equal(read_diffusion(config, "x").schedule.alpha_bar, schedule.alpha_bar)
    assert len(DDIMScheduler.from_config(config).alphas_cumprod) == 3


def test_a_bound_of_minus_infinity_is_none(tmp_path: Path) -> None:
    """As diffusers writes the DPM-Solver schedulers' lambda_min_clipped."""
    theirs = DPMSolverMultistepScheduler()
    write_flat(tmp_path, tiny_unet())
    theirs.save_pretrained(tmp_path)
    assert "-Infinity" in (tmp_path / "scheduler_config.json").read_text()
    found = load_checkpoint(tmp_path)
    assert "lambda_min_clipped" not in found.ignored
    assert found.ignored["solver_order"] == 2
    json.dumps(dict(found.ignored), allow_nan=False)
