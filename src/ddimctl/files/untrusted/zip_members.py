"""The members of a stranger's zip archive, as PyTorch's own reader will find them."""

import struct
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

from ddimctl.errors import CheckpointError

_LARGEST_DIRECTORY: Final = 8 * 2**20  # bytes: names of about 80,000 members
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCAL: Final = struct.Struct("<26x2H")  # lengths of a local header's name and extra field
_ENCRYPTED: Final = 1
_ERRORS: Final = (
    *(zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError),
    *(ArithmeticError, struct.error, OSError),
)


class Member(NamedTuple):
    """Where a member's bytes are in the archive's file."""

    offset: int
    size: int


def zip_names(path: Path) -> list[str]:
    """The members' names; empty where the archive is damaged."""
    try:
        return [member.filename for member in _directory(path)]
    except _ERRORS:
        return []


def stored_members(path: Path, where: str) -> dict[str, Member]:
    """The members of an archive of torch.save, without the folder that all of them are in.

    Raises CheckpointError where the archive is damaged, or where programs could read it
    differently: members that are compressed, encrypted, named twice or overlapping.
    """
    try:
        directory = _directory(path)
        with path.open("rb") as file:
            offsets = []
            for member in directory:
                file.seek(member.header_offset)
                name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
                offsets.append(member.header_offset + _LOCAL.size + name + extra)
    except _ERRORS as error:
        raise CheckpointError(f"{where} is damaged: {error}.", "Get the file again.") from error
    for member in directory:
        why = _fault(member)
        if why:
            raise CheckpointError(
                f"{where}: {why}, which torch.save never does.", "Get the original file."
            )
    found = {
        member.filename: Member(offset, member.file_size)
        for member, offset in zip(directory, offsets, strict=True)
    }
    _check_layout(path, where, directory, found)
    return {name.partition("/")[2]: member for name, member in found.items()}


def _directory(path: Path) -> list[zipfile.ZipInfo]:
    """The archive's own list. A directory that would fill the memory is refused before it is read."""
    size = path.stat().st_size
    length = _LOCATOR.size + _END_64.size
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - length))
        tail = file.read()
    if len(tail) < _END.size:
        raise zipfile.BadZipFile("it is too short")
    signature, *_, claimed, _, comment = _END.unpack(tail[-_END.size :])
    if signature != b"PK\5\6" or comment:
        raise zipfile.BadZipFile("its end is missing")
    if len(tail) == _END.size + length and tail[_END_64.size :].startswith(b"PK\6\7"):
        claimed = _END_64.unpack(tail[: _END_64.size])[-2]
    if claimed > _LARGEST_DIRECTORY:
        raise zipfile.BadZipFile("it has too many members")
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _fault(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & _ENCRYPTED:
        return f"{member.filename} is encrypted"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return f"{member.filename} is compressed"
    if member.orig_filename != member.filename:
        return f"{member.filename} has an ambiguous name"
    return ""


def _check_layout(
    path: Path, where: str, directory: list[zipfile.ZipInfo], found: dict[str, Member]
) -> None:
    """One folder, each name once (PyTorch's reader ignores case), each byte in one member at most."""
    folders = {name.partition("/")[0] for name in found}
    names = {name.lower() for name in found}
    starts = sorted(member.header_offset for member in directory)
    ends = sorted(member.offset + member.size for member in found.values())
    nexts = [*starts[1:], path.stat().st_size]
    if (
        len(folders) > 1
        or len(names) < len(directory)
        or starts[:1] != [0]
        or any(end > following for end, following in zip(ends, nexts, strict=True))
    ):
        raise CheckpointError(
            f"{where} is damaged: members of the archive have one name, or share their bytes.",
            "Get the original file.",
        )
