"""What a file is, by its first bytes, and which kinds are refused by name."""

from pathlib import Path
from typing import Final

from ddimctl.files.untrusted.guards import Refused, check_regular
from ddimctl.files.untrusted.zip_members import zip_names

_HEAD: Final = 512
_LEGACY_TORCH: Final = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickled magic number of torch.save
)

_TORCH_TAR: Final = (b"storages\0", b"tensors\0", b"pickle\0")  # the first member's name
_HTML: Final = (b"<!doctype html", b"<html", b"<?xml")
_TF_TABLE: Final = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # ends the .index of a checkpoint

# (offset, bytes, kind): how files of other programs begin.
_MAGIC: Final = (
    (0, b"version https://git-lfs", "lfs"),
    (0, b"\x1f\x8b", "compressed"),
    (0, b"BZh", "compressed"),
    (0, b"\xfd7zXZ\x00", "compressed"),
    (0, b"\x28\xb5\x2f\xfd", "compressed"),
    (0, b"7z\xbc\xaf\x27\x1c", "archive"),
    (0, b"Rar!\x1a\x07", "archive"),
    (257, b"ustar", "tar"),
    (0, b"\x89PNG\r\n", "image"),
    (0, b"\xff\xd8\xff", "image"),
    (0, b"GIF8", "image"),
    (8, b"WEBP", "image"),
    (0, b"GGUF", "gguf"),
    (0, b"\x89HDF\r\n", "hdf5"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"\x08\x01\x12", "tensorflow"),  # saved_model.pb
    *((0, bytes([8, version, 18]), "onnx") for version in range(2, 20)),  # ir_version, producer
)

# kind: (what it is, what to do; "" where that depends on what the file was to be).
_REFUSED: Final = {
    "empty": ("empty", "Get the file again."),
    "lfs": (
        "a Git LFS pointer, not the file itself",
        "Run `git lfs pull` in that clone, or download the file.",
    ),
    "html": ("a web page, not the file itself", "Download the file itself (its raw link)."),
    "compressed": ("compressed (gzip, bzip2, xz or zstd)", "Unpack it first."),
    "archive": ("a 7z or rar archive", "Unpack it, and pass the file that is in it."),
    "tar": ("a tar archive", "Unpack it, and pass the file that is in it."),
    "zip": ("a zip archive, not a file of torch.save", "Unpack it, and pass the file in it."),
    "old-torch": (
        "a file of PyTorch 0.1, whose format cannot be read safely",
        "Save it again with a newer PyTorch.",
    ),
    "torchscript": (
        "a TorchScript program, not plain tensors",
        "Save the state dict of the model: torch.save(model.state_dict(), …).",
    ),
    "image": ("an image", ""),
    "onnx": ("an ONNX model", ""),
    "tensorflow": ("a TensorFlow model", ""),
    "gguf": ("a GGUF file, of a language model or quantized weights", ""),
    "hdf5": ("an HDF5 file, as Keras writes it", ""),
    "numpy": ("a numpy array", ""),
}


def sniff(path: Path) -> str:
    """The kind of a file: torch, legacy, safetensors, pickle, a key of _REFUSED, unknown.

    Raises Refused for what is no regular file, and OSError.
    """
    check_regular(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if not head:
        return "empty"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= size - 8:  # first: any bytes can be a length
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(head, zip_names(path))
    if head.startswith(_LEGACY_TORCH):
        return "legacy"
    if head[257:262] == b"ustar" and head.startswith(_TORCH_TAR):
        return "old-torch"
    for offset, magic, kind in _MAGIC:
        if head.startswith(magic, offset):
            return kind
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML):
        return "html"
    if tail == _TF_TABLE:
        return "tensorflow"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "pickle"
    if head[8:10] == b'{"' and header < 2**32:
        return "safetensors"  # cut off within its header
    return "unknown"


def check_kind(kind: str, remedy: str = "") -> None:
    """Raise Refused for what a failed download leaves, and for files of other programs.

    kind: as sniff says. remedy: instead of the general one.
    """
    if kind in _REFUSED:
        what, general = _REFUSED[kind]
        raise Refused(f"is {what}.", remedy or general)


def _kind_of_zip(head: bytes, names: list[str]) -> str:
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside or b"/data.pkl" in head:  # the second: cut off
        return "torch"
    return "zip"
