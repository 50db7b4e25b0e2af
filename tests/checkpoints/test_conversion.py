"""Networks of ermongroup/ddim and OpenAI, converted, against functional references of them."""

import copy
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import peer_files
import pytest
import reference_ermongroup
import reference_openai
import torch
from diffusers import UNet2DModel
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peer_files import Peer, outputs
from peer_weights import given as as_given
from peer_weights import relative
from safetensors.torch import load_file

from ddimctl.checkpoints import Checkpoint, checkpoint_files, load_checkpoint
from ddimctl.checkpoints.build.network import UNetPatches

DATA = Path(__file__).parents[1] / "data"

ERMONGROUP: dict[str, dict[str, Any]] = {
    "as usual": {},
    "wider": {"ch": 64},
    "three levels": {"ch_mult": (1, 1, 2), "num_res_blocks": 2},
    "narrower below": {"ch_mult": (2, 1, 2)},
    "narrow stem": {"ch_mult": (2, 2)},
    "narrow stem, one level": {"ch_mult": (3,), "attn_resolutions": (16,)},
    "one level": {"ch_mult": (1,), "attn_resolutions": ()},
    "attention everywhere": {"attn_resolutions": (16, 8)},
    "attention in the middle": {"attn_resolutions": ()},
    "attention above": {"attn_resolutions": (16,), "num_res_blocks": 2},
    "pooled": {"resamp_with_conv": False},
    "pooled, narrow stem": {"resamp_with_conv": False, "ch_mult": (2, 2, 4), "image_size": 32},
    "one channel": {"in_channels": 1, "out_ch": 1},
    "T = 50": {"num_diffusion_timesteps": 50},
}
OPENAI: dict[str, dict[str, Any]] = {
    "as usual": {},
    "wider": {"num_channels": 64},
    "three levels": {"channel_mult": (1, 2, 3), "num_res_blocks": 2},
    "narrower below": {"channel_mult": (2, 1, 2)},
    "half": {"num_channels": 64, "channel_mult": (0.5, 1), "resblock_updown": True},
    "half, one head": {"num_channels": 64, "channel_mult": (0.5, 1), "num_heads": 1},
    "one level": {"channel_mult": (1,), "attention_resolutions": "16"},
    "attention everywhere": {"attention_resolutions": "16,8"},
    "attention in the middle": {"attention_resolutions": "4"},
    "attention above": {"attention_resolutions": "16", "num_res_blocks": 2},
    "channels per head": {"attention_resolutions": "16,8", "num_head_channels": 16},
    "new order": {"use_new_attention_order": True, "attention_resolutions": "16,8"},
    "new order, channels": {"use_new_attention_order": True, "num_head_channels": 16},
    "heads on the way up": {"num_heads_upsample": 4, "attention_resolutions": "16,8"},
    "one head on the way up": {"num_heads": 4, "num_heads_upsample": 1},
    "no scale-shift": {"use_scale_shift_norm": False},
    "updown": {"resblock_updown": True, "attention_resolutions": "16,8", "num_res_blocks": 2},
    "updown, no scale-shift": {"resblock_updown": True, "use_scale_shift_norm": False},
    "pooled": {"conv_resample": False, "channel_mult": (1, 1, 2), "attention_resolutions": "8"},
    "one channel": {"in_channels": 1, "learn_sigma": True},
    "classes": {"class_cond": True, "learn_sigma": True},
    "rescaled": {"diffusion_steps": 4000, "rescale_timesteps": True, "noise_schedule": "cosine"},
    "not rescaled": {"diffusion_steps": 4000},
    "T = 100": {"diffusion_steps": 100, "rescale_timesteps": True},
}
CASES = [("ermongroup", name) for name in ERMONGROUP] + [("openai", name) for name in OPENAI]


class Case(NamedTuple):
    peer: Peer
    checkpoint: Checkpoint


def _case(folder: Path, family: str, changed: dict[str, Any]) -> Case:
    peer: Peer = getattr(peer_files, family)(folder, **changed)
    return Case(peer, load_checkpoint(peer.path))


def test_the_references_are_the_peers_networks() -> None:
    recorded = load_file(DATA / "ermongroup_tiny" / "cases.safetensors")
    weights = torch.load(DATA / "ermongroup_tiny" / "ckpt_1234.pth", weights_only=True)[4]
    config = peer_files.TINY_ERMONGROUP
    assert reference_ermongroup.names_and_shapes(config).keys() == weights.keys()
    for t in (0, 1, 500, 999):
        found = reference_ermongroup.network(
            as_given(weights), config, recorded["x_T"], torch.full((2,), t)
        )
        assert relative(found, recorded[f"eps.t{t}"]) <= 1e-5


