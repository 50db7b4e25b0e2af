"""From a built network, its weights and what is known of them to a Checkpoint: for all families."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.network import Built, compute_buffers
from ddimctl.checkpoints.build.scheduler_config import Diffusion
from ddimctl.checkpoints.build.weights import assign_weights, check_finite
from ddimctl.checkpoints.codec import Codec
from ddimctl.checkpoints.conditioner import Conditioner
from ddimctl.checkpoints.identify import SUPPORTED
from ddimctl.checkpoints.lora import Lora
from ddimctl.checkpoints.model import Checkpoint, Provenance
from ddimctl.checkpoints.sidecar import Sidecar
from ddimctl.checkpoints.source import Source
from ddimctl.checkpoints.table import Table
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
    vae: Source | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def replaced(self) -> dict[str, str]:
        """As Provenance.parts."""
        parts = {} if self.vae is None else {"vae": self.vae.name}
        named = ", ".join(f"{lora.name}:{lora.weight:g}" for lora in self.loras)
        return parts | ({"lora": named} if named else {})

    def in_float32(self) -> "Options":
        """The same for an autoencoder, which works in float32 beside any network."""
        return replace(self, dtype=torch.float32)


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
    """Put weights into the network, strictly, in the options' type, and the network on their device.

    remedy: what to do where they do not fit. source_name: from a weight's name to that in the user's
    file. Raises CheckpointError, also for weights that are not finite, unless the options take them.
    """
    assign_weights(built.unet, weights, options.device, options.dtype, name, remedy, source_name)
    if not options.allow_nonfinite:
        check_finite({source_name(key): tensor for key, tensor in weights.items()}, name)
    compute_buffers(built.unet)
    built.unet.to(options.device).eval()


class Parts(NamedTuple):
    """What a latent checkpoint has beside its UNet; the fields as in Checkpoint."""

    codec: Codec | None = None
    conditioner: Conditioner | None = None
    table: Table | None = None


def assemble(
    built: Built,
    diffusion: Diffusion,
    sidecar: Sidecar,
    provenance: Provenance,
    where: str,
    parts: Parts | None = None,
) -> Checkpoint:
    """The Checkpoint of a network with its weights.

    where: the origin of its settings, for messages. parts: a table among them is that of a
    class-conditional network, whose last row is the null class. Raises CheckpointError where it is none of an
    image diffusion, or its settings contradict each other.
    """
    config = built.config
    taken, given = config.in_channels, config.out_channels
    if given not in (taken, 2 * taken):
        raise CheckpointError(
            f"{where}: {taken} channels in and {given} out, which is no unconditional image model.",
            SUPPORTED,
        )
    parts = parts or Parts()
    attends = parts.conditioner is not None or parts.table is not None
    check_parts(config, parts, where)
    num_classes, null_class = _classes(config, sidecar, where)
    table = parts.table
    if table is not None:
        table = table.near(next(built.unet.parameters()).device)
        num_classes = null_class = len(table) - 1
    return Checkpoint(
        unet=built.unet,
        schedule=diffusion.schedule,
        prediction=diffusion.prediction,
        learned_variance=given == 2 * taken,
        sample_shape=(taken, *_size(config.sample_size, where)),
        # a UNet2DConditionModel brings odd sizes up again by itself
        size_divisor=1 if attends else 2 ** (len(config.block_out_channels) - 1),
        provenance=provenance,
        num_classes=num_classes,
        null_class=null_class,
        class_names=sidecar.class_names,
        background=sidecar.background,
        ignored=diffusion.ignored,
        patches=sidecar.patches,
        codec=parts.codec,
        conditioner=parts.conditioner,
        table=table,
    )


def check_parts(config: Any, parts: Parts, where: str) -> None:
    """Raise CheckpointError unless the parts are those that a UNet of this config works with."""
    codec, conditioner = parts.codec, parts.conditioner
    if codec is not None and codec.latent_channels != config.in_channels:
        raise CheckpointError(
            f"{where}: the network works on {config.in_channels} channels, "
            f"the autoencoder on {codec.latent_channels}.",
            "Pass the autoencoder that belongs to it with --vae.",
        )
    width = getattr(config, "cross_attention_dim", None)
    found = None
    if conditioner is not None:
        found = sum(encoder.width for encoder in conditioner.encoders)
    elif parts.table is not None:
        found = parts.table.embeddings.shape[2]
    if found is not None and any(each != found for each in _each(width)):
        raise CheckpointError(
            f"{where}: the network attends to embeddings of {width} channels, "
            f"but its text encoders give {found}.",
            SUPPORTED,
        )
    if conditioner is not None and conditioner.pooled:
        wanted = config.projection_class_embeddings_input_dim
        given = conditioner.encoders[-1].pooled_width + 6 * (config.addition_time_embed_dim or 0)
        if wanted != given:
            raise CheckpointError(
                f"{where}: the network takes {wanted} added channels, but the pooled embedding "
                f"and the six sizes have {given}.",
                SUPPORTED,
            )


def _each(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list | tuple) else (value,)


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
