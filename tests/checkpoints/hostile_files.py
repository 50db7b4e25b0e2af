"""Weight files that are broken on purpose, each with a pattern of what is said about it."""

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from pickle_parts import (
    OS,
    TENSOR,
    call,
    group,
    look_up,
    mapping,
    number,
    program,
    state_dict,
    storage,
    tensor,
    text,
    write_legacy,
    write_zip,
)

from peak import forget_peak, peak

FOUR: Final = bytes(16)  # four float32
BIG: Final = 10**12
ORDERED: Final = call(("collections", "OrderedDict"))


def payload(canary: Path) -> bytes:
    """Creates the canary when it is unpickled without care."""
    return call(OS, text(f"touch '{canary}'"))


def _by_stack(canary: Path) -> bytes:
    """Protocol 4, with the module's name fetched from the memo: no text 'posix.system' in it."""
    module, name = (b"\x8c" + bytes([len(part)]) + part.encode() for part in OS)
    return (
        module + b"\x94" + b"0" + b"h\x00" + name + b"\x93" + text(f"touch '{canary}'") + b"\x85R"
    )


def _by_text(canary: Path) -> bytes:
    """Protocol 0."""
    return f"(dp0\nVa\np1\ncposix\nsystem\np2\n(Vtouch '{canary}'\ntR.".encode()


# name: (writer, pattern). The writers get the path and the canary of the payload.
CALLING: Final[dict[str, tuple[Callable[[Path, Path], object], str]]] = {
    "zip": (
        lambda path, canary: write_zip(path, program(mapping(a=payload(canary)))),
        r"would call posix\.system",
    ),
    "zip-without-slash": (
        lambda path, canary: write_zip(path, program(group(state_dict(), payload(canary))), FOUR),
        r"would call posix\.system",
    ),
    "zip-eval": (
        lambda path, canary: write_zip(
            path, program(call(("__builtin__", "eval"), text(f"open({str(canary)!r}, 'w')")))
        ),
        r"would call builtins\.eval",
    ),
    "zip-stack-global": (
        lambda path, canary: write_zip(path, program(_by_stack(canary), 4)),
        r"would call posix\.system",
    ),
    "zip-protocol-0": (
        lambda path, canary: write_zip(path, _by_text(canary)),
        r"would call posix\.system",
    ),
    "zip-inst": (
        lambda path, canary: write_zip(
            path, program(b"(" + text(f"touch '{canary}'") + b"iposix\nsystem\n")
        ),
        r"would call posix\.system",
    ),
    "legacy": (
        lambda path, canary: write_legacy(path, program(mapping(a=payload(canary)))),
        r"would call posix\.system",
    ),
    "legacy-in-system-info": (
        lambda path, canary: write_legacy(
            path, program(state_dict(legacy=True)), FOUR, info=program(payload(canary))
        ),
        r"would call posix\.system",
    ),
    "legacy-in-keys": (
        lambda path, canary: write_legacy(
            path, program(state_dict(legacy=True)), FOUR, keys=program(payload(canary))
        ),
        r"would call posix\.system",
    ),
    "bare-pickle": (
        lambda path, canary: path.write_bytes(program(payload(canary))),
        r"would call posix\.system",
    ),
}


def _pickled(body: bytes, *storages: bytes) -> Callable[[Path], object]:
    return lambda path: write_zip(path, program(body), *storages)


def _saved(value: Any, **options: Any) -> Callable[[Path], object]:
    return lambda path: torch.save(value, path, **options)


class _Subclass(torch.Tensor):
    pass


class _Harmless:
    pass


def _hooked() -> bytes:
    """A tensor with a hook that is called in the backward pass."""
    hooks = ORDERED + b"(" + number(1) + b"Nu"
    parts = [storage(4), number(0), group(number(4)), group(number(1)), b"\x89", hooks]
    return call(TENSOR, *parts)


def _laughs() -> bytes:
    """Thirty lists, each of which holds the one before it ten times."""
    body = b"]" + b"q\x00"
    for level in range(30):
        body += b"](" + bytes([*b"h", level]) * 10 + b"e" + bytes([*b"q", level + 1])
    return body


def _patched(path: Path, signature: bytes, at: int, form: str, *values: int) -> None:
    """Overwrite a field of each zip header that starts with the signature."""
    data = bytearray(path.read_bytes())
    start = data.find(signature)
    while start >= 0:
        struct.pack_into(form, data, start + at, *values)
        start = data.find(signature, start + 1)
    path.write_bytes(data)


