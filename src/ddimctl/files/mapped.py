"""Tensors that live in a file while a run fills them, so that they take no memory and outlive it."""

import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddimctl.files.atomic import storage_errors


def mapped_tensor(path: Path, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that shares its numbers with a file, made of zeros if it is not there.

    The file is under its final name while it is filled: name it as a dotfile, and write what is
    for the user from it. Raises StorageError.
    """
    size = math.prod(shape) * dtype.itemsize
    with storage_errors(path):
        path.touch()
        with path.open("r+b") as file:  # not "a": a disk that cannot reserve space is written to
            if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            elif path.stat().st_size < size:
                file.truncate(size)
            # not torch.from_file, which takes names in UTF-8 only
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(*shape)


def is_mapped(path: Path, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> bool:
    """Whether the file of such a tensor is there, whole."""
    try:
        return path.stat().st_size == math.prod(shape) * dtype.itemsize
    except FileNotFoundError:
        return False
