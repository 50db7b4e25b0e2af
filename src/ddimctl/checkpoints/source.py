"""Where a checkpoint's files come from: a folder or the hub, asked for by relative name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted import settings
from ddimctl.files.untrusted.guards import refusals
from ddimctl.files.untrusted.settings import JsonObject


@dataclass(frozen=True)
class Source:
    """A tree of files, each fetched when it is first asked for.

    name:     hub id, or the folder's own name.
    get:      "unet/config.json" -> a file on this machine, or None where the tree has none.
    revision: the hub's commit hash, or None.
    notes:    what the user should know about how the files were found.
    """

    name: str
    get: Callable[[str], Path | None]
    revision: str | None = None
    notes: tuple[str, ...] = ()


def folder_source(folder: Path) -> Source:
    """The files of a folder."""

    name = folder.resolve().name or "checkpoint"

    def get(relative: str) -> Path | None:
        path = folder / relative
        try:
            return path if path.is_file() else None
        except OSError as error:  # no permission, or a name that is too long
            raise CheckpointError(
                f"{name}/{relative:.100} cannot be read: {error.strerror}."
            ) from error

    return Source(name, get)


def read_json(source: Source, relative: str, *, infinite: bool = False) -> JsonObject | None:
    """The object in a JSON file, or None where there is no such file. infinite: as in parse_json.

    Raises CheckpointError for anything else than one JSON object.
    """
    path = source.get(relative)
    if path is None:
        return None
    with refusals(f"{source.name}/{relative}", CheckpointError):
        return settings.read_json(path, infinite=infinite)