def _flipped(path: Path) -> None:
    """One bit of a number, which only the archive's checksum tells."""
    write_zip(path, program(state_dict()), b"\x00\x00\x80\x3f" * 4)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x80\x3f", b"\x80\x3e", 1))


def _renamed(path: Path) -> None:
    """A member's name in capitals, which PyTorch's reader finds and a careless scan does not."""
    write_zip(path, program(_unfolding()))
    path.write_bytes(path.read_bytes().replace(b"archive/data.pkl", b"archive/DATA.PKL"))


def _unfolding(rounds: int = 21) -> bytes:
    """A text of 1 KB, written in hexadecimal over and over: 2 GB."""
    encode, spell = look_up("_codecs", "encode"), text("hex") + b"\x86R"
    return encode * (rounds + 1) + text("a" * 1024) + text("utf-8") + b"\x86R" + spell * rounds


def _with_zip_behind(path: Path) -> None:
    write_legacy(path, program(call(("__builtin__", "bytearray"), number(2**32))))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", "y")


def _encrypted(path: Path) -> None:
    write_zip(path, program(state_dict()), FOUR)
    _patched(path, b"PK\1\2", 8, "<H", 1)
    _patched(path, b"PK\3\4", 6, "<H", 1)


def _overlapping(path: Path) -> None:
    write_zip(path, program(state_dict()), FOUR)
    _patched(path, b"PK\1\2", 42, "<L", 0)


def _crowded(path: Path) -> None:
    write_zip(path, program(state_dict()), FOUR)
    _patched(path, b"PK\5\6", 12, "<L", 2**30)


def _repeated(second: str) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        write_zip(path, program(state_dict()), FOUR)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(second, program(mapping()))

    return write


def _commented(path: Path) -> None:
    write_zip(path, program(state_dict()), FOUR)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"x" * 100


def _cut(write: Callable[[Path], object], keep: int) -> Callable[[Path], object]:
    def cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[:keep])

    return cut


def _legacy(body: bytes, *storages: bytes, **changes: Any) -> Callable[[Path], object]:
    return lambda path: write_legacy(path, program(body), *storages, **changes)


def header(text: bytes, data: bytes = FOUR, length: int | None = None) -> Callable[[Path], object]:
    size = len(text) if length is None else length
    return lambda path: path.write_bytes(size.to_bytes(8, "little") + text + data)


