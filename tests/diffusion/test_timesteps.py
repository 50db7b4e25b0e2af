from itertools import pairwise

import pytest

from ddimctl.diffusion.timesteps import KINDS, explicit_timesteps, timesteps
from ddimctl.errors import RequestError


def limit(kind, T):
    return 8 * T // 10 + 1 if kind == "quadratic" else T


@pytest.mark.parametrize("kind", KINDS)
def test_every_possible_number_of_steps_is_exact_ascending_and_in_range(kind):
    for T in (1, 2, 7, 100, 1000):
        for S in range(1, limit(kind, T) + 1):
            tau = timesteps(kind, S, T)
            assert len(tau) == S
            assert all(a < b for a, b in pairwise(tau))
            assert 0 <= tau[0] and tau[-1] < T


def test_one_step_too_many_is_refused_with_the_limit():
    for kind in KINDS:
        most = limit(kind, 1000)
        with pytest.raises(RequestError, match=f"at most {most}"):
            timesteps(kind, most + 1, 1000)


def test_linspace_holds_both_ends_whatever_S():
    for S in (2, 3, 20, 30, 600, 999, 1000):
        tau = timesteps("linspace", S, 1000)
        assert (tau[0], tau[-1]) == (0, 999)
        gaps = [b - a for a, b in pairwise(tau)]
        assert max(gaps) - min(gaps) <= 1


def test_these_kinds_start_from_the_noisiest_level():
    for kind in ("linspace", "trailing"):
        for S in (1, 7, 50):
            assert timesteps(kind, S, 1000)[-1] == 999


def test_a_single_step_visits_the_noisiest_level():
    assert timesteps("linspace", 1, 1000) == (999,)
    assert timesteps("trailing", 1, 1000) == (999,)


def test_uniform_is_the_papers_floor():
    assert timesteps("uniform", 10, 1000) == tuple(range(0, 1000, 100))
    assert timesteps("uniform", 3, 10) == (0, 3, 6)


def test_quadratic_agrees_with_ermongroup_where_theirs_has_no_repeats():
    # their list for S = 10, as recorded from their code
    assert timesteps("quadratic", 10, 1000) == (0, 9, 39, 88, 158, 246, 355, 483, 632, 800)


def test_quadratic_replaces_repeats_and_still_ends_at_eight_tenths():
    for S in (50, 100, 801):
        tau = timesteps("quadratic", S, 1000)
        assert (tau[0], tau[-1]) == (0, 800)
        assert len(set(tau)) == S


def test_an_explicit_list_is_sorted_and_kept():
    assert explicit_timesteps([500, 0, 999]) == (0, 500, 999)


def test_impossible_lists_are_refused():
    for values, message in (
        ([], "empty"),
        ([1, 1], "twice"),
        ([-1, 5], "outside"),
        ([5, 1000], "outside"),
    ):
        with pytest.raises(RequestError, match=message):
            explicit_timesteps(values, 1000)


def test_unknown_kinds_and_no_steps_are_refused():
    with pytest.raises(RequestError, match="unknown kind"):
        timesteps("cubic", 10)
    with pytest.raises(RequestError, match="at least 1"):
        timesteps("linspace", 0)
