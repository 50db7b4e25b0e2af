"""A checkpoint as the files of a diffusers folder."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save

from ddimctl.checkpoints.build.lucidrains_unet import CLASS_NAME, LucidrainsConfig
from ddimctl.checkpoints.build.scheduler_config import scheduler_config
from ddimctl.checkpoints.build.weights import STEM
from ddimctl.checkpoints.model import Checkpoint
from ddimctl.checkpoints.sidecar import NAME, Sidecar, sidecar_bytes
from ddimctl.errors import RequestError
from ddimctl.files.untrusted.settings import JsonObject


def checkpoint_files(
    checkpoint: Checkpoint,
    *,
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, bytes]:
    """Relative names and contents of a folder that load_checkpoint and diffusers' DDIMPipeline read (of
    a network that is a UNet2DModel; of any other, load_checkpoint alone).

    training: plain values about the run, for ddimctl.json. dtype: of the weights in the file. The
    same checkpoint gives the same bytes. Raises RequestError for a latent checkpoint, which has more
    parts than these files hold.
    """
    if checkpoint.codec is not None or checkpoint.conditioner is not None:
        raise RequestError(
            f"{checkpoint.provenance.name} works on latents, and only networks of pixels are saved.",
            "Use its own files.",
        )
    unet: Any = checkpoint.unet
    own = isinstance(unet.config, LucidrainsConfig)
    config = unet.config.settings() if own else json.loads(unet.to_json_string())
    version = {} if own else {"_diffusers_version": config["_diffusers_version"]}
    scheduler = scheduler_config(checkpoint.schedule, checkpoint.prediction) | version
    if checkpoint.learned_variance:
        scheduler |= {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}
    pipeline = scheduler["_class_name"].replace("Scheduler", "Pipeline")
    index = version | {
        "_class_name": pipeline,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["ddimctl", CLASS_NAME] if own else ["diffusers", "UNet2DModel"],
    }
    sidecar = Sidecar(
        class_names=checkpoint.class_names,
        num_classes=checkpoint.num_classes,
        null_class=checkpoint.null_class,
        background=checkpoint.background,
        weights=checkpoint.provenance.weights,
        patches=checkpoint.patches,
        training=training or {},
    )
    weights = {
        key: tensor.detach().to("cpu", dtype).contiguous()
        for key, tensor in unet.state_dict().items()
    }
    return {
        "model_index.json": _json(index),
        NAME: sidecar_bytes(sidecar),
        "scheduler/scheduler_config.json": _json(scheduler),
        "unet/config.json": _json(config),
        f"unet/{STEM}.safetensors": save(weights, metadata={"format": "pt"}),
    }


def _json(values: JsonObject) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
