"""What a file of a stranger is, by its first bytes, and which kinds are refused by name."""

import stat
from pathlib import Path
from typing import Final

from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.zip_members import zip_names

SUPPORTED: Final = (
    "Pass a diffusers folder of a UNet2DModel, a file of ermongroup/ddim or OpenAI, "
    "or a hub id such as google/ddpm-cifar10-32."
)

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
    (0, b"\x89PNG\r\n", "picture"),
    (0, b"\xff\xd8\xff", "picture"),
    (0, b"GIF8", "picture"),
    (8, b"WEBP", "picture"),
    (0, b"GGUF", "gguf"),
    (0, b"\x89HDF\r\n", "hdf5"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"\x08\x01\x12", "tensorflow"),  # saved_model.pb
    *((0, bytes([8, version, 18]), "onnx") for version in range(2, 20)),  # ir_version, producer
)

# kind: (what it is, what to do).
_REFUSED: Final = {
    "empty": ("empty", "Get the file again."),
    "lfs": (
        "a git-LFS pointer, not the file itself",
        "Run `git lfs pull` in that clone, or pass the hub id.",
    ),
    "html": ("a web page, not a checkpoint", "Download the file itself (its raw link)."),
    "compressed": ("compressed (gzip, bzip2, xz or zstd)", "Unpack it first."),
    "archive": ("a 7z or rar archive", "Unpack it, and pass the checkpoint that is in it."),
    "tar": ("a tar archive", "Unpack it, and pass the checkpoint that is in it."),
    "zip": (
        "a zip archive, not a checkpoint",
        "Where a checkpoint is in it, unpack it and pass that.",
    ),
    "old-torch": (
        "a file of PyTorch 0.1, whose format cannot be read safely",
        "Save it again with a newer PyTorch.",
    ),
    "torchscript": (
        "a TorchScript program, not weights",
        "Save the state dict of the model: torch.save(model.state_dict(), …).",
    ),
    "picture": ("a picture, not a checkpoint", "--ckpt takes the model; pictures go elsewhere."),
    "onnx": ("an ONNX model", "Pass the PyTorch weights that it was made from."),
    "tensorflow": ("a TensorFlow model", "Pass a version of it for diffusers, or for PyTorch."),
    "gguf": ("a GGUF file, of a language model or quantized weights", SUPPORTED),
    "hdf5": ("an HDF5 file, as Keras writes it", "Pass a version of it for PyTorch."),
    "numpy": ("a numpy array, not a checkpoint", SUPPORTED),
}


def sniff(path: Path) -> str:
    """The kind of a regular file: torch, legacy, safetensors, pickle, a key of _REFUSED, unknown."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD)
        file.seek(max(0, size - 8))
        tail = file.read()
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


def check_content(path: Path, where: str) -> str:
    """sniff(path): torch, legacy, safetensors, pickle or unknown. Raises CheckpointError for all
    other kinds: what a failed download leaves, and files of other programs.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            what = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise CheckpointError(f"{where} is {what}, not a file.", SUPPORTED)
        kind = sniff(path)
    except OSError as error:
        raise CheckpointError(f"{where} cannot be read: {error.strerror}.") from error
    if kind in _REFUSED:
        what, remedy = _REFUSED[kind]
        raise CheckpointError(f"{where} is {what}.", remedy)
    return kind


def _kind_of_zip(head: bytes, names: list[str]) -> str:
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside or b"/data.pkl" in head:  # the second: cut off
        return "torch"
    return "zip"
