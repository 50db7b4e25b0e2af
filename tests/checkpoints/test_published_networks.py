"""The networks that the peers published, laid out without memory from the flags of their READMEs."""

from typing import Any, NamedTuple

import pytest
import reference_ermongroup
import reference_openai
from torch import Tensor

from ddimctl.checkpoints.build.network import build_unet
from ddimctl.checkpoints.families import ermongroup, openai
from ddimctl.checkpoints.families.common import Converted, Flags
from ddimctl.errors import RequestError

IMPROVED: dict[str, Any] = {
    **reference_openai.DEFAULTS,
    "num_res_blocks": 3,
    "learn_sigma": True,
    "diffusion_steps": 4000,
    "noise_schedule": "cosine",
    "rescale_timesteps": True,
}
GUIDED: dict[str, Any] = {
    **reference_openai.DEFAULTS,
    "image_size": 256,
    "num_channels": 256,
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "attention_resolutions": "32,16,8",
    "class_cond": True,
    "learn_sigma": True,
    "num_head_channels": 64,
    "resblock_updown": True,
}
ERMONGROUP = reference_ermongroup.CIFAR10


class Published(NamedTuple):
    """flags: of the training. millions: of parameters, as its paper or README says (93M: 93 to 94),
    or None."""

    flags: dict[str, Any]
    millions: float | None = None


OPENAI = {
    "imagenet64_uncond_100M_1500K.pt": Published(IMPROVED),
    "cifar10_uncond_50M_500K.pt": Published(
        IMPROVED | {"image_size": 32, "channel_mult": (1, 2, 2, 2)}
    ),
    "imagenet64_cond_270M_250K.pt": Published(
        IMPROVED | {"num_channels": 192, "class_cond": True, "rescale_timesteps": False}, 273
    ),
    "lsun_uncond_100M_1200K_bs128.pt": Published(
        IMPROVED
        | {
            "image_size": 256,
            "channel_mult": (1, 1, 2, 2, 4, 4),
            "num_res_blocks": 2,
            "num_heads": 1,
            "attention_resolutions": "16",
            "use_scale_shift_norm": False,
            "diffusion_steps": 1000,
            "noise_schedule": "linear",
            "rescale_timesteps": False,
        }
    ),
    "64x64_diffusion.pt": Published(
        GUIDED
        | {
            "image_size": 64,
            "num_channels": 192,
            "num_res_blocks": 3,
            "channel_mult": (1, 2, 3, 4),
            "noise_schedule": "cosine",
            "use_new_attention_order": True,
        },
        296,
    ),
    "128x128_diffusion.pt": Published(
        GUIDED | {"image_size": 128, "channel_mult": (1, 1, 2, 3, 4), "num_head_channels": -1}, 422
    ),
    "256x256_diffusion.pt": Published(GUIDED, 554),
    "256x256_diffusion_uncond.pt": Published(GUIDED | {"class_cond": False}, 553),
    "512x512_diffusion.pt": Published(
        GUIDED | {"image_size": 512, "channel_mult": (0.5, 1, 1, 2, 2, 4, 4)}, 559
    ),
}
P2: dict[str, Any] = GUIDED | {
    "num_channels": 128,
    "num_res_blocks": 1,
    "attention_resolutions": "16",
    "class_cond": False,
}
DDPM_IP: dict[str, Any] = GUIDED | {
    "image_size": 64,
    "num_channels": 192,
    "num_res_blocks": 3,
    "channel_mult": (1, 2, 3, 4),
    "class_cond": False,
    "use_new_attention_order": True,
    "noise_schedule": "cosine",
}
THIRD_PARTIES = {
    "P2-weighting": {"ffhq_10m.pt, celebahq_p2.pt": Published(P2, 93.5)},
    "DDPM-IP": {
        "cifar10, imagenet32": Published(
            DDPM_IP
            | {
                "image_size": 32,
                "num_channels": 128,
                "channel_mult": (1, 2, 2, 2),
                "attention_resolutions": "16,8",
                "num_head_channels": 32,
            }
        ),
        "lsun_tower, celeba64": Published(DDPM_IP),
        "ffhq128": Published(
            DDPM_IP | {"image_size": 128, "num_channels": 256, "channel_mult": (1, 1, 2, 3, 4)}
        ),
    },
}
NETWORKS = {"OpenAI": OPENAI, **THIRD_PARTIES}
HO = {
    "cifar10": Published(ERMONGROUP, 35.7),
    "celeba": Published(ERMONGROUP | {"image_size": 64, "ch_mult": (1, 2, 2, 2, 4)}, 78.7),
    "bedroom, church, cat": Published(
        ERMONGROUP | {"image_size": 256, "ch_mult": (1, 1, 2, 2, 4, 4)}, 113.7
    ),
}