def _entry(kind: Any = "F32", shape: Any = (4,), place: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": place}


def _entries(*entries: dict[str, Any], data: bytes = FOUR) -> Callable[[Path], object]:
    names = {f"w{index}": entry for index, entry in enumerate(entries)}
    return header(json.dumps(names).encode(), data)


BROKEN: Final[dict[str, tuple[Callable[[Path], object], str]]] = {
    # what is called without executing a program
    "bytearray": (
        _pickled(call(("__builtin__", "bytearray"), number(BIG))),
        r"builtins\.bytearray",
    ),
    "tensor-class": (_pickled(call(("torch", "FloatTensor"), number(BIG))), r"torch\.FloatTensor"),
    "tensor-of-a-size": (
        _pickled(mapping(latents=call(("torch", "Tensor"), *map(number, (1, 1, 20_000, 30_000))))),
        r"would call torch\.Tensor",
    ),
    "unfolding": (_pickled(_unfolding()), "bytes are encoded"),
    "object": (_saved({"a": _Harmless()}), r"would call copy_reg\._reconstructor|_Harmless"),
    "numpy-array": (
        _pickled(look_up("numpy.core.multiarray", "_reconstruct")),
        r"would call numpy\.core\.multiarray\._reconstruct",
    ),
    "long-name": (_pickled(look_up("x" * 3000, "\x1b[2J")), r"would call 'x{90,100}'"),
    # sizes
    "storage-larger-than-member": (_pickled(state_dict(BIG), FOUR), "recorded size"),
    "storage-smaller-than-member": (_pickled(state_dict(2), FOUR), "recorded size"),
    "storage-missing": (_pickled(state_dict()), "recorded size"),
    "storage-of-two-types": (
        _pickled(group(storage(4), storage(4, kind="IntStorage")), FOUR),
        "described twice",
    ),
    "storage-negative": (
        _pickled(mapping(a=storage(-4)), FOUR),
        "not in the form of torch.save|has no description",
    ),
    "storage-alone": (_pickled(mapping(a=storage(4)), FOUR), "Storage"),
    "expanded": (_pickled(tensor(4, (10**6, 10**6), (0, 0)), FOUR), "larger than its storage"),
    "beyond-its-storage": (_pickled(tensor(4, (2, 2), (3, 1)), FOUR), "larger than its storage"),
    "offset": (_pickled(tensor(4, (4,), (1,), 1), FOUR), "larger than its storage"),
    "negative-size": (
        _pickled(tensor(4, (-4,), (1,)), FOUR),
        "not in the form of torch.save|has no description",
    ),
    "negative-stride": (
        _pickled(tensor(4, (4,), (-1,)), FOUR),
        "not in the form of torch.save|has no description",
    ),
    "overflowing-size": (
        _pickled(tensor(4, (2**63, 2), (1, 1)), FOUR),
        "not in the form of torch.save|has no description",
    ),
    "dimensions": (
        _pickled(tensor(4, (1,) * 1000, (1,) * 1000), FOUR),
        "not in the form of torch.save|has no description",
    ),
    "tensor-resized": (
        _pickled(
            tensor(4, (4,), (1,))
            + group(storage(4), number(0), group(number(BIG)), group(number(1)))
            + b"b",
            FOUR,
        ),
        "sets attributes",
    ),
    # unusual tensors
    "sparse": (_saved({"a": torch.eye(3).to_sparse()}), "a sparse tensor"),
    "nested": (
        _saved({"latents": torch.nested.nested_tensor([torch.ones(3, 8, 8)] * 2)}),
        "a nested tensor",
    ),
    "with-hooks": (_pickled(_hooked(), FOUR), "not in the form of torch.save|has no description"),
    "quantized": (
        lambda path: torch.save(
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), path
        ),
        "a quantized tensor",
    ),
    "meta": (_saved({"a": torch.ones(3, device="meta")}), "a tensor without values"),
    "subclass": (_saved({"a": torch.ones(3).as_subclass(_Subclass)}), "a class of its own"),
    # structure
    "deep-list": (_pickled(b"]" * 100_000 + b"a" * 99_999), "nested too deeply"),
    "deep-key": (_pickled(b"})" + b"\x85" * 100_000 + b"Ns"), "neither names nor numbers"),
    "cycle": (_pickled(b"}q\x00" + text("a") + b"h\x00s"), "nested too deeply"),
    "laughs": (_pickled(_laughs()), "nested too deeply"),
    "objects": (_pickled(b"(" + b"}" * 10**6 + b"t"), "too many objects"),
    "long-text": (_pickled(text("x" * (33 * 2**20))), "not an archive of tensors"),
    "colliding-keys": (
        _pickled(b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 60_000)) + b"u"),
        "neither names nor numbers",
    ),
    "colliding-memo": (
        _pickled(b"}" + b"".join(b"p%d\n" % (k * (2**61 - 1)) for k in range(1, 60_000))),
        "a number in it is invalid",
    ),
    "hidden-methods": (
        _pickled(ORDERED + mapping(items=b"N") + b"b"),
        "sets attributes",
    ),
    "starved": (_pickled(b"R"), "damaged"),
    "no-mark": (_pickled(b"t"), "damaged"),
    "no-memo": (_pickled(b"h\x07"), "damaged"),
    "no-text": (_pickled(b"X\x02\x00\x00\x00\xff\xfe"), "damaged"),
    "unknown-instruction": (_pickled(b"\xff"), "damaged"),
    "registered-extension": (_pickled(b"\x82\x01"), "damaged"),
    "no-stop": (lambda path: write_zip(path, b"\x80\x02}"), "ends too early"),
    "protocol-4": (_saved({"a": torch.ones(2)}, pickle_protocol=4), "pickle protocol 4"),
    # zip archives
    "deflated": (
        lambda path: write_zip(
            path, program(state_dict(2**23)), bytes(2**25), compression=zipfile.ZIP_DEFLATED
        ),
        "is compressed",
    ),
    "encrypted": (_encrypted, "is encrypted"),
    "overlapping": (_overlapping, "damaged"),
    "crowded": (_crowded, "too many members"),
    "named-twice": (_repeated("archive/data.pkl"), "share a name"),
    "named-twice-but-for-case": (_repeated("archive/DATA.pkl"), "share a name"),
    "two-folders": (_repeated("other/data.pkl"), "share a name"),
    "commented": (_commented, "its end is missing"),
    "prefixed": (
        lambda path: path.write_bytes(
            write_zip(path, program(state_dict()), FOUR).read_bytes()[:60] * 2
            + path.read_bytes()[60:]
        ),
        "damaged",
    ),
    "capitals": (_renamed, "is a zip archive"),
    "flipped-bit": (_flipped, "the checksum of"),
    "zip-cut": (_cut(_pickled(state_dict(), FOUR), 200), "damaged"),
    "bare": (lambda path: path.write_bytes(pickle.dumps([1], 2)), "a bare pickle"),
    # the old format
    "legacy-huge": (_legacy(state_dict(2**40, legacy=True), FOUR, count=2**40), "recorded size"),
    "legacy-other-count": (_legacy(state_dict(legacy=True), FOUR, count=3), "recorded size"),
    "legacy-cut": (_cut(_legacy(state_dict(legacy=True), FOUR), -9), "recorded size"),
    "legacy-cut-early": (_cut(_legacy(state_dict(legacy=True), FOUR), 60), "ends too early"),
    "legacy-unlisted": (
        _legacy(state_dict(legacy=True), FOUR, keys=pickle.dumps([], 2)),
        "list of tensors",
    ),
    "legacy-with-zip-behind": (_with_zip_behind, r"would call builtins\.bytearray"),
    "legacy-with-more-behind": (
        lambda path: path.write_bytes(
            write_legacy(path, program(state_dict(legacy=True)), FOUR).read_bytes() + b"PK"
        ),
        "extra bytes after",
    ),
    "legacy-expanded": (
        _legacy(tensor(4, (10**9,), (0,), legacy=True), FOUR),
        "larger than its storage",
    ),
    # safetensors
    "st-length": (header(b"{}", length=2**62), "damaged, or not a file of tensors"),
    "st-cut": (header(b'{"a": ', length=2**20), "ends within its header"),
    "st-long": (header(b"{" + b" " * 5 * 2**20 + b"}", b""), "bytes long"),
    "st-text": (header(b"{no json"), "not valid JSON"),
    "st-deep": (header(b'{"a":' + b"[" * 10**5), "nested too deeply"),
    "st-twice": (
        header(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [4], "data_offsets": [0, 16]}}'),
        "twice",
    ),
    "st-entry": (header(b'{"a": [1]}'), "not in the form of torch.save|has no description"),
    "st-type": (_entries(_entry(kind="F4")), "unknown type"),
    "st-type-list": (_entries(_entry(kind=[[]])), "unknown type"),
    "st-negative": (_entries(_entry(shape=(-4,))), "invalid shape"),
    "st-fraction": (_entries(_entry(shape=(4.0,))), "invalid shape"),
    "st-overflow": (_entries(_entry(shape=(2**33, 2**33))), "not match its shape"),
    "st-huge": (_entries(_entry(shape=(2**50, 0), place=(0, 0)), data=b""), "invalid shape"),
    "st-digits": (_entries(_entry(shape=(10**400,))), "more than 64 bits"),
    "st-nan": (_entries(_entry(shape=(float("nan"),))), "not finite"),
    "st-surrogate": (header(b'{"__metadata__": {"a": "\\ud800"}}', b""), "a lone surrogate"),
    "st-metadata": (header(b'{"__metadata__": {"a": [1]}}', b""), "header is not one"),
    "st-larger": (_entries(_entry(shape=(5,))), "not match its shape"),
    "st-place": (_entries(_entry(place=(0, 16, 16))), "invalid shape"),
    "st-overlap": (_entries(_entry(), _entry(shape=(2,), place=(8, 16))), "overlap"),
    "st-gap": (_entries(_entry(), _entry(place=(20, 36)), data=bytes(36)), "gaps"),
    "st-beyond": (_entries(_entry(shape=(400,), place=(0, 1600))), "end where the file"),
    "st-behind": (_entries(_entry(), data=bytes(17)), "end where the file"),
}


def read(path: Path) -> object:
    """As weights."""
    from ddimctl.checkpoints.build.weights import read_weights

    return read_weights([path], "folder")


def read_latents(path: Path) -> object:
    """As latents."""
    from ddimctl.files.latents import load_latents

    return load_latents(path)


def measure(folder: Path) -> None:
    """Read them all in both ways and print by how many MiB each raised the peak of memory, as JSON."""
    from ddimctl.errors import CheckpointError, DataError

    grown = {}
    torch.save({"a": torch.ones(3)}, plain := folder / "plain")
    read(plain)  # what is imported at the first reading is not to be counted
    plain.unlink()
    for path in sorted(folder.iterdir()):
        forget_peak()
        before = peak()
        for reader, error in ((read, CheckpointError), (read_latents, DataError)):
            try:
                reader(path)
            except error:
                grown[path.name] = peak() - before
    print(json.dumps(grown))
