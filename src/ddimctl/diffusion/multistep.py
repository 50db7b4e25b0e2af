"""Higher orders of DDIM: the step of eq. 12 with what earlier evaluations tell of this one's change.

DDIM holds (x_0, eps) still during a step. Both solvers let them go on as they went before, each
one of the two along its own coordinate, in which eq. 14 is linear in it. One evaluation a step, as
DDIM; in the first step, where there is no past, both are DDIM.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor

from ddimctl.diffusion.predictions import Prediction
from ddimctl.errors import RequestError

SOLVERS: Final = ("ddim", "ipndm", "dpm++2m")
# Adams-Bashforth for equal steps, of orders 1 to 3, newest first.
_WEIGHTS: Final = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
)
_ORDERS: Final = {"ipndm": len(_WEIGHTS), "dpm++2m": 2}

Correction = Callable[[Prediction, float, float], Tensor | float]
"""(prediction at x, its alpha_bar, alpha_bar to go to) -> what to add to DDIM's step."""


class _Past(NamedTuple):
    """An evaluation: at which level, and the eps or x_0 that the solver goes on with."""

    alpha_bar: float
    value: Tensor


def check_solver(solver: str, eta: float = 0.0, variance: str = "eta") -> None:
    """Raise RequestError for an unknown solver, and for noise with one that knows none."""
    if solver not in SOLVERS:
        raise RequestError(f"unknown solver '{solver}'.", f"Choose one of {', '.join(SOLVERS)}.")
    if solver != "ddim" and (eta, variance) != (0.0, "eta"):
        noise = f"--eta {eta:g}" if variance == "eta" else f"--variance {variance}"
        raise RequestError(
            f"--solver {solver} is deterministic, but {noise} adds noise.",
            "Use --solver ddim, or --eta 0 --variance eta.",
        )


def make_correction(solver: str) -> Correction | None:
    """What the solver adds to the steps of one trajectory, asked from its top down; None for ddim.

    It keeps what the order needs of the past. Raises RequestError for an unknown solver.
    """
    check_solver(solver)
    if solver == "ddim":
        return None
    of_past = _ipndm if solver == "ipndm" else _dpm
    past: deque[_Past] = deque(maxlen=_ORDERS[solver])

    def correct(found: Prediction, alpha_bar: float, alpha_bar_to: float) -> Tensor | float:
        past.appendleft(_Past(alpha_bar, found.eps if solver == "ipndm" else found.x_0))
        return of_past(past, alpha_bar_to) if len(past) > 1 else 0.0

    return correct


def _ipndm(past: deque[_Past], alpha_bar_to: float) -> Tensor | float:
    """iPNDM (Zhang and Chen 2022): eq. 13 with an average of the eps of three steps.

    Its weights are those for equal steps of sigma_bar, which no tau has. Those for the steps' own
    lengths, and the average of four, measured worse (docs/quality.md).
    """
    first, *others = _WEIGHTS[len(past) - 1]
    change = (first - 1) * past[0].value
    for weight, earlier in zip(others, list(past)[1:], strict=True):
        change = change + weight * earlier.value
    step = _sigma_bar(alpha_bar_to) - _sigma_bar(past[0].alpha_bar)
    return math.sqrt(alpha_bar_to) * step * change


def _dpm(past: deque[_Past], alpha_bar_to: float) -> Tensor | float:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): x_0 extrapolated to the step's middle.

    In lambda = -ln sigma_bar, where the step to alpha_bar = 1 is endless: there x_0 stays.
    """
    if alpha_bar_to == 1:
        return 0.0
    (level, x_0), (level_before, x_0_before) = past
    to, now, before = (_sigma_bar(each) for each in (alpha_bar_to, level, level_before))
    ahead = math.log(now / to) / math.log(before / now) / 2
    return math.sqrt(alpha_bar_to) * (1 - to / now) * ahead * (x_0 - x_0_before)


def _sigma_bar(alpha_bar: float) -> float:
    """Noise over signal, eq. 13's sigma; endless where there is no signal."""
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf
