"""What the weights of an OpenAI network show of its structure."""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from torch import Tensor

from ddimctl.checkpoints.families.common import Flags, side
from ddimctl.errors import CheckpointError

MARK: Final = "input_blocks.0.0.weight"


class Shape(NamedTuple):
    """What the weights show of the network; None where one level has no need of it."""

    num_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attention: tuple[int, ...]
    use_scale_shift_norm: bool
    resblock_updown: bool | None
    conv_resample: bool
    in_channels: int
    learn_sigma: bool
    num_classes: int | None

    @property
    def class_cond(self) -> bool:
        return self.num_classes is not None


def read_shape(weights: Mapping[str, Tensor], flags: Flags) -> Shape:
    """The network's structure. Raises CheckpointError where it is none that the scripts make."""
    inputs, outputs = _indices(weights, "input_blocks"), _indices(weights, "output_blocks")
    if not outputs:
        raise CheckpointError(
            f"{flags.file} is a classifier of guided-diffusion, not a diffusion network.",
            "Pass the diffusion network.",
        )

    def ends(leaf: str) -> list[int]:
        """The blocks on the way up that have such a module behind residual block and attention."""
        tails = [f"{k}.{leaf}.{kind}" for k in (1, 2) for kind in ("weight", "bias")]
        return [i for i in outputs if any(f"output_blocks.{i}.{tail}" in weights for tail in tails)]

    # what ends a level: a convolution, a residual block, or nothing with weights
    convs, blocks = ends("conv"), ends("in_layers.0")
    pooled = sorted(set(range(1, inputs[-1])) - set(inputs))
    levels = 1 + len(convs or blocks or pooled)
    each = len(outputs) // levels  # residual blocks of a level on the way up
    firsts = [1 + i * each for i in range(levels)]
    last = "out_layers.3.weight"
    widths = tuple(side(weights, f"input_blocks.{i}.0.{last}", 0, flags) for i in firsts)
    taken, given = side(weights, MARK, 1, flags), side(weights, "out.2.weight", 0, flags)
    if taken == 6 or given < taken:
        raise CheckpointError(
            f"{flags.file} is an upsampler, which needs a small image as input.",
            "Pass a network that generates images from noise alone.",
        )
    first = side(weights, "input_blocks.1.0.emb_layers.1.weight", 0, flags)
    conditional = "label_emb.weight" in weights
    return Shape(
        num_channels=side(weights, "time_embed.0.weight", 1, flags),
        widths=widths,
        num_res_blocks=each - 1,
        attention=tuple(
            n
            for n, i in enumerate(firsts)
            if any(f"input_blocks.{i}.1.{leaf}.weight" in weights for leaf in ("qkv", "proj_in"))
        ),
        use_scale_shift_norm=first == 2 * widths[0],
        resblock_updown=bool(blocks) if levels > 1 else None,
        conv_resample=not pooled,
        in_channels=taken,
        learn_sigma=given == 2 * taken,
        num_classes=side(weights, "label_emb.weight", 0, flags) if conditional else None,
    )


def _indices(weights: Mapping[str, Tensor], part: str) -> list[int]:
    found = {match[1] for key in weights if (match := re.match(rf"{part}\.(\d{{1,3}})\.", key))}
    return sorted(map(int, found))
