"""Which checkpoints cannot be run, by the names in their files, and what a single file is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from ddimctl.checkpoints.build.lucidrains_unet import CLASS_NAME as LUCIDRAINS
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_kind, sniff
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.zip_members import stored_members

SUPPORTED: Final = (
    "Pass a diffusers folder of a UNet2DModel, a file of ermongroup/ddim, OpenAI or lucidrains, "
    "or a hub id such as google/ddpm-cifar10-32."
)
# What to do with a file of this kind that was to be a checkpoint.
_REMEDIES: Final = {
    "image": "--ckpt takes the model; images go elsewhere.",
    "onnx": "Pass the PyTorch weights that it was made from.",
    "tensorflow": "Pass a version of it for diffusers, or for PyTorch.",
    "hdf5": "Pass a version of it for PyTorch.",
}
_EXCERPT: Final = 4 * 2**20

# Names of weights or of pickled classes that tell a family, the most specific first.
_MARKS: Final = (
    (
        b"_reconstruct_persistent_obj",
        "an EDM or StyleGAN pickle (NVlabs), which runs code when read",
    ),
    (b"model.diffusion_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"first_stage_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"double_blocks.", "a Flux transformer"),
    (b"to_time_emb.", "a Karras UNet of lucidrains' (denoising-diffusion-pytorch)"),
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


def check_content(path: Path, where: str) -> str:
    """The file's kind: torch, legacy, safetensors, pickle or unknown. Raises CheckpointError for all
    others: what a failed download leaves, and files of other programs. where: the file, for messages.
    """
    with refusals(where, CheckpointError, SUPPORTED):
        kind = sniff(path)
        check_kind(kind, _REMEDIES.get(kind, ""))
    return kind


def refuse_foreign(path: Path) -> None:
    """Raise CheckpointError for a file that is no weight file, or one of a network of another kind."""
    kind = check_content(path, path.name)
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
    if unet not in ("", "UNet2DModel", LUCIDRAINS):
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
    if kind not in (None, "UNet2DModel", LUCIDRAINS):
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


def _excerpt(path: Path, kind: str) -> bytes:
    """The bytes that name the weights: a safetensors header, a pickle's beginning."""
    try:
        with path.open("rb") as file:
            if kind == "torch":
                file.seek(stored_members(path)["data.pkl"].offset)
            return file.read(_EXCERPT)
    except (Refused, KeyError, OSError):
        return b""
