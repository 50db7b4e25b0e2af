"""The members of an untrusted zip archive, as PyTorch's own reader will find them."""

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from ddimctl.errors import brief
from ddimctl.files.untrusted.guards import Refused, damaged, reason

_LARGEST_DIRECTORY: Final = 8 * 2**20  # bytes: names of about 80,000 members
_END: Final = struct.Struct("<4s4H2LH")
_LOCATOR: Final = struct.Struct("<4sLQL")
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCAL: Final = struct.Struct("<26x2H")  # lengths of a local header's name and extra field
_ENCRYPTED: Final = 1
_BLOCK: Final = 2**20
_ERRORS: Final = (
    *(zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError),
    *(ArithmeticError, struct.error, OSError),
)


class Member(NamedTuple):
    """Where a member's bytes are in the archive's file, and their CRC-32 as the archive has it."""

    offset: int
    size: int
    crc: int


def zip_names(path: Path) -> list[str]:
    """The members' names; empty where the archive is damaged."""
    try:
        return [member.filename for member in _directory(path, path.stat().st_size)]
    except _ERRORS:
        return []


def stored_members(path: Path, behind: int = 0) -> dict[str, Member]:
    """The members of an archive of torch.save, without the folder that all of them are in.

    behind: bytes of the file behind the archive. Raises Refused where the archive is damaged, or
    where programs could read it differently: members that are compressed, encrypted, named twice
    or overlapping.
    """
    end = path.stat().st_size - behind
    try:
        directory = _directory(path, end)
        with path.open("rb") as file:
            offsets = []
            for member in directory:
                file.seek(member.header_offset)
                name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
                offsets.append(member.header_offset + _LOCAL.size + name + extra)
    except _ERRORS as error:
        raise damaged(reason(error)) from error
    for member in directory:
        if why := _fault(member):
            raise Refused(
                f"is refused: {why}, unlike in files of torch.save.", "Get the original file."
            )
    found = {
        member.filename: Member(offset, member.file_size, member.CRC)
        for member, offset in zip(directory, offsets, strict=True)
    }
    _check_layout(end, directory, found)
    return {name.partition("/")[2]: member for name, member in found.items()}


def check_sums(path: Path, members: dict[str, Member]) -> None:
    """Raise Refused unless all members have the CRC-32 that the archive records, which torch.load
    does not check. A sum of 0 is none: torch.save can be told not to compute them.
    """
    with path.open("rb") as file:
        for name, member in members.items():
            file.seek(member.offset)
            crc, left = 0, member.size
            while left and (block := file.read(min(left, _BLOCK))):
                crc, left = zlib.crc32(block, crc), left - len(block)
            if member.crc and crc != member.crc:
                raise damaged(f"the checksum of {brief(name)} is wrong")


def _directory(path: Path, end: int) -> list[zipfile.ZipInfo]:
    """The list of members of the archive that ends there. One that would fill the memory is refused
    before it is read."""
    length = _LOCATOR.size + _END_64.size
    with path.open("rb") as file:
        file.seek(max(0, end - _END.size - length))
        tail = file.read(min(end, _END.size + length))
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
    name = brief(member.filename)
    if member.flag_bits & _ENCRYPTED:
        return f"{name} is encrypted"
    if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
        return f"{name} is compressed"
    if member.orig_filename != member.filename:
        return f"{name} has an ambiguous name"
    return ""


def _check_layout(end: int, directory: list[zipfile.ZipInfo], found: dict[str, Member]) -> None:
    """One folder, each name once (PyTorch's reader ignores case), each byte in one member at most."""
    folders = {name.partition("/")[0] for name in found}
    names = {name.lower() for name in found}
    starts = sorted(member.header_offset for member in directory)
    ends = sorted(member.offset + member.size for member in found.values())
    if (
        len(folders) > 1
        or len(names) < len(directory)
        or starts[:1] != [0]
        or any(last > following for last, following in zip(ends, [*starts[1:], end], strict=True))
    ):
        raise Refused(
            "is damaged: members of the archive share a name or bytes.",
            "Get the original file.",
        )
