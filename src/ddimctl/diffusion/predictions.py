"""What a network predicts, turned into (x_0, eps): the one place that knows the parameterisations."""

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from ddimctl.diffusion.schedules import Level, Schedule, root
from ddimctl.errors import RequestError

PREDICTIONS: Final = ("eps", "x_0", "v")
CLIPS: Final = ("none", "static", "dynamic")
DYNAMIC_QUANTILE: Final = 0.995


class Prediction(NamedTuple):
    """The network's view of a noisy x at level t.

    x_0, eps: (N, C, H, W), with x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.
    variance: (N, C, H, W) in [-1, 1] nominal where the network learned it, else None.
    """

    x_0: Tensor
    eps: Tensor
    variance: Tensor | None = None


class Model(Protocol):
    """What sampling needs of a checkpoint."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def prediction(self) -> str: ...
    @property
    def learned_variance(self) -> bool: ...
    @property
    def null_class(self) -> int | None: ...
    @property
    def self_conditioned(self) -> bool: ...

    def network(
        self, x: Tensor, t: Tensor, labels: Tensor | None, x_0: Tensor | None = None
    ) -> Tensor:
        """The raw output, (N, C or 2C, H, W), for x (N, C, H, W), timesteps (N,) and labels (N,).

        x_0: the last prediction, of a self-conditioned network.
        """


Denoiser = Callable[[Tensor, int, Tensor | None], Prediction]
"""(x (N, C, H, W), t, labels (N,)) -> x_0 and eps."""

MixedDenoiser = Callable[[Tensor, Tensor, Tensor | None], Prediction]
"""The same of images that are at different t (N,), int64."""


def convert_prediction(output: Tensor, x: Tensor, alpha_bar: Level, prediction: str) -> Prediction:
    """(x_0, eps) from the network's output, without its variance channels.

    eps: eq. 9's f_theta.  x_0: the same relation, solved for eps.
    v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022, appendix D).
    """
    signal, noise = root(alpha_bar), root(1 - alpha_bar)
    if prediction == "eps":
        return Prediction((x - noise * output) / signal, output)
    if prediction == "x_0":
        return Prediction(output, (x - signal * output) / noise)
    return Prediction(signal * x - noise * output, signal * output + noise * x)


def clip_prediction(found: Prediction, x: Tensor, alpha_bar: Level, clip: str) -> Prediction:
    """x_0 held in [-1, 1], and eps derived again from it so that both still describe x.

    static clamps. dynamic (Saharia et al. 2022, section 2.3) scales each image by the 99.5th
    percentile of |x_0| where that exceeds 1.
    """
    if clip == "none":
        return found
    x_0 = found.x_0
    if clip == "dynamic":
        flat = x_0.abs().flatten(1).float()
        bound = torch.quantile(flat, DYNAMIC_QUANTILE, dim=1).clamp(min=1).to(x_0.dtype)
        bound = bound.view(-1, *[1] * (x_0.ndim - 1))
        x_0 = x_0.clamp(-bound, bound) / bound
    else:
        x_0 = x_0.clamp(-1, 1)
    eps = (x - root(alpha_bar) * x_0) / root(1 - alpha_bar)
    return Prediction(x_0, eps, found.variance)


def make_denoiser(
    model: Model, guidance: float = 1.0, clip: str = "none", guidance_rescale: float = 0.0
) -> Callable[[Tensor, int | Tensor, Tensor | None], Prediction]:
    """A Denoiser for the model, which is a MixedDenoiser, too.

    guidance: W of classifier-free guidance, null + W (class - null) in the space the network
    predicts in (Ho and Salimans 2022); 1 is the plain class-conditional network.
    guidance_rescale: from 0 to 1, how far each image's guided prediction is brought back to the
    standard deviation of the class's own (Lin et al. 2024, section 3.4).

    A self-conditioned network (Chen et al. 2022) gets the x_0 of the call before where that was at a
    higher t, else zeros: use one denoiser for one trajectory at a time.

    Raises RequestError for an unknown clip, guidance without a null class, a guidance_rescale out of
    its range, and (when called with one
    t) for an eps-network asked at alpha_bar = 0, where x_0 is not determined.
    """
    if clip not in CLIPS:
        raise RequestError(f"unknown clipping '{clip}'.", f"Choose one of {', '.join(CLIPS)}.")
    if not 0 <= guidance_rescale <= 1:
        raise RequestError(
            f"guidance_rescale is {guidance_rescale:g}.", "Choose a number from 0 to 1."
        )
    null_class = model.null_class
    if guidance != 1.0 and null_class is None:
        raise RequestError(
            "guidance needs a checkpoint trained with a null class.", "Leave --guidance at 1."
        )

    last = _LastPrediction() if model.self_conditioned else None

    def denoise(x: Tensor, t: int | Tensor, labels: Tensor | None = None) -> Prediction:
        alpha_bar: Level
        if isinstance(t, Tensor):
            times, alpha_bar = t, model.schedule.at(t).view(-1, 1, 1, 1)
        else:
            times, alpha_bar = x.new_full((len(x),), t, dtype=torch.int64), model.schedule(t)
            if alpha_bar == 0 and model.prediction == "eps":
                raise RequestError(
                    f"the schedule has no signal at t = {t} (zero terminal SNR), where an "
                    "eps-prediction does not determine the image.",
                    f"Leave {t} out with --tau, or use a v- or x_0-prediction checkpoint.",
                )
        if guidance == 1.0:
            output = model.network(x, times, labels, *([] if last is None else [last.take(x, t)]))
        else:
            output = _guided(model, x, times, labels, guidance, guidance_rescale)
        # and with it the next x: to a compiler another order in memory is another shape
        output = output.contiguous()
        variance = None
        if model.learned_variance:
            output, variance = output.chunk(2, dim=1)
        found = convert_prediction(output, x, alpha_bar, model.prediction)
        found = clip_prediction(found._replace(variance=variance), x, alpha_bar, clip)
        if last is not None:
            last.keep(t, found.x_0)
        return found

    return denoise


class _LastPrediction:
    """What a self-conditioned network predicted at the timestep before, within a trajectory."""

    def __init__(self) -> None:
        self._known: tuple[int, Tensor] | None = None

    def take(self, x: Tensor, t: int | Tensor) -> Tensor:
        """The x_0 of the call before where that was at a higher t, else zeros like x."""
        known, self._known = self._known, None
        if known is None or isinstance(t, Tensor) or t >= known[0] or known[1].shape != x.shape:
            return torch.zeros_like(x)
        return known[1]

    def keep(self, t: int | Tensor, x_0: Tensor) -> None:
        """Remember what was predicted for images that are all at one t."""
        self._known = None if isinstance(t, Tensor) else (t, x_0)


def _guided(
    model: Model,
    x: Tensor,
    times: Tensor,
    labels: Tensor | None,
    guidance: float,
    rescale: float,
) -> Tensor:
    if labels is None:
        raise RequestError(
            "guidance needs class labels.", "Pass a class with --class, or a prompt with --prompt."
        )
    both = torch.cat((labels, torch.full_like(labels, model.null_class or 0)))
    given, null = model.network(torch.cat((x, x)), torch.cat((times, times)), both).chunk(2)
    if not model.learned_variance:
        return _rescaled(null + guidance * (given - null), given, rescale)
    # guidance is about the mean; the variance stays the class's own
    (given, variance), null = given.chunk(2, dim=1), null.chunk(2, dim=1)[0]
    return torch.cat((_rescaled(null + guidance * (given - null), given, rescale), variance), dim=1)


def _rescaled(guided: Tensor, given: Tensor, rescale: float) -> Tensor:
    """Lin et al. 2024, eq. 15 and 16, with the standard deviation over (C, H, W) of each image."""
    if rescale == 0:
        return guided
    dims = list(range(1, guided.ndim))
    ratio = given.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return rescale * (guided * ratio) + (1 - rescale) * guided
