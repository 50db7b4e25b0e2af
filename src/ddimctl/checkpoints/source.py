"""Where a checkpoint's files come from: a folder or the hub, asked for by relative name."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_content

MAX_JSON_BYTES: Final = 8 * 2**20  # in memory twenty times as much


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


def read_json(source: Source, relative: str) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is no such file.

    Raises CheckpointError for anything else than one JSON object.
    """
    path = source.get(relative)
    if path is None:
        return None
    where = f"{source.name}/{relative}"
    check_content(path, where)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{where} is too large for a settings file.")
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where} is not valid JSON: {error}.", "Get the file again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} does not hold a JSON object.", "Get the file again.")
    return found
