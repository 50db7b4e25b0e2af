"""Curves and images for TensorBoard, which is an extra.

Its event files are the one output that is not atomic: they grow while somebody watches.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ddimctl.errors import RequestError
from ddimctl.files.atomic import storage_errors
from ddimctl.files.pictures.images import image_pixels, read_image


class EventLog:
    """An open log of one run. Use open_event_log, which closes it."""

    def __init__(self, folder: Path, writer: Any) -> None:
        self._folder, self._writer = folder, writer

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Points of curves, to be seen at once. Raises StorageError."""
        with storage_errors(self._folder):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def add_image(self, step: int, name: str, path: Path) -> None:
        """An image file of ours. Raises DataError, StorageError."""
        pixels = image_pixels(read_image(path, 3))
        with storage_errors(self._folder):
            self._writer.add_image(name, pixels, step, dataformats="HWC")
            self._writer.flush()


def check_event_log(folder: Path) -> None:
    """Raise RequestError where TensorBoard is not installed, or cannot write to such a name."""
    if find_spec("tensorboard") is None:
        raise RequestError(
            "--log tensorboard needs TensorBoard, which is not installed.",
            "pip install 'ddimctl[tensorboard]', or leave out --log: metrics.jsonl holds the same values.",
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            "--log tensorboard needs a folder name in UTF-8.", "Choose another --out."
        ) from error


@contextmanager
def open_event_log(folder: Path, step: int) -> Iterator[EventLog]:
    """A log in the folder; what earlier ones there have of this step and later is hidden."""
    check_event_log(folder)
    from torch.utils.tensorboard import SummaryWriter

    with storage_errors(folder):
        writer = SummaryWriter(str(folder), purge_step=step)
    try:
        yield EventLog(folder, writer)
    finally:
        with storage_errors(folder):
            writer.close()
