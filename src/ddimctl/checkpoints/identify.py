"""What a file is, by its content, and by name what cannot be run."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from ddimctl.checkpoints.zip_members import stored_members, zip_names
from ddimctl.errors import CheckpointError

SUPPORTED: Final = (
    "Pass a diffusers folder of a UNet2DModel, a file of ermongroup/ddim or OpenAI, "
    "or a hub id such as google/ddpm-cifar10-32."
)

_EXCERPT: Final = 4 * 2**20
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

# Names of weights or of pickled classes that tell a family, the most specific first.
_MARKS: Final = (
    (
        b"_reconstruct_persistent_obj",
        "an EDM or StyleGAN pickle (NVlabs), which runs code when read",
    ),
    (b"model.diffusion_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"first_stage_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"double_blocks.", "a Flux transformer"),
    (b"joint_blocks.", "a Stable Diffusion 3 transformer"),
    (b"attn2.to_k.", "a UNet that takes text embeddings (Stable Diffusion and its kin)"),
    (b"adaLN_modulation.", "a diffusion transformer (DiT or its kin)"),
    (b"down_blocks.0.resnets.0.", "the weights of a diffusers UNet without their config.json"),
)

_PARTS: Final = (
    ("text_encoder", "it works from text"),
    ("tokenizer", "it works from text"),
    ("bert", "it works from text"),
    ("prior", "it works on embeddings"),
    ("transformer", "its network is a transformer, not a UNet"),
    ("vae", "it works on the latents of an autoencoder"),
    ("vqvae", "it works on the latents of an autoencoder"),
    ("movq", "it works on the latents of an autoencoder"),
)

_SCHEDULERS: Final = {
    "CMStochasticIterativeScheduler": "it is a consistency model",
    "ScoreSdeVeScheduler": "it is a variance-exploding score model",
    "ScoreSdeVpScheduler": "it is a score model of continuous time",
    "KarrasVeScheduler": "it is a variance-exploding score model",
    "VQDiffusionScheduler": "it works on discrete tokens",
    "FlowMatch": "it is a flow-matching model",
    "EDM": "it is an EDM model, of continuous noise levels",
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


def refuse_foreign(path: Path, kind: str) -> None:
    """Raise CheckpointError for a file that is no weight file, or one of a network of another kind.

    kind: as sniff says.
    """
    if kind not in ("torch", "legacy", "safetensors") or _mark(path, kind):
        refuse_file(path)


def _mark(path: Path, kind: str) -> str:
    excerpt = _excerpt(path, kind)
    return next((what for mark, what in _MARKS if mark in excerpt), "")


def refuse_file(path: Path) -> NoReturn:
    """Say what a single file is, and that it cannot be run."""
    kind = check_content(path, path.name)
    what = _mark(path, kind)
    if not what:
        what = {
            "torch": "a torch.save file of a kind that is not supported yet",
            "legacy": "an old torch.save file of a kind that is not supported yet",
            "pickle": "a bare pickle, which would run code when read",
            "safetensors": "a safetensors file of a kind that is not supported yet",
        }.get(kind, "not a checkpoint of any kind that is known here")
    remedy = SUPPORTED
    if (path.parent / "config.json").is_file():
        remedy = f"Pass the folder that holds it: {path.parent}"
        what = what.removesuffix(" without their config.json")
    raise CheckpointError(f"{path.name} is {what}.", remedy)


def refuse_pipeline(name: str, index: dict[str, Any]) -> None:
    """Raise CheckpointError unless model_index.json describes a plain UNet2DModel pipeline."""
    kind = str(index.get("_class_name", "a pipeline"))
    for part, why in _PARTS:
        if _class_of(index, part) or _class_of(index, f"{part}_2"):
            _refuse(name, kind, why)
    scheduler = _class_of(index, "scheduler")
    if why := scheduler_refusal(scheduler):
        _refuse(name, kind, why)
    unet = _class_of(index, "unet")
    if unet not in ("", "UNet2DModel"):
        _refuse(name, kind, f"its network is a {unet}")
    if not unet:
        _refuse(name, kind, "it has no UNet")


def refuse_parts(name: str, has: Callable[[str], bool]) -> None:
    """The same for a folder without model_index.json; has: relative name -> whether it is there."""
    for part, why in _PARTS:
        if has(f"{part}/config.json"):
            _refuse(name, "a pipeline", why)


def refuse_network(where: str, config: dict[str, Any]) -> None:
    """Raise CheckpointError unless config.json describes a UNet2DModel of an image diffusion."""
    kind = config.get("_class_name")
    if kind is None and "down_block_types" not in config:  # transformers' configs, and strangers'
        names = config.get("architectures")
        kind = names[0] if isinstance(names, list) and names else config.get("model_type")
        kind = kind or "an unknown model"
    if kind == "UNet2DConditionModel":
        _refuse(where, kind, "it takes text embeddings (Stable Diffusion and its kin)")
    if kind not in (None, "UNet2DModel"):
        _refuse(where, str(kind), "only UNet2DModel can be run")
    if config.get("time_embedding_type") == "fourier":
        _refuse(where, "a score network", "it is of the variance-exploding kind (NCSN++)")
    if config.get("class_embed_type") == "identity":
        _refuse(where, "a UNet2DModel", "it is conditioned on vectors, not on classes")


def scheduler_refusal(name: str) -> str:
    """Why networks of this diffusers scheduler class cannot be run; empty where they can."""
    return next((why for prefix, why in _SCHEDULERS.items() if name.startswith(prefix)), "")


def _refuse(name: str, kind: str, why: str) -> NoReturn:
    raise CheckpointError(f"{name} ({kind}) cannot be run: {why}.", SUPPORTED)


def _class_of(index: dict[str, Any], part: str) -> str:
    """The class in {"unet": ["diffusers", "UNet2DModel"]}; empty where the part is absent."""
    entry = index.get(part)
    if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
        return entry[1]
    return ""


def _kind_of_zip(head: bytes, names: list[str]) -> str:
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        return "torchscript"
    if "data.pkl" in inside or b"/data.pkl" in head:  # the second: cut off
        return "torch"
    return "zip"


def _excerpt(path: Path, kind: str) -> bytes:
    """The bytes that name the weights: a safetensors header, a pickle's beginning."""
    try:
        with path.open("rb") as file:
            if kind == "torch":
                file.seek(stored_members(path, path.name)["data.pkl"].offset)
            return file.read(_EXCERPT)
    except (CheckpointError, KeyError, OSError):
        return b""
