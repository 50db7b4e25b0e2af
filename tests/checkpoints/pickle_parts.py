"""Pickles by hand, and the files around them, so that tests can write what torch.save never would."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

MAGIC = 0x1950A86A20F9469CFC6C
OS = ("posix", "system")
TENSOR = ("torch._utils", "_rebuild_tensor_v2")


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def look_up(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def group(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def call(name: tuple[str, str], *arguments: bytes) -> bytes:
    return look_up(*name) + group(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(numel: int, key: str = "0", kind: str = "FloatStorage", legacy: bool = False) -> bytes:
    parts = [text("storage"), look_up("torch", kind), text(key), text("cpu"), number(numel)]
    return group(*parts, *[b"N"] * legacy) + b"Q"


def tensor(
    numel: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    offset: int = 0,
    key: str = "0",
    legacy: bool = False,
) -> bytes:
    hooks = call(("collections", "OrderedDict"))
    sizes = [group(*map(number, values)) for values in (size, stride)]
    return call(TENSOR, storage(numel, key, legacy=legacy), number(offset), *sizes, b"\x89", hooks)


def state_dict(numel: int = 4, legacy: bool = False) -> bytes:
    return mapping(a=tensor(numel, (numel,), (1,), legacy=legacy))


def write_zip(path: Path, pickled: bytes, *storages: bytes, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def write_legacy(
    path: Path,
    pickled: bytes,
    *storages: bytes,
    info: bytes | None = None,
    keys: bytes | None = None,
    count: int | None = None,
) -> Path:
    """info, keys: instead of those pickles. count: what each storage says of its length."""
    file = io.BytesIO()
    pickle.dump(MAGIC, file, protocol=2)
    pickle.dump(1001, file, protocol=2)
    file.write(info or program(mapping(little_endian=b"\x88")))
    file.write(pickled)
    names = [str(key) for key in range(len(storages))]
    file.write(pickle.dumps(names, protocol=2) if keys is None else keys)
    for data in storages:
        file.write(struct.pack("<q", len(data) // 4 if count is None else count) + data)
    path.write_bytes(file.getvalue())
    return path
