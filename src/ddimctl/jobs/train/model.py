"""The network that a training run begins with, and its schedule."""

from dataclasses import replace

import torch

from ddimctl.checkpoints import Checkpoint, Provenance, load_checkpoint
from ddimctl.checkpoints.build.architectures import architecture, make_unet
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.errors import RequestError
from ddimctl.files.dataset.datasets import Dataset
from ddimctl.jobs.train.data import seed_of
from ddimctl.jobs.train.request import TrainRequest


def model_to_train(request: TrainRequest, data: Dataset) -> Checkpoint:
    """A fresh network, or that of --init, for the images. Raises RequestError, CheckpointError."""
    if request.init is None:
        return _fresh(request, data)
    return _adapted(load_checkpoint(request.init), request, data)


def _fresh(request: TrainRequest, data: Dataset) -> Checkpoint:
    count, shape = len(data.class_names), data.sample_shape
    torch.manual_seed(seed_of(request.seed, -1))
    null_class = count if count and request.label_dropout > 0 else None
    embeds = count + (null_class is not None) if count else None
    config = architecture(request.model or "small", shape, embeds)
    return Checkpoint(
        unet=make_unet(config),
        schedule=make_schedule(request.schedule or "linear"),
        prediction=request.prediction or "eps",
        learned_variance=False,
        sample_shape=shape,
        size_divisor=2 ** (len(config["block_out_channels"]) - 1),
        provenance=Provenance(request.out.name, "diffusers", "ema"),
        num_classes=count or None,
        null_class=null_class,
        class_names=data.class_names,
        background=request.background,
    )


def _adapted(start: Checkpoint, request: TrainRequest, data: Dataset) -> Checkpoint:
    count, shape = len(data.class_names), data.sample_shape
    if start.learned_variance:
        raise RequestError("--init: checkpoints with a learned variance cannot be trained.")
    if start.sample_shape[0] != shape[0] or (start.num_classes or 0) != count:
        raise RequestError(
            f"--init has {start.sample_shape[0]} channels and {start.num_classes or 0} classes, "
            f"the data {shape[0]} and {count}.",
            "Match them with --channels and --class-conditional.",
        )
    if shape[1] % start.size_divisor or shape[2] % start.size_divisor:
        raise RequestError(
            f"--init does not take images of {shape[1]}x{shape[2]}.",
            f"Choose an --image-size divisible by {start.size_divisor}.",
        )
    size = shape[1] if shape[1] == shape[2] else list(shape[1:])
    start.unet.register_to_config(sample_size=size)  # type: ignore[operator]
    return replace(
        start,
        provenance=Provenance(request.out.name, "diffusers", "ema", notes=start.provenance.notes),
        schedule=make_schedule(request.schedule) if request.schedule else start.schedule,
        prediction=request.prediction or start.prediction,
        sample_shape=shape,
        class_names=data.class_names,
        background=request.background,
    )
