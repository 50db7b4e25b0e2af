"""What a checkpoint is, as plain values for `ddimctl info`."""

from typing import Any

from ddimctl.checkpoints import Checkpoint, load_checkpoint
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint_requests import InfoRequest
from ddimctl.jobs.events import Report, ignore
from ddimctl.jobs.requests import TEXT_GUIDANCE, CheckpointFileOptions, TrainedSize


def info(request: InfoRequest, report: Report = ignore) -> JsonObject:
    """What a checkpoint is. Raises CheckpointError and RequestError, as load_checkpoint does."""
    return describe(load_as_asked(request.ckpt, request.files, request.trained))


def load_as_asked(
    spec: str | None, files: CheckpointFileOptions, trained: TrainedSize
) -> Checkpoint:
    """The checkpoint that spec names, of the files chosen. Raises as load_checkpoint does."""
    return load_checkpoint(
        spec,
        revision=files.revision,
        variant=files.variant,
        weights=files.weights,
        size=trained.size,
        flags=dict(files.model_flags),
        allow_nonfinite=files.allow_nonfinite,
        vae=files.vae,
        lora=files.lora,
    )


def describe(checkpoint: Checkpoint) -> JsonObject:
    """JSON values, by topic; None where the checkpoint has no such thing."""
    provenance, schedule = checkpoint.provenance, checkpoint.schedule
    channels, height, width = checkpoint.picture_shape
    config: Any = checkpoint.unet.config
    has_classes = checkpoint.num_classes is not None
    return {
        "name": provenance.name,
        "family": provenance.family,
        "weights": provenance.weights,
        "revision": provenance.revision,
        "sha256": provenance.sha256,
        "parameters": checkpoint.parameters,
        "channels": channels,
        "height": height,
        "width": width,
        "size_divisor": checkpoint.picture_divisor,
        "prediction": checkpoint.prediction,
        "learned_variance": checkpoint.learned_variance,
        "schedule": {
            **{key: value for key, value in schedule.settings.items() if key != "betas"},
            "num_train_timesteps": schedule.num_train_timesteps,
            "alpha_bar_first": float(schedule.alpha_bar[0]),
            "alpha_bar_last": float(schedule.alpha_bar[-1]),
        },
        "classes": {
            "count": checkpoint.num_classes,
            "names": list(checkpoint.class_names),
            "null_class": checkpoint.null_class,
        }
        if has_classes
        else None,
        "background": None if checkpoint.background is None else list(checkpoint.background),
        "ignored": dict(checkpoint.ignored),
        "network": {
            "channels": list(config.block_out_channels),
            "blocks": config.layers_per_block,
            "attention": ["yes" if "Attn" in kind else "no" for kind in config.down_block_types],
            **checkpoint.patches.settings(),
        },
        **_latent_parts(checkpoint),
        "flags": dict(provenance.flags),
        "notes": list(provenance.notes),
    }


def _latent_parts(checkpoint: Checkpoint) -> JsonObject:
    """What latent and text checkpoints have besides; nothing for others."""
    parts: JsonObject = {}
    if (codec := checkpoint.codec) is not None:
        parts["autoencoder"] = {**codec.settings, "factor": codec.factor}
        parts["latent_size"] = list(checkpoint.sample_shape)
    if (conditioner := checkpoint.conditioner) is not None:
        parts["text_encoders"] = [type(encoder).__name__ for encoder in conditioner.encoders]
        parts["default_guidance"] = TEXT_GUIDANCE
    if checkpoint.provenance.parts:
        parts["parts"] = dict(checkpoint.provenance.parts)
    return parts
