"""The sub-sequence tau of visited training timesteps: 0-based, ascending, unique, exactly S of them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from ddimctl.errors import RequestError

KINDS: Final = ("linspace", "trailing", "uniform", "quadratic")
AUTO: Final = "auto"
"""The kind that a search for one checkpoint makes (tau_search), not this module."""


def timesteps(kind: str, steps: int, num_train_timesteps: int = 1000) -> tuple[int, ...]:
    """tau with exactly S = steps timesteps out of T = num_train_timesteps.

    linspace:  evenly spaced with both ends, 0 and T-1 (S = 1 is T-1).
    trailing:  round(T i / S) - 1, which ends at T-1 (Lin et al. 2023, table 2).
    uniform:   floor(c i), the paper's linear choice (section D.2).
    quadratic: max(floor(c i^2), tau_{i-1} + 1) up to 0.8 T, the paper's choice for CIFAR-10.

    Raises RequestError for an unknown kind, S < 1, or more steps than there are distinct timesteps.
    """
    T, S = num_train_timesteps, steps
    limit = (8 * T) // 10 + 1 if kind == "quadratic" else T
    if kind not in KINDS:
        raise RequestError(f"unknown kind of timesteps '{kind}'.", f"Choose {_or(KINDS)}.")
    if S < 1:
        raise RequestError(f"--steps must be at least 1, not {S}.")
    if S > limit:
        raise RequestError(
            f"--steps {S} is more than the {limit} distinct timesteps of --tau {kind} with T = {T}.",
            f"Pass at most {limit} steps.",
        )
    if kind == "linspace":
        return (T - 1,) if S == 1 else tuple(_rounded(i * (T - 1), S - 1) for i in range(S))
    if kind == "trailing":
        return tuple(_rounded((i + 1) * T, S) - 1 for i in range(S))
    if kind == "uniform":
        return tuple(i * T // S for i in range(S))
    tau: list[int] = []
    for i in range(S):
        square = 8 * T * i * i // (10 * max(S - 1, 1) ** 2)
        tau.append(max(square, tau[-1] + 1) if tau else 0)
    return tuple(tau)


def explicit_timesteps(values: Sequence[int], num_train_timesteps: int = 1000) -> tuple[int, ...]:
    """tau as given, sorted. Raises RequestError when empty, repeated, or outside [0, T)."""
    T = num_train_timesteps
    tau = tuple(sorted(values))
    if not tau:
        raise RequestError("--tau is an empty list.", "Pass timesteps such as --tau 0,250,500,999.")
    for t in tau:
        if not 0 <= t < T:
            raise RequestError(f"--tau holds {t}, outside 0 ... {T - 1}.")
    for t, following in pairwise(tau):
        if t == following:
            raise RequestError(f"--tau holds {t} twice.")
    return tau


def _rounded(numerator: int, denominator: int) -> int:
    """Integer division rounded to nearest, halves upwards: exact where floats are not."""
    return (2 * numerator + denominator) // (2 * denominator)


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
