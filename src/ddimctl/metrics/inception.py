"""The Inception network that FID and KID are defined by, as torch-fidelity has it."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.errors import DataError, RequestError
from ddimctl.files.untrusted.guards import Refused, reason
from ddimctl.files.untrusted.reader import read_torch
from ddimctl.files.untrusted.settings import JsonObject

DIMENSIONS: Final = 2048
_LAYER: Final = "2048"  # the pooled features before the last layer
_READING_ERRORS: Final = (
    *(pickle.UnpicklingError, OSError, RuntimeError, ValueError, LookupError, TypeError),
    *(EOFError, AttributeError),
)


class Extractor(NamedTuple):
    """features: images (N, 3, H, W), uint8, to float32 (N, D). settings: which network it is."""

    features: Callable[[Tensor], Tensor]
    settings: JsonObject


def load_inception(weights: Path | None, device: torch.device) -> Extractor:
    """torch-fidelity's InceptionV3, which resizes images to 299 x 299 as TensorFlow 1 did.

    weights: the file of them that torch-fidelity offers; None lets torch download it once.
    Raises RequestError where torch-fidelity is missing, DataError for weights that cannot be read.
    """
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as library
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch_fidelity"
        cause = "torch-fidelity is not installed" if missing else f"torch-fidelity fails: {error}"
        raise RequestError(
            f"FID and KID need the Inception network, and {cause}.",
            "Install it with pip install 'ddimctl[fid]', or choose --metric swd.",
        ) from error
    state = _read_weights(weights, library.URL_INCEPTION_V3)
    copy = io.BytesIO()  # it reads what it is given as a pickle: give it only what we wrote
    torch.save(state, copy)
    copy.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", [_LAYER], feature_extractor_weights_path=copy
        )
    except RuntimeError as error:  # names or shapes that are not its own
        raise _wrong(weights, "they belong to another network") from error
    network.to(device)

    def features(images: Tensor) -> Tensor:
        with torch.inference_mode(), ieee_float32():  # the same features on CPU and CUDA
            found: Tensor = network(images)[0]
        return found.float()

    return Extractor(features, {"network": "torch-fidelity", "weights": _digest(state)})


def _read_weights(path: Path | None, url: str) -> dict[str, Tensor]:
    try:
        if path is None:
            state = torch.hub.load_state_dict_from_url(url, progress=False, weights_only=True)
        else:
            state = read_torch(path)
    except FileNotFoundError as error:
        raise RequestError(f"--inception {path}: there is no such file.") from error
    except Refused as refused:
        raise _wrong(path, f"the file {refused.cause.rstrip('.')}") from refused
    except _READING_ERRORS as error:
        raise _wrong(path, reason(error)) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _wrong(path, "they are not a dict of tensors")
    return state


def _wrong(path: Path | None, why: str) -> DataError:
    where = "cannot be downloaded" if path is None else f"in {path} cannot be used"
    return DataError(
        f"the Inception weights {where}: {why}.",
        "Pass weights-inception-2015-12-05-6726825d.pth of torch-fidelity with --inception.",
    )


def _digest(state: dict[str, Tensor]) -> str:
    content = hashlib.sha256()
    for name in sorted(state):
        content.update(f"{name} {tuple(state[name].shape)}\n".encode())
        content.update(state[name].detach().float().contiguous().numpy().tobytes())
    return content.hexdigest()