def test_the_references_are_openais_networks() -> None:
    for folder in (
        "guided_diffusion_tiny",
        "guided_diffusion_tiny_class",
        "improved_diffusion_tiny",
    ):
        recorded = load_file(DATA / folder / "cases.safetensors")
        weights = torch.load(DATA / folder / "model.pt", weights_only=True)
        said = json.loads((DATA / folder / "flags.json").read_text())
        flags = reference_openai.DEFAULTS | said["model"] | said["diffusion"]
        flags |= {"channel_mult": (1, 2), "num_classes": said["num_classes"]}
        assert reference_openai.names_and_shapes(flags).keys() == weights.keys()
        for t in (0, 1, 500, 999):
            found = reference_openai.network(
                as_given(weights), flags, recorded["x_T"], torch.full((2,), t), recorded.get("y")
            )
            assert relative(found, recorded[f"out.t{t}"]) <= 1e-5


@pytest.mark.parametrize(("family", "name"), CASES)
def test_a_network_agrees_and_so_does_what_is_saved_of_it(
    tmp_path: Path, family: str, name: str
) -> None:
    peer, checkpoint = _case(
        tmp_path, family, {"ermongroup": ERMONGROUP, "openai": OPENAI}[family][name]
    )
    for size in ((16, 16), (8, 24)):
        assert relative(*outputs(peer, checkpoint, size)) <= 1e-5
    _check_that_every_weight_has_a_say(peer, checkpoint)
    _check_that_what_is_saved_loads_as_it_was(peer, checkpoint, tmp_path / "saved")


def _check_that_every_weight_has_a_say(peer: Peer, checkpoint: Checkpoint) -> None:
    """A guard of the tests themselves: no weight could be lost without changing the output."""
    ours, _ = outputs(peer, checkpoint, (16, 16))
    assert 0.1 < float(ours.std()) < 100
    for weights in peer.weights.values():
        assert float(weights.abs().max()) > 1e-3


def _check_that_what_is_saved_loads_as_it_was(
    peer: Peer, checkpoint: Checkpoint, folder: Path
) -> None:
    for name, content in checkpoint_files(checkpoint).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    again = load_checkpoint(folder)
    assert again.patches == checkpoint.patches
    assert again.learned_variance == checkpoint.learned_variance
    assert again.num_classes == checkpoint.num_classes
    assert again.sample_shape == checkpoint.sample_shape
    assert torch.equal(again.schedule.alpha_bar, checkpoint.schedule.alpha_bar)
    ours, _ = outputs(peer, checkpoint, (8, 16))
    reloaded, theirs = outputs(peer, again, (8, 16))
    assert torch.equal(reloaded, ours)
    if again.patches == UNetPatches():
        plain = copy.copy(again)
        object.__setattr__(plain, "unet", UNet2DModel.from_pretrained(folder / "unet").eval())
        assert relative(outputs(peer, plain, (8, 16))[0], theirs) <= 1e-5
    else:
        assert json.loads((folder / "ddimctl.json").read_text())["network"]


# Not shrunk: a failing configuration is small already.
_SAMPLED: dict[str, Any] = {"deadline": None, "derandomize": True, "phases": [Phase.generate]}


@settings(max_examples=6, **_SAMPLED)
@given(
    st.fixed_dictionaries(
        {
            "ch": st.just(32),
            "ch_mult": st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
            "num_res_blocks": st.integers(1, 2),
            "attn_resolutions": st.sets(st.sampled_from([16, 8, 4])).map(tuple),
            "resamp_with_conv": st.booleans(),
            "in_channels": st.sampled_from([1, 3]),
        }
    )
)
def test_any_ermongroup_network_agrees(changed: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        peer, checkpoint = _case(
            Path(folder), "ermongroup", changed | {"out_ch": changed["in_channels"]}
        )
        assert relative(*outputs(peer, checkpoint, (8, 16))) <= 1e-5


@settings(max_examples=12, **_SAMPLED)
@given(
    st.fixed_dictionaries(
        {
            "num_channels": st.just(32),
            "channel_mult": st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
            "num_res_blocks": st.integers(1, 2),
            "attention_resolutions": st.sampled_from(["16", "8", "16,8", "8,4", "2"]),
            "num_heads": st.sampled_from([1, 2, 4]),
            "num_heads_upsample": st.sampled_from([-1, 1, 2]),
            "num_head_channels": st.sampled_from([-1, 8, 32]),
            "use_new_attention_order": st.booleans(),
            "use_scale_shift_norm": st.booleans(),
            "resblock_updown": st.booleans(),
            "conv_resample": st.booleans(),
            "learn_sigma": st.booleans(),
            "class_cond": st.booleans(),
            "in_channels": st.sampled_from([1, 3]),
            "rescale_timesteps": st.booleans(),
            "diffusion_steps": st.sampled_from([100, 1000, 4000]),
        }
    )
)
def test_any_openai_network_agrees(changed: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        peer, checkpoint = _case(Path(folder), "openai", changed)
        assert relative(*outputs(peer, checkpoint, (8, 16))) <= 1e-5