def _check_fits(converted: Converted, weights: dict[str, Tensor], published: Published) -> None:
    wanted = build_unet(converted.config, converted.patches, "published").unet.state_dict()
    assert {key: tensor.shape for key, tensor in wanted.items()} == {
        key: tensor.shape for key, tensor in converted.weights.items()
    }
    count = sum(tensor.numel() for tensor in weights.values())
    assert count == sum(tensor.numel() for tensor in wanted.values())
    if published.millions is not None:
        assert count / 1e6 == pytest.approx(published.millions, abs=0.5)
    assert converted.config["sample_size"] == published.flags["image_size"]


@pytest.mark.parametrize(
    ("by", "name"), [(by, name) for by, networks in NETWORKS.items() for name in networks]
)
def test_published_networks_need_no_flags(by: str, name: str) -> None:
    published = NETWORKS[by][name]
    flags = published.flags
    weights = reference_openai.names_and_shapes(flags)
    converted = openai.convert(weights, Flags(name, {}, {}))
    _check_fits(converted, weights, published)
    assert f"that {by} published: " in converted.notes[0]

    told = {
        key: str(flags[key])
        for key in (
            *("image_size", "num_heads", "num_head_channels", "use_new_attention_order"),
            *("noise_schedule", "diffusion_steps", "rescale_timesteps"),
        )
    }
    said = openai.convert(weights, Flags(name, told, {}))  # as its README names them
    assert said.config == converted.config
    assert said.patches == converted.patches
    assert said.diffusion.prediction == converted.diffusion.prediction == "eps"
    assert said.diffusion.schedule.settings == converted.diffusion.schedule.settings
    assert converted.diffusion.schedule.settings["kind"] == flags["noise_schedule"]
    assert converted.diffusion.schedule.num_train_timesteps == flags["diffusion_steps"]


@pytest.mark.parametrize("name", HO)
def test_the_published_networks_of_ho_et_al_need_no_config(name: str) -> None:
    published = HO[name]
    weights = reference_ermongroup.names_and_shapes(published.flags)
    converted = ermongroup.convert(weights, Flags("model.ckpt", {}, {}))
    _check_fits(converted, weights, published)
    assert converted.diffusion.schedule.settings == {
        "kind": "linear",
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
    }


def test_a_network_of_another_kind_is_not_taken_for_a_published_one() -> None:
    for changed in (
        {"learn_sigma": False},  # the README's baseline, trained with another schedule
        {"num_res_blocks": 2},
        {"attention_resolutions": "32,16,8"},
        {"num_channels": 192, "class_cond": True, "num_classes": 10},
        {"use_scale_shift_norm": False},
        {"in_channels": 1},
    ):
        weights = reference_openai.names_and_shapes(IMPROVED | changed)
        with pytest.raises(RequestError, match="do not show image_size, num_heads"):
            openai.convert(weights, Flags("model.pt", {}, {}))


def test_what_is_said_counts_more_than_what_is_published() -> None:
    weights = reference_openai.names_and_shapes(IMPROVED)
    told = {"noise_schedule": "linear", "num_heads": "8"}
    converted = openai.convert(weights, Flags("model.pt", told, {}, size=(128, 64)))
    assert converted.config["sample_size"] == (128, 64)
    assert converted.diffusion.schedule.settings["kind"] == "linear"
    assert converted.patches.heads == 8
    assert converted.patches.timestep_scale == 0.25
    assert "num_heads" not in converted.notes[0]
