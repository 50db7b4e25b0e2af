"""The flags of published networks of guided-diffusion's code, which their weights do not show.

From the READMEs of improved-diffusion, guided-diffusion, P2-weighting and DDPM-IP and the defaults
of their scripts.
"""

from typing import Any, Final, NamedTuple

from ddimctl.checkpoints.families.common import SIZE
from ddimctl.files.untrusted.settings import JsonObject

_GUIDED: Final = {
    "num_head_channels": 64,
    "use_new_attention_order": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "rescale_timesteps": False,
}
_IMPROVED: Final = {
    "num_heads": 4,
    "use_new_attention_order": False,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}
_DDPM_IP: Final = _GUIDED | {"noise_schedule": "cosine", "use_new_attention_order": True}


class Published(NamedTuple):
    """by: who published networks of this shape, in words.  flags: of their training."""

    by: str
    flags: JsonObject


def _of(by: str, networks: dict[tuple[Any, ...], JsonObject]) -> dict[Any, Published]:
    return {shape: Published(by, flags) for shape, flags in networks.items()}


# By what the weights show: channels, multipliers, blocks, levels with attention, class_cond, updown,
# scale and shift. All have RGB, learned variances and, where conditional, the 1000 classes of ImageNet.
_OPENAI: Final[dict[tuple[Any, ...], JsonObject]] = {
    (192, (1, 2, 3, 4), 3, (1, 2, 3), True, True, True): _GUIDED
    | {SIZE: 64, "noise_schedule": "cosine", "use_new_attention_order": True},
    (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), True, True, True): _GUIDED
    | {SIZE: 128, "num_heads": 4, "num_head_channels": -1},
    (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), True, True, True): _GUIDED | {SIZE: 256},
    (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), False, True, True): _GUIDED | {SIZE: 256},  # also LSUN
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6), True, True, True): _GUIDED | {SIZE: 512},
    (128, (1, 2, 3, 4), 3, (2, 3), False, False, True): _IMPROVED | {SIZE: 64},
    (192, (1, 2, 3, 4), 3, (2, 3), True, False, True): _IMPROVED
    | {SIZE: 64, "rescale_timesteps": False},
    (128, (1, 2, 2, 2), 3, (1, 2), False, False, True): _IMPROVED | {SIZE: 32},
    (128, (1, 1, 2, 2, 4, 4), 2, (4,), False, False, False): _IMPROVED
    | {
        SIZE: 256,
        "num_heads": 1,
        "noise_schedule": "linear",
        "diffusion_steps": 1000,
        "rescale_timesteps": False,
    },
}
# P2-weighting's FFHQ (ffhq_10m.pt), CelebA-HQ, AFHQ-Dogs, MetFaces, CUB and Flowers; ILVR and DPS use them.
_P2: Final[dict[tuple[Any, ...], JsonObject]] = {
    (128, (1, 1, 2, 2, 4, 4), 1, (4,), False, True, True): _GUIDED | {SIZE: 256},
}
# DDPM-IP's (ADM-IP and its baselines): CIFAR-10 and ImageNet, LSUN tower and CelebA, FFHQ.
_IP: Final[dict[tuple[Any, ...], JsonObject]] = {
    (128, (1, 2, 2, 2), 3, (1, 2), False, True, True): _DDPM_IP
    | {SIZE: 32, "num_head_channels": 32},
    (192, (1, 2, 3, 4), 3, (1, 2, 3), False, True, True): _DDPM_IP | {SIZE: 64},
    (256, (1, 1, 2, 3, 4), 3, (2, 3, 4), False, True, True): _DDPM_IP | {SIZE: 128},
}
PUBLISHED: Final = _of("OpenAI", _OPENAI) | _of("P2-weighting", _P2) | _of("DDPM-IP", _IP)
