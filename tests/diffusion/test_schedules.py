import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ddimctl.diffusion.schedules import CLEAN, KINDS, from_betas, make_schedule
from ddimctl.errors import RequestError

DIFFUSERS_NAMES = {"cosine": "squaredcos_cap_v2"}


def test_alpha_bar_falls_from_near_one_in_float64():
    for kind in KINDS:
        for T in (1, 10, 1000):
            alpha_bar = make_schedule(kind, T).alpha_bar
            assert alpha_bar.dtype == torch.float64
            assert alpha_bar.shape == (T,)
            assert (alpha_bar.diff() < 0).all()
            assert ((alpha_bar > 0) & (alpha_bar < 1)).all()


def test_schedules_agree_with_diffusers():
    for kind in KINDS:
        theirs = DDPMScheduler(beta_schedule=DIFFUSERS_NAMES.get(kind, kind)).alphas_cumprod
        torch.testing.assert_close(
            make_schedule(kind).alpha_bar.float(), theirs, rtol=2e-4, atol=1e-8
        )


def test_linear_is_the_product_of_its_definition():
    alpha_bar = 1.0
    for t in range(1000):
        alpha_bar *= 1 - (1e-4 + (0.02 - 1e-4) * t / 999)
    assert make_schedule()(999) == pytest.approx(alpha_bar, rel=1e-12)


def test_after_the_last_step_alpha_bar_is_exactly_one():
    assert make_schedule()(CLEAN) == 1.0


def test_zero_snr_reaches_zero_and_keeps_the_first_level():
    plain, rescaled = make_schedule(), make_schedule(rescale_zero_snr=True)
    assert rescaled(999) == 0.0
    assert rescaled(0) == pytest.approx(plain(0), rel=1e-12)
    theirs = DDIMScheduler(rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(rescaled.alpha_bar.float(), theirs, rtol=1e-3, atol=1e-6)


def test_impossible_betas_are_refused():
    for betas in ([], [0.0, 0.1], [0.1, 1.5], [[0.1, 0.2]], [float("nan")], [1.0, 0.5]):
        with pytest.raises(RequestError, match="betas"):
            from_betas(betas)


def test_unknown_kinds_and_empty_schedules_are_refused():
    with pytest.raises(RequestError, match="unknown schedule 'cubic'"):
        make_schedule("cubic")
    with pytest.raises(RequestError, match="at least one timestep"):
        make_schedule("linear", 0)


@pytest.mark.parametrize("betas", [[1e-320] * 10, [1e-17, 0.1], [0.1, 1e-300]])
def test_a_schedule_that_does_not_fall_is_refused(betas):
    with pytest.raises(RequestError, match="does not fall"):
        from_betas(betas)
