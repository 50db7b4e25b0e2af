"""Which checkpoints cannot be run, by the names in their files, and what a single file is."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

from ddimctl.checkpoints.build.lucidrains_unet import CLASS_NAME as LUCIDRAINS
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_kind, sniff
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.files.untrusted.zip_members import stored_members

SUPPORTED: Final = (
    "Pass a diffusers folder of a UNet2DModel, Stable Diffusion or latent diffusion, a file of "
    "Stable Diffusion, ermongroup/ddim, OpenAI or lucidrains, or a hub id such as "
    "google/ddpm-cifar10-32."
)
# What to do with a file of this kind that was to be a checkpoint.
_REMEDIES: Final = {
    "image": "--ckpt takes the model; images go elsewhere.",
    "onnx": "Pass the PyTorch weights that it was made from.",
    "tensorflow": "Pass a version of it for diffusers, or for PyTorch.",
    "hdf5": "Pass a version of it for PyTorch.",
}
_EXCERPT: Final = 4 * 2**20

_LORA: Final = "a LoRA, which changes another checkpoint: pass it with --lora"
# Names of weights or of pickled classes that tell a family, the most specific first.
_MARKS: Final = (
    (
        b"_reconstruct_persistent_obj",
        "an EDM or StyleGAN pickle (NVlabs), which runs code when read",
    ),
    (b"double_blocks.", "a Flux transformer"),
    (b"to_time_emb.", "a Karras UNet of lucidrains' (denoising-diffusion-pytorch)"),
    (b"joint_blocks.", "a Stable Diffusion 3 transformer"),
    *((mark, _LORA) for mark in (b"lora_A.weight", b"lora_down.weight", b"lora.down.weight")),
    (b"model.diffusion_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"first_stage_model.", "a Stable Diffusion or other latent diffusion checkpoint"),
    (b"attn2.to_k.", "a UNet that takes text embeddings (Stable Diffusion and its kin)"),
    (b"adaLN_modulation.", "a diffusion transformer (DiT or its kin)"),
    (b"down_blocks.0.resnets.0.", "the weights of a diffusers UNet without their config.json"),
)

_LATENT: Final = b"model.diffusion_model.input_blocks.0.0.weight"  # of the files that can be run

_PARTS: Final = (
    ("transformer", "its network is a transformer, not a UNet"),
    ("bert", "its text encoder is no CLIP model"),
    ("prior", "it works on embeddings of images"),
    ("movq", "its autoencoder is a MOVQ (Kandinsky)"),
)
# The classes that can be run, of the parts that latent checkpoints have.
_CLIP: Final = ("CLIPTextModel", "CLIPTextModelWithProjection")
_AUTOENCODERS: Final = ("AutoencoderKL", "FlaxAutoencoderKL", "VQModel")
_KNOWN: Final = {
    "text_encoder": ("text encoder", (*_CLIP, "FlaxCLIPTextModel")),
    "text_encoder_2": ("text encoder", _CLIP),
    "vae": ("autoencoder", _AUTOENCODERS),
    "vqvae": ("autoencoder", _AUTOENCODERS),
}
_UNETS: Final = ("UNet2DModel", "UNet2DConditionModel", "FlaxUNet2DConditionModel")
# What takes more channels than it gives, by how many come in.
_INPUTS: Final = {
    5: "it works from a depth map",
    6: "it is a super-resolution model, which works from a small image",
    7: "it is an upscaler, which works from a small image",
    8: "it is an InstructPix2Pix model, which works from an image",
    9: "it is an inpainting model, which works from a masked image",
}
# (setting of a UNet2DConditionModel, why it cannot be run where that is given)
_CONDITIONS: Final = (
    ("class_embed_type", "it is conditioned on embeddings of images or noise levels (unCLIP)"),
    ("num_class_embeds", "it is conditioned on noise levels (an upscaler)"),
    ("encoder_hid_dim_type", "it attends to embeddings of images (Kandinsky, IP-Adapter)"),
    ("encoder_hid_dim", "it attends to embeddings of another text encoder (DeepFloyd IF)"),
    ("time_cond_proj_dim", "it is distilled, with the guidance as an input (LCM)"),
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
    if kind not in ("torch", "legacy", "safetensors"):
        refuse_file(path)
    if _LATENT not in _excerpt(path, kind) and _mark(path, kind):
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
        }.get(kind, "not a checkpoint of a known kind")
    remedy = SUPPORTED
    if (path.parent / "config.json").is_file():
        remedy = f"Pass the folder that holds it: {path.parent}"
        what = what.removesuffix(" without their config.json")
    raise CheckpointError(f"{path.name} is {what}.", remedy)


def refuse_pipeline(name: str, index: JsonObject) -> None:
    """Raise CheckpointError unless model_index.json describes a pipeline with a UNet of images, or of
    their latents."""
    kind = str(index.get("_class_name", "a pipeline"))
    for part, why in _PARTS:
        if class_of(index, part) or class_of(index, f"{part}_2"):
            _refuse(name, kind, why)
    for part, (what, known) in _KNOWN.items():
        found = class_of(index, part)
        if found and found not in known:
            _refuse(name, kind, f"its {what} is a {found}, not a {' or '.join(known[:2])}")
    scheduler = class_of(index, "scheduler")
    if why := scheduler_refusal(scheduler):
        _refuse(name, kind, why)
    unet = class_of(index, "unet")
    if unet.startswith("Onnx"):
        _refuse(name, kind, "its networks are ONNX programs, without the weights for PyTorch")
    if unet not in ("", *_UNETS, LUCIDRAINS):
        _refuse(name, kind, f"its network is a {unet}")
    if not unet:
        _refuse(name, kind, "it has no UNet")
    if unet == "UNet2DModel" and class_of(index, "text_encoder"):
        _refuse(name, kind, "it works from text, but its UNet takes none")
    if index.get("requires_aesthetics_score") is True:
        _refuse(name, kind, "it is the refiner of SDXL, which works from an image")


def refuse_parts(name: str, has: Callable[[str], bool]) -> None:
    """The same for a folder without model_index.json; has: relative name -> whether it is there."""
    for part, why in _PARTS:
        if has(f"{part}/config.json"):
            _refuse(name, "a pipeline", why)


def refuse_network(where: str, config: JsonObject) -> None:
    """Raise CheckpointError unless config.json describes a UNet that can be run."""
    kind = config.get("_class_name")
    if kind is None and "down_block_types" not in config:  # transformers' configs, and strangers'
        names = config.get("architectures")
        kind = names[0] if isinstance(names, list) and names else config.get("model_type")
        kind = kind or "an unknown model"
    if kind not in (None, *_UNETS, LUCIDRAINS):
        _refuse(where, str(kind), f"only {', '.join(_UNETS[:2])} can be run")
    if config.get("time_embedding_type") == "fourier":
        _refuse(where, "a score network", "it is of the variance-exploding kind (NCSN++)")
    taken, given = (config.get(f"{way}_channels") for way in ("in", "out"))
    if type(taken) is int and type(given) is int and given < taken:
        why = _INPUTS.get(taken, "it works from an image")
        _refuse(where, str(kind or "a UNet"), f"{why} ({taken} channels in, {given} out)")
    if kind in _UNETS[1:]:
        _refuse_conditions(where, str(kind), config)
    elif config.get("class_embed_type") == "identity":
        _refuse(where, "a UNet2DModel", "it is conditioned on vectors, not on classes")


def _refuse_conditions(where: str, kind: str, config: JsonObject) -> None:
    for setting, why in _CONDITIONS:
        if config.get(setting) is not None:
            _refuse(where, kind, why)
    if config.get("addition_embed_type") not in (None, "text_time"):
        _refuse(where, kind, f"it adds {config['addition_embed_type']!r:.40} to its timesteps")
    if config.get("attention_type") not in (None, "default"):
        _refuse(where, kind, "it attends to boxes (GLIGEN)")


def scheduler_refusal(name: str) -> str:
    """Why networks of this diffusers scheduler class cannot be run; empty where they can."""
    return next((why for prefix, why in _SCHEDULERS.items() if name.startswith(prefix)), "")


def _refuse(name: str, kind: str, why: str) -> NoReturn:
    raise CheckpointError(f"{name} ({kind}) cannot be run: {why}.", SUPPORTED)


def class_of(index: Mapping[str, Any], part: str) -> str:
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
