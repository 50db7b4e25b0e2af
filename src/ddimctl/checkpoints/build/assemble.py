"""From a built network, its weights and what is known of them to a Checkpoint: for all families."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from ddimctl.checkpoints.build.network import Built, compute_buffers
from ddimctl.checkpoints.build.scheduler_config import Diffusion
from ddimctl.checkpoints.build.weights import assign_weights, check_finite
from ddimctl.checkpoints.identify import SUPPORTED
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.sidecar import Sidecar
from ddimctl.errors import CheckpointError

_LARGEST_SIDE: Final = 65_536


@dataclass(frozen=True)
class Options:
    """What load_checkpoint was asked for, beside the checkpoint itself; the fields as there."""

    variant: str | None = None
    weights: str = "auto"
    flags: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    allow_nonfinite: bool = False
    device: torch.device = torch.device("cpu")  # noqa: RUF009, immutable
    dtype: torch.dtype = torch.float32


def check_wanted(wanted: str, known: str, name: str) -> None:
    """Raise CheckpointError unless the weights that are there are those wanted ("auto": any)."""
    if wanted in ("auto", known):
        return
    cause = "does not say which weights it has"
    if known != "unknown":
        cause = f"has {known} weights only"
    raise CheckpointError(f"{name} {cause}.", "Leave --weights at auto.")


def fill(
    built: Built,
    weights: Mapping[str, Tensor],
    options: Options,
    name: str,
    remedy: str,
    source_name: Callable[[str], str] = str,
) -> None:
    """Put weights into the network, strictly, and the network on the device.

    remedy: what to do where they do not fit. source_name: from a weight's name to that in the user's
    file. Raises CheckpointError, also for weights that are not finite, unless the options take them.
    """
    assign_weights(built.unet, weights, options.device, options.dtype, name, remedy, source_name)
    if not options.allow_nonfinite:
        check_finite({source_name(key): tensor for key, tensor in weights.items()}, name)
    compute_buffers(built.unet)
    built.unet.to(options.device).eval()


def assemble(
    built: Built, diffusion: Diffusion, sidecar: Sidecar, provenance: Provenance, where: str
) -> Checkpoint:
    """The Checkpoint of a network with its weights.

    where: the origin of its settings, for messages. Raises CheckpointError where it is none of an
    image diffusion, or its settings contradict each other.
    """
    config = built.config
    taken, given = config.in_channels, config.out_channels
    if given not in (taken, 2 * taken):
        raise CheckpointError(
            f"{where}: {taken} channels in and {given} out, which is no unconditional image model.",
            SUPPORTED,
        )
    num_classes, null_class = _classes(config, sidecar, where)
    return Checkpoint(
        unet=built.unet,
        schedule=diffusion.schedule,
        prediction=diffusion.prediction,
        learned_variance=given == 2 * taken,
        sample_shape=(taken, *_size(config.sample_size, where)),
        size_divisor=2 ** (len(config.block_out_channels) - 1),
        provenance=provenance,
        num_classes=num_classes,
        null_class=null_class,
        class_names=sidecar.class_names,
        background=sidecar.background,
        ignored=diffusion.ignored,
        patches=sidecar.patches,
    )


def _size(sample_size: Any, where: str) -> tuple[int, int]:
    pair = [sample_size] * 2 if isinstance(sample_size, int) else sample_size
    if not (
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and all(type(side) is int and 0 < side <= _LARGEST_SIDE for side in pair)
    ):
        raise CheckpointError(
            f"{where}: sample_size is {sample_size!r}.",
            'Put the height and width of the training images there, such as "sample_size": 32.',
        )
    return pair[0], pair[1]


def _classes(config: Any, sidecar: Sidecar, where: str) -> tuple[int | None, int | None]:
    """(num_classes, null_class), checked against the rows of the class embedding."""
    rows = config.num_class_embeds
    if rows is None and config.class_embed_type is None:
        if sidecar.num_classes is not None:
            raise CheckpointError(
                f"{where} has no class embedding, but ddimctl.json names classes."
            )
        return None, None
    count = sidecar.num_classes or rows
    if count is None:
        raise CheckpointError(
            f"{where} does not say how many classes there are.",
            'Put "num_classes" into a ddimctl.json beside it.',
        )
    if rows is not None and max(count - 1, sidecar.null_class or 0) >= rows:
        raise CheckpointError(
            f"{where} has {rows} class embeddings, ddimctl.json {count} classes "
            f"and the null class {sidecar.null_class}."
        )
    return count, sidecar.null_class
