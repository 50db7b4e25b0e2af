"""diffusers' scheduler_config.json, read into a schedule and written from one."""

from typing import Any, Final, NamedTuple

from ddimctl.checkpoints.identify import SUPPORTED, scheduler_refusal
from ddimctl.diffusion.schedules import Schedule, from_betas, make_schedule
from ddimctl.errors import CheckpointError, RequestError, brief
from ddimctl.files.untrusted.settings import JsonObject

_KINDS: Final = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
_PREDICTIONS: Final = {"epsilon": "eps", "sample": "x_0", "v_prediction": "v"}
_NO_BOUND: Final = (None, float("inf"), -float("inf"))  # lambda_min_clipped of DPMSolver is -inf
_READ: Final = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
    "predict_epsilon",
)
MAX_TIMESTEPS: Final = 1_000_000
# Classes with the defaults assumed below, whose files may leave settings out.
_DDPM_KIN: Final = ("DDPM", "DDIM", "PNDM")
_BETAS: Final = ("beta_schedule", "beta_start", "beta_end")


class Diffusion(NamedTuple):
    """What a scheduler's settings say about the network.

    prediction: "eps", "x_0" or "v". ignored: its sampler settings. notes: sentences for the user.
    """

    schedule: Schedule
    prediction: str
    ignored: JsonObject
    notes: tuple[str, ...] = ()


def assumed_diffusion(name: str) -> Diffusion:
    """What a checkpoint without scheduler settings gets: those of Ho et al. 2020."""
    note = f"{name} has no scheduler settings: assuming linear, 1e-4 to 0.02, T = 1000, eps."
    return Diffusion(make_schedule(), "eps", {}, (note,))


def read_diffusion(config: JsonObject, where: str) -> Diffusion:
    """The schedule and prediction of a scheduler's config.

    where: the file, for messages. Raises CheckpointError for settings that are unknown, damaged,
    or not those of a DDPM.
    """
    kind = str(config.get("_class_name", ""))
    if why := scheduler_refusal(kind):
        raise CheckpointError(f"{where} ({kind}) cannot be used: {why}.", SUPPORTED)
    says_betas = config.get("trained_betas") is not None or all(key in config for key in _BETAS)
    if kind and not kind.startswith(_DDPM_KIN) and not says_betas:
        raise CheckpointError(
            f"{where} ({kind}) does not hold the betas of the training.", SUPPORTED
        )

    # diffusers before 0.10 has predict_epsilon instead
    assumed = "sample" if config.get("predict_epsilon") is False else "epsilon"
    prediction = str(config.get("prediction_type") or assumed)
    if prediction not in _PREDICTIONS:
        raise CheckpointError(
            f"{where}: prediction_type {prediction!r} is not supported.",
            f"Supported: {', '.join(_PREDICTIONS)}.",
        )
    ignored = {
        key: value
        for key, value in config.items()
        if key not in _READ and not key.startswith("_") and value not in _NO_BOUND
    }
    notes = []
    if config.get("variance_type") == "learned":
        notes.append(f"{where}: variance_type is 'learned'; assuming 'learned_range'.")
    return Diffusion(_read_schedule(config, where), _PREDICTIONS[prediction], ignored, tuple(notes))


def _read_schedule(config: JsonObject, where: str) -> Schedule:
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    betas = config.get("trained_betas")
    try:
        if betas is not None:
            if zero_snr:
                raise RequestError("trained_betas with rescale_betas_zero_snr are not supported.")
            if not isinstance(betas, list) or not all(_is_number(beta) for beta in betas):
                raise RequestError("trained_betas is not a list of numbers.")
            if len(betas) > MAX_TIMESTEPS:
                raise RequestError(f"trained_betas has {len(betas):,} numbers.")
            return from_betas(betas)
        kind = str(config.get("beta_schedule", "linear"))
        if kind not in _KINDS:
            raise RequestError(
                f"beta_schedule {kind!r} is not supported.", f"Supported: {', '.join(_KINDS)}."
            )
        steps = config.get("num_train_timesteps", 1000)
        if type(steps) is not int or not 1 <= steps <= MAX_TIMESTEPS:
            raise RequestError(f"num_train_timesteps is {brief(steps)}.")
        start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        if not (_is_number(start) and _is_number(end) and 0 < start <= 1 and 0 < end <= 1):
            raise RequestError(f"beta_start and beta_end are {brief(start)} and {brief(end)}.")
        return make_schedule(_KINDS[kind], steps, float(start), float(end), zero_snr)
    except RequestError as error:
        raise CheckpointError(f"{where}: {error.cause}", error.remedy) from error


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def sampler_note(name: str, ignored: JsonObject) -> str:
    """One sentence on the settings of the file's own sampler that would change images, or ''."""
    own = {
        key: ignored[key]
        for key in ("clip_sample", "thresholding", "timestep_spacing")
        if ignored.get(key) not in (None, False, "linspace")
    }
    if ignored.get("set_alpha_to_one") is False:  # the last step goes to alpha_bar[0], not to 1
        own["set_alpha_to_one"] = False
    if ignored.get("steps_offset"):
        own["steps_offset"] = ignored["steps_offset"]
    if not own:
        return ""
    settings = ", ".join(f"{key} = {value}" for key, value in own.items())
    return f"the sampler settings of {name} are not applied: {settings}."


def scheduler_config(schedule: Schedule, prediction: str) -> JsonObject:
    """The settings of a diffusers scheduler with this schedule and prediction.

    A DDIMScheduler, set to do without clipping and to begin at T - 1; a DDPMScheduler for the
    sigmoid schedule, which DDIMScheduler does not know.
    """
    settings = schedule.settings
    kinds = {ours: name for name, ours in _KINDS.items()}
    predictions = {ours: name for name, ours in _PREDICTIONS.items()}
    config: JsonObject = {
        "_class_name": "DDPMScheduler" if settings["kind"] == "sigmoid" else "DDIMScheduler",
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": settings.get("beta_start", 1e-4),
        "beta_end": settings.get("beta_end", 0.02),
        "beta_schedule": kinds.get(settings["kind"], "linear"),
        "trained_betas": settings.get("betas"),
        "rescale_betas_zero_snr": settings.get("rescale_zero_snr", False),
        "prediction_type": predictions[prediction],
        "clip_sample": False,
        "timestep_spacing": "trailing",
    }
    if config["_class_name"] == "DDIMScheduler":
        config |= {"set_alpha_to_one": True, "steps_offset": 0}
    return config
