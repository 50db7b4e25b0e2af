"""Timesteps chosen for a checkpoint: those from which few steps end nearest to where many do.

A probe walks some latents down many timesteps, and again in few, to see how the network answers
to being off the first walk. To good approximation the x_0 it predicts moves along with x, by one
factor at each level: dx_0 = response dx. Then whatever a walk down fewer timesteps does, with any
solver, is a combination of the first walk's predictions, and how far from its end it arrives
follows from their inner products, without the network. The search walks over such combinations.

Chen et al. 2024 ("On the trajectory regularity of ODE-based diffusion sampling") choose timesteps
by the sum of local errors along one fine walk; here errors are followed to the end, where they add
up, grow, shrink or cancel, and the timesteps are spread smoothly.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.diffusion.multistep import check_solver
from ddimctl.diffusion.predictions import Denoiser, Model, Prediction, make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import CLEAN, Schedule
from ddimctl.diffusion.steps import ddim_step
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.errors import NumericsError, RequestError

FINE: Final = 100  # timesteps of the probe, among which the search chooses
COARSE: Final = 20  # of its second walk
_FINE_SOLVER: Final = "dpm++2m"  # in 100 steps much nearer to DDIM in 1000 than DDIM itself
# Of the search, for the lowest place (a share of all) and three bends: where it starts, how far it
# moves at first, and how often that is halved.
_STARTS: Final = tuple(
    (lowest, bend, 0.0, 0.0) for lowest in (0.0, 0.05, 0.1) for bend in (0.0, -1.0)
)
_MOVES: Final = (0.04, 0.4, 0.4, 0.4)
_HALVINGS: Final = 5


class Probe(NamedTuple):
    """What the search needs of N = len(timesteps) timesteps, ascending, ending at T-1.

    products: (2N, 2N), float64, mean inner products of the fine walk's predictions, x_0 of each
    timestep, then eps of each, in the timesteps' order.  response: (N,), float64, dx_0 / dx.
    """

    timesteps: tuple[int, ...]
    products: Tensor
    response: Tensor


def probe_evaluations(num_train_timesteps: int) -> int:
    """How often a probe asks the network for each latent."""
    fine = min(FINE, num_train_timesteps)
    return fine + min(COARSE, fine)


def search_timesteps(
    model: Model,
    x_T: Tensor,
    *,
    steps: int,
    solver: str = "ddim",
    clip: str = "none",
    labels: Tensor | None = None,
    guidance: float = 1.0,
    batch_size: int = 16,
) -> tuple[int, ...]:
    """tau of S = steps timesteps, ending at T-1, chosen for the model and solver; --tau auto's choice.

    x_T: (N, C, H, W) at T-1, latents to choose with; 32 will do, and each takes 120 evaluations,
    batch_size of them at a time. steps: at most 50. labels: (N,), int64. The other settings are
    sample's, which should be given the same; what is chosen is for eta = 0.
    Raises RequestError for settings that do not fit, NumericsError when a prediction is not finite.
    """
    check_solver(solver, 0.0, "eta")
    check_search(steps, model.schedule.num_train_timesteps, model.self_conditioned)

    def start(images: range) -> tuple[Tensor, Tensor | None]:
        own = slice(images.start, images.stop)
        return x_T[own], None if labels is None else labels[own]

    denoise = make_denoiser(model, guidance, clip)
    with torch.inference_mode():
        found = probe(denoise, model.schedule, start, len(x_T), batch_size)
    return choose_timesteps(found, model.schedule, steps, solver)


def check_search(steps: int, num_train_timesteps: int, self_conditioned: bool = False) -> None:
    """Raise RequestError for more steps than half the timesteps that a probe visits, or none, and
    for a network whose predictions depend on the steps before."""
    if self_conditioned:
        raise RequestError(
            "--tau auto cannot be chosen for a self-conditioned network.", "Use --tau trailing."
        )
    N = min(FINE, num_train_timesteps)
    if not 1 <= steps <= N // 2:
        raise RequestError(
            f"--tau auto chooses from {N} timesteps, too few for --steps {steps}.",
            f"Pass at most {N // 2} steps, or use --tau linspace.",
        )


def probe(
    denoise: Denoiser,
    schedule: Schedule,
    start: Callable[[range], tuple[Tensor, Tensor | None]],
    count: int,
    batch_size: int,
    on_step: Callable[[int], None] | None = None,
) -> Probe:
    """Probe `count` latents, `batch_size` at a time.

    start: the (x_T (n, C, H, W), labels (n,) or None) of some of the latents.
    on_step: called with how many batches are evaluated.
    Raises NumericsError when the network's predictions are not finite.
    """
    T = schedule.num_train_timesteps
    fine = timesteps("linspace", min(FINE, T), T)
    N = len(fine)
    coarse = [fine[i] for i in timesteps("linspace", min(COARSE, N), N)]
    products = torch.zeros(2 * N, 2 * N, dtype=torch.float64)
    moved, along = torch.zeros(2, N, dtype=torch.float64)  # <dx, dx> and <dx, dx_0>
    evaluated = 0
    for first in range(0, count, batch_size):
        x_T, labels = start(range(first, min(first + batch_size, count)))
        seen: list[dict[int, tuple[Tensor, Prediction]]] = [{}, {}]
        for tau, record, solver in zip((fine, coarse), seen, (_FINE_SOLVER, "ddim"), strict=True):
            watched = _watched(denoise, record)
            for _ in trajectory(watched, x_T, schedule, tau, solver=solver, labels=labels):
                evaluated += 1
                if on_step:
                    on_step(evaluated)
        walked = [found for _, found in (seen[0][t] for t in fine)]
        basis = torch.stack([found.x_0 for found in walked] + [found.eps for found in walked])
        flat = basis.flatten(1).double()
        products += (flat @ flat.T).cpu() / (count * x_T[0].numel())
        for t in coarse:
            (x_fine, fine_found), (x, found) = (record[t] for record in seen)
            off, change = (x - x_fine).double(), (found.x_0 - fine_found.x_0).double()
            place = bisect_left(fine, t)
            moved[place] += float((off * off).sum())
            along[place] += float((off * change).sum())
    if not bool(products.isfinite().all()):
        raise NumericsError("the network's predictions are not finite.", "Try --precision fp32.")
    return Probe(fine, products, _interpolated(along, moved))


def choose_timesteps(found: Probe, schedule: Schedule, steps: int, solver: str) -> tuple[int, ...]:
    """tau of S = steps timesteps, ending at T-1, from which the solver ends nearest to the fine walk.

    Raises RequestError as check_search.
    """
    check_search(steps, schedule.num_train_timesteps)
    N = len(found.timesteps)
    denoise, x_T, end = _predicted(found, schedule)

    def distance(places: Sequence[int]) -> float:
        tau, x = [found.timesteps[place] for place in places], x_T
        for step in trajectory(denoise, x_T, schedule, tau, solver=solver):
            x = step.x
        off = (x - end)[0]
        return float(off @ found.products @ off)

    ends = (_descend(lambda shape: distance(_spread(shape, steps, N)), start) for start in _STARTS)
    _, best = min(ends)
    return tuple(found.timesteps[place] for place in _spread(best, steps, N))


def _predicted(found: Probe, schedule: Schedule) -> tuple[Denoiser, Tensor, Tensor]:
    """What the probe tells of any walk: (denoiser, x_T, the fine walk's end).

    Each x is the weights (1, 2N) of a combination of the fine walk's predictions.
    """
    N = len(found.timesteps)
    x_0s, epss = torch.eye(2 * N, dtype=torch.float64)[:, None].chunk(2)
    place = {t: i for i, t in enumerate(found.timesteps)}
    start_timestep, response = found.timesteps[-1], found.response.tolist()
    walk = {start_timestep: ddim_step(x_0s[-1], epss[-1], schedule(start_timestep))}

    def replay(x: Tensor, t: int, labels: Tensor | None) -> Prediction:
        return Prediction(x_0s[place[t]], epss[place[t]])

    for step in trajectory(
        replay, walk[start_timestep], schedule, found.timesteps, solver=_FINE_SOLVER
    ):
        walk[step.t_next] = step.x

    def denoise(x: Tensor, t: int, labels: Tensor | None) -> Prediction:
        level = schedule(t)
        x_0 = x_0s[place[t]] + response[place[t]] * (x - walk[t])
        return Prediction(x_0, (x - math.sqrt(level) * x_0) / math.sqrt(1 - level))

    return denoise, walk[start_timestep], walk[CLEAN]


def _spread(shape: Sequence[float], steps: int, N: int) -> list[int]:
    """S of N places, ascending, ending at N-1: (lowest / N, three bends of their distances).

    Distances change smoothly, by exp of a cubic: free places would crowd where that makes foretold
    errors cancel, and real ones do not.
    """
    lowest, *bends = shape
    gaps = []
    for i in range(steps - 1):
        z = 2 * i / max(steps - 2, 1) - 1
        gaps.append(math.exp(sum(bend * z**k for k, bend in enumerate(bends, 1))))
    scale = (N - 1) * (1 - lowest) / sum(gaps) if gaps else 0.0
    places, at = [N - 1], float(N - 1)
    for number, gap in enumerate(reversed(gaps), 1):
        at -= scale * gap
        most, least = places[-1] - 1, steps - 1 - number  # room above, and below for the others
        places.append(min(max(round(at), least), most))
    return places[::-1]


def _descend(
    distance: Callable[[Sequence[float]], float], start: Sequence[float]
) -> tuple[float, list[float]]:
    """The least distance and its shape: each number moved either way while that helps, then by half."""
    best, least = list(start), distance(start)
    for halving in range(_HALVINGS + 1):
        before = math.inf
        while least < before:
            before = least
            for k, move in enumerate(_MOVES):
                for by in (move, -move):
                    tried = best.copy()
                    tried[k] += by / 2**halving
                    if tried[0] < 0 or (now := distance(tried)) >= least:
                        continue
                    least, best = now, tried
                    break
    return least, best


def _watched(denoise: Denoiser, record: dict[int, tuple[Tensor, Prediction]]) -> Denoiser:
    """The denoiser, recording its input and prediction by timestep."""

    def watched(x: Tensor, t: int, labels: Tensor | None) -> Prediction:
        found = denoise(x, t, labels)
        record[t] = x, found
        return found

    return watched


def _interpolated(along: Tensor, moved: Tensor) -> Tensor:
    """along / moved (N,), linear between the places where anything moved; 0 if nothing did."""
    places = moved.nonzero().flatten()
    if len(places) < 2:
        return torch.zeros_like(moved)
    known, every = along[places] / moved[places], torch.arange(len(moved))
    right = torch.searchsorted(places, every).clamp(1, len(places) - 1)
    left = right - 1
    weight = (every - places[left]) / (places[right] - places[left])
    return torch.lerp(known[left], known[right], weight.clamp(0, 1).double())
