"""Settings from strangers: wrong types, impossible sizes, paths that lead elsewhere."""

import json
import os
from pathlib import Path

import pytest
from tiny_unets import tiny_unet, write_flat, write_json

from ddimctl.checkpoints import load_checkpoint
from ddimctl.checkpoints.build.architectures import ARCHITECTURES, architecture
from ddimctl.checkpoints.build.unet_config import check_unet_config
from ddimctl.errors import CheckpointError

WEIGHTS = "diffusion_pytorch_model.safetensors"
NAN = float("nan")


def test_impossible_settings_are_named_with_what_would_do() -> None:
    for name, value in (
        ("block_out_channels", [2**40]),
        ("block_out_channels", [-32, 32]),
        ("block_out_channels", ["32"]),
        ("block_out_channels", [32.0]),
        ("block_out_channels", [[32]]),
        ("block_out_channels", [NAN]),
        ("block_out_channels", [True]),
        ("block_out_channels", []),
        ("block_out_channels", None),
        ("block_out_channels", {"0": 32}),
        ("block_out_channels", [32] * 10**6),
        ("down_block_types", ["DownBlock2D"] * 10**6),
        ("down_block_types", [["DownBlock2D"]]),
        ("up_block_types", "UpBlock2D"),
        ("layers_per_block", 10**9),
        ("layers_per_block", 10**4000),
        ("layers_per_block", "2"),
        ("layers_per_block", 0),
        ("in_channels", 3.0),
        ("in_channels", True),
        ("norm_num_groups", -8),
        ("norm_eps", "1e-5"),
        ("norm_eps", NAN),
        ("freq_shift", "1"),
        ("mid_block_scale_factor", float("inf")),
        ("mid_block_type", "os.system"),
        ("downsample_padding", 10**9),
        ("time_embedding_type", "none"),
        ("time_embedding_type", ["fourier"]),
        ("num_class_embeds", 2**60),
        ("num_train_timesteps", 2**45),
        ("act_fn", "x" * 10**6),
    ):
        with pytest.raises(CheckpointError, match=rf"^here: {name} is .*, not ") as caught:
            check_unet_config({name: value}, "here")
        assert len(caught.value.cause) < 250


def test_settings_of_real_networks_pass(tmp_path: Path) -> None:
    for name in ARCHITECTURES:
        check_unet_config(architecture(name, (3, 64, 64), 11), "here")
    tiny_unet(class_embed_type="timestep").save_config(tmp_path)
    check_unet_config(json.loads((tmp_path / "config.json").read_text()), "here")


def test_impossible_schedules_are_refused(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    for settings, said in (
        ('{"trained_betas": [' + "0.01, " * 10**6 + "0.01]}", "1,000,001 numbers"),
        ('{"trained_betas": [' + "0.01, " * 2 * 10**6 + "0.01]}", "too large"),
        ('{"trained_betas": [NaN, 0.1]}', "not finite, in 'trained_betas'"),
        ('{"trained_betas": [' + "9" * 400 + "]}", "64 bits, in 'trained_betas'"),
        ('{"trained_betas": {"0": 0.1}}', "not a list of numbers"),
        ('{"beta_start": ' + "9" * 400 + "}", "64 bits, in 'beta_start'"),
        ('{"num_train_timesteps": ' + "9" * 4000 + "}", "64 bits"),
        ('{"num_train_timesteps": ' + "9" * 5000 + "}", "64 bits"),
    ):
        (tmp_path / "scheduler_config.json").write_text(settings)
        with pytest.raises(CheckpointError, match=said) as caught:
            load_checkpoint(tmp_path)
        assert len(caught.value.cause) < 300


def test_an_index_of_shards_names_files_beside_it_only(tmp_path: Path) -> None:
    write_flat(tmp_path, tiny_unet())
    (tmp_path / WEIGHTS).unlink()
    for shard in ("../../etc/passwd", "/etc/passwd", "x" * 5000, "a\0b", ["a"]):
        write_json(tmp_path / f"{WEIGHTS}.index.json", weight_map={"conv_in.weight": shard})
        with pytest.raises(CheckpointError, match=r"elsewhere|missing|cannot be read"):
            load_checkpoint(tmp_path)


@pytest.mark.timeout(60)
def test_links_and_pipes_are_neither_waited_for_nor_shown(tmp_path: Path) -> None:
    for name in ("config.json", "scheduler_config.json", WEIGHTS):
        for target in ("pipe", "/dev/zero", "/etc/passwd", "itself"):
            folder = write_flat(tmp_path / f"{name}-{target.replace('/', '-')}", tiny_unet())
            path = folder / name
            path.unlink(missing_ok=True)
            if target == "pipe":
                os.mkfifo(path)
            else:
                path.symlink_to(name if target == "itself" else target)
            if name == "scheduler_config.json" and target != "/etc/passwd":
                assert "no scheduler settings" in load_checkpoint(folder).provenance.notes[0]
                continue
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(folder)
            assert "root" not in caught.value.cause.replace(str(folder), "")


def test_control_characters_of_a_config_do_not_reach_the_terminal(
    tmp_path: Path, run_forked
) -> None:
    write_json(tmp_path / "model/config.json", _class_name="\x1b[2J\x07evil")
    ran = run_forked("info", tmp_path / "model")
    assert ran.code == 1
    assert "evil" in ran.stderr
    assert "\x1b" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_network_of_very_many_blocks_is_refused_before_it_is_laid_out() -> None:
    config = {"block_out_channels": [32] * 16, "layers_per_block": 64}
    with pytest.raises(CheckpointError, match="1024 residual blocks"):
        check_unet_config(config, "config.json")
