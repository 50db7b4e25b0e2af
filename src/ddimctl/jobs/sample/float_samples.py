"""The float samples of a run, and its latents, on disk while they are made: a long run has many."""

from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from ddimctl.checkpoints import Checkpoint
from ddimctl.files.atomic import storage_errors, sync_files
from ddimctl.files.latents import save_latents
from ddimctl.files.mapped import is_mapped, mapped_tensor
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.sample.outputs import OutputPaths
from ddimctl.jobs.sample.plan import Plan

_ROWS: Final = 64  # images whose x_T is drawn at once


class FloatSamples:
    """Images (N, C, H, W), float32, in files that appear when they are asked for; a resume needs them.

    With an autoencoder also the x_0 that they were decoded from.
    """

    def __init__(self, paths: OutputPaths, plan: Plan, checkpoint: Checkpoint) -> None:
        self._paths = paths
        self._shape = (plan.count, checkpoint.picture_shape[0], *plan.image_size)
        self._latent_shape = None if checkpoint.codec is None else (plan.count, *plan.shape)

    @cached_property
    def values(self) -> Tensor:
        """(N, C, H, W), zeros where there is none yet."""
        return mapped_tensor(self._paths.samples_part, self._shape)

    @cached_property
    def latents(self) -> Tensor | None:
        """(N, c, h, w), zeros where there is none yet; None without an autoencoder."""
        if self._latent_shape is None:
            return None
        return mapped_tensor(self._paths.x_0_part, self._latent_shape)

    @cached_property
    def done(self) -> Tensor:
        """(N,), uint8: 1 for each of them that is there."""
        return mapped_tensor(self._paths.samples_done, self._shape[:1], torch.uint8)

    @property
    def whole(self) -> bool:
        """Whether both files are there and of this run's size."""
        paths = self._paths
        return (
            is_mapped(paths.samples_part, self._shape)
            and is_mapped(paths.samples_done, self._shape[:1], torch.uint8)
            and (self._latent_shape is None or is_mapped(paths.x_0_part, self._latent_shape))
        )

    def make(self) -> None:
        """Make the files, before several processes use them."""
        _ = self.values, self.latents, self.done

    def keep(self, images: range, samples: Tensor, x_0: Tensor | None) -> None:
        """Store the samples (n, C, H, W) of some images, and the x_0 that they were decoded from."""
        rows = slice(images.start, images.stop)
        self.values[rows] = samples
        sync_files([self._paths.samples_part])
        if self.latents is not None and x_0 is not None:
            self.latents[rows] = x_0
            sync_files([self._paths.x_0_part])
        self.done[rows] = 1

    def has(self, i: int) -> bool:
        """Whether image i's is there."""
        return self._paths.samples_done.exists() and bool(self.done[i])


def write_latents(paths: OutputPaths, plan: Plan, metadata: JsonObject) -> None:
    """Draw every x_T of the plan into a file of its own, and save them from there."""
    part, count = paths.latents_part, plan.count
    x_T = mapped_tensor(part, (count, *plan.shape))
    for start in range(0, count, _ROWS):
        rows = range(start, min(start + _ROWS, count))
        x_T[rows.start : rows.stop] = plan.start(rows, torch.device("cpu"))
    save_latents(paths.of("latents"), x_T, metadata)
    with storage_errors(part):
        part.unlink()
