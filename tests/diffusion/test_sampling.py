import math
from itertools import pairwise, product

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from gaussian import GaussianModel, continuous_schedule

from ddimctl.api.sampling import sample
from ddimctl.diffusion.predictions import (
    Prediction,
    clip_prediction,
    convert_prediction,
    make_denoiser,
)
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import CLEAN, make_schedule
from ddimctl.diffusion.steps import ddim_step, sigma_eta, sigma_large, sigma_learned
from ddimctl.diffusion.timesteps import KINDS, timesteps
from ddimctl.errors import NumericsError, RequestError


def noisy(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_ddim_converges_to_the_exact_flow_with_first_order(prediction):
    """Halving the steps' length halves the error (stopped before alpha_bar = 1)."""
    x_T = noisy(4, 1, 2, 2)
    errors = []
    for steps in (25, 50, 100, 200, 400):
        schedule = continuous_schedule(steps)
        model = GaussianModel(schedule, prediction)
        walk = trajectory(make_denoiser(model), x_T, schedule, range(steps))
        last = [step for step in walk if step.t_next != CLEAN][-1]
        exact = model.exact_flow(x_T, schedule(steps - 1), schedule(0))
        errors.append(float((last.x - exact).abs().max()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(1, abs=0.05)
    assert all(0.8 < order < 1.2 for order in orders)


def test_eta_one_over_all_steps_is_the_ddpm_posterior():
    """Mean and variance of eq. 12 with sigma(1) equal Ho et al. 2020, eqs. 6 and 7."""
    schedule = make_schedule()
    x, x_0 = noisy(2, 1, 4, 4), noisy(2, 1, 4, 4, seed=1)
    for t in (1, 2, 10, 500, 999):
        a_t, a_prev = schedule(t), schedule(t - 1)
        beta = 1 - a_t / a_prev
        eps = (x - math.sqrt(a_t) * x_0) / math.sqrt(1 - a_t)
        sigma = sigma_eta(a_t, a_prev, 1.0)
        mean = (math.sqrt(a_prev) * beta * x_0 + math.sqrt(1 - beta) * (1 - a_prev) * x) / (1 - a_t)
        torch.testing.assert_close(ddim_step(x_0, eps, a_prev, sigma), mean, rtol=1e-9, atol=1e-9)
        assert sigma**2 == pytest.approx(beta * (1 - a_prev) / (1 - a_t), rel=1e-9)
        assert sigma_large(a_t, a_prev) ** 2 == pytest.approx(beta, rel=1e-9)


def test_every_eta_keeps_the_marginals():
    """Lemma 1: with the true x_0, x_t has mean sqrt(alpha_bar) x_0 and variance 1 - alpha_bar."""
    for eta in (0.0, 0.5, 1.0):
        schedule, x_0, tau = make_schedule(), 0.7, (0, 100, 400, 999)
        mean, variance = math.sqrt(schedule(999)) * x_0, 1 - schedule(999)
        for t, t_next in zip(tau[::-1], tau[-2::-1], strict=False):
            a, b = schedule(t), schedule(t_next)
            sigma = sigma_eta(a, b, eta)
            slope = math.sqrt((1 - b - sigma**2) / (1 - a))  # of the step in x, given x_0
            mean = math.sqrt(b) * x_0 + slope * (mean - math.sqrt(a) * x_0)
            variance = slope**2 * variance + sigma**2
        assert mean == pytest.approx(math.sqrt(schedule(0)) * x_0, rel=1e-9)
        assert variance == pytest.approx(1 - schedule(0), rel=1e-9)


def test_trajectories_agree_with_an_independent_first_order_solver():
    """diffusers' DPMSolver++ of order 1 is DDIM and takes any list of timesteps."""

    class Wavy(GaussianModel):  # not the ideal eps, whose error their float32 would amplify
        def network(self, x, t, labels=None):
            return (3 * x + t.view(-1, 1, 1, 1)).sin()

    model, x_T = Wavy(), noisy(2, 3, 4, 4)
    for kind, S in product(KINDS, (1, 2, 7, 20, 333)):
        tau = timesteps(kind, S, 1000)
        ours = sample(model, x_T, timesteps=tau)
        solver = DPMSolverMultistepScheduler(
            solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )
        solver.set_timesteps(timesteps=list(reversed(tau)))
        x = x_T
        for t in solver.timesteps:
            x = solver.step(model.network(x, t.repeat(2)), t, x).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5 * float(x.abs().max()))


def test_the_step_walks_up_as_it_walks_down():
    schedule = make_schedule()
    x, eps = noisy(1, 1, 4, 4), noisy(1, 1, 4, 4, seed=1)
    low, high = schedule(100), schedule(500)
    up = ddim_step(convert_prediction(eps, x, low, "eps").x_0, eps, high)
    down = ddim_step(convert_prediction(eps, up, high, "eps").x_0, eps, low)
    torch.testing.assert_close(down, x)


def test_predictions_describe_the_same_x():
    for prediction in ("eps", "x_0", "v"):
        x_0, eps, alpha_bar = noisy(2, 1, 4, 4), noisy(2, 1, 4, 4, seed=1), 0.3
        signal, noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        x = signal * x_0 + noise * eps
        output = {"eps": eps, "x_0": x_0, "v": signal * eps - noise * x_0}[prediction]
        found = convert_prediction(output, x, alpha_bar, prediction)
        torch.testing.assert_close(found.x_0, x_0)
        torch.testing.assert_close(found.eps, eps)


def test_zero_snr_works_where_the_prediction_determines_x_0():
    for prediction in ("x_0", "v"):
        model = GaussianModel(make_schedule(rescale_zero_snr=True), prediction)
        x = sample(model, noisy(2, 1, 4, 4), timesteps=timesteps("linspace", 50))
        assert x.isfinite().all()


def test_zero_snr_with_eps_is_refused_with_the_reason():
    model = GaussianModel(make_schedule(rescale_zero_snr=True))
    with pytest.raises(RequestError, match="zero terminal SNR"):
        sample(model, noisy(2, 1, 4, 4), timesteps=timesteps("linspace", 50))


def test_static_clipping_holds_x_0_and_derives_eps_again():
    x_0, eps, alpha_bar = 3 * noisy(2, 1, 4, 4), noisy(2, 1, 4, 4, seed=1), 0.3
    x = math.sqrt(alpha_bar) * x_0 + math.sqrt(1 - alpha_bar) * eps
    found = clip_prediction(Prediction(x_0, eps), x, alpha_bar, "static")
    assert float(found.x_0.abs().max()) <= 1
    again = math.sqrt(alpha_bar) * found.x_0 + math.sqrt(1 - alpha_bar) * found.eps
    torch.testing.assert_close(again, x)


def test_dynamic_clipping_scales_each_image_by_its_own_quantile():
    calm, wild = 0.5 * torch.ones(1, 1, 20, 20), torch.linspace(-4, 4, 400).view(1, 1, 20, 20)
    x_0 = torch.cat((calm, wild)).double()
    found = clip_prediction(Prediction(x_0, x_0), x_0, 0.5, "dynamic")
    torch.testing.assert_close(found.x_0[0], x_0[0])
    bound = torch.quantile(x_0[1].abs(), 0.995)
    torch.testing.assert_close(found.x_0[1], x_0[1].clamp(-bound, bound) / bound)


def test_learned_variance_spans_the_two_bounds_of_the_step():
    a, b = 0.3, 0.5
    low = sigma_learned(torch.tensor(-1.0), a, b)
    high = sigma_learned(torch.tensor(1.0), a, b)
    assert float(low) == pytest.approx(sigma_eta(a, b, 1.0), rel=1e-6)
    assert float(high) == pytest.approx(sigma_large(a, b), rel=1e-6)
    middle = sigma_learned(torch.tensor(0.0), a, b)
    assert float(middle) == pytest.approx(math.sqrt(float(low) * float(high)), rel=1e-6)


@pytest.mark.parametrize("variance", ["eta", "large"])
def test_noise_is_asked_for_by_timestep_and_never_in_the_last_step(variance):
    asked = []

    def noise(t, x):
        asked.append(t)
        return torch.zeros_like(x)

    x_T, settings = noisy(1, 1, 2, 2), {"eta": 1.0, "variance": variance, "noise": noise}
    sample(GaussianModel(), x_T, timesteps=(0, 250, 500, 999), **settings)
    assert asked == [999, 500, 250]


def test_large_variance_keeps_the_mean_of_eta_one():
    model, x_T, tau = GaussianModel(), noisy(1, 1, 2, 2), (0, 500, 999)
    still = [
        sample(model, x_T, timesteps=tau, eta=1.0, variance=v, noise=lambda t, x: 0 * x)
        for v in ("eta", "large")
    ]
    assert torch.equal(*still)
    moved = sample(
        model, x_T, timesteps=tau, eta=1.0, variance="large", noise=lambda t, x: torch.ones_like(x)
    )
    assert not torch.equal(moved, still[0])


def test_settings_that_cannot_be_are_refused_with_the_reason():
    for settings, message in (
        ({"eta": 1.5}, "between 0 and 1"),
        ({"eta": -0.1}, "between 0 and 1"),
        ({"eta": float("nan")}, "eta must be a finite number"),
        ({"eta": 0.5, "variance": "large"}, "requires eta = 1"),
        ({"eta": 1.0, "variance": "learned"}, "no learned variance"),
        ({"eta": 1.0, "variance": "huge"}, "unknown variance"),
        ({"eta": 1.0}, "adds noise in each step"),
        ({"clip": "hard"}, "unknown clipping"),
        ({"guidance": 2.0}, "null class"),
    ):
        with pytest.raises(RequestError, match=message):
            sample(GaussianModel(), noisy(1, 1, 2, 2), timesteps=(0, 999), **settings)


class Overflowing(GaussianModel):
    def network(self, x, t, labels=None):
        return torch.full_like(x, math.inf)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(NumericsError, match="not finite"):
        sample(Overflowing(), noisy(1, 1, 2, 2), timesteps=(0, 999))


class Labelled(GaussianModel):
    """Predicts its label; the null class is 9. Counts calls and remembers the batch."""

    null_class = 9
    batches: tuple[int, ...] = ()

    def network(self, x, t, labels=None):
        self.batches = (*self.batches, len(x))
        return labels.to(x.dtype).view(-1, 1, 1, 1).expand_as(x)


def test_guidance_extrapolates_from_the_null_class_in_one_batch():
    model = Labelled(null_class=9)
    x, labels = noisy(2, 1, 2, 2), torch.tensor([1, 4])
    found = make_denoiser(model, guidance=3.0)(x, 500, labels)
    torch.testing.assert_close(found.eps[:, 0, 0, 0], torch.tensor([9.0 - 24, 9.0 - 15]).double())
    assert model.batches == (4,)
    plain = make_denoiser(model)(x, 500, labels)
    torch.testing.assert_close(plain.eps[:, 0, 0, 0], torch.tensor([1.0, 4.0]).double())


def test_learned_variance_is_split_off_and_used():
    class Learned(GaussianModel):
        learned_variance = True

        def network(self, x, t, labels=None):
            return torch.cat((super().network(x, t), -torch.ones_like(x)), dim=1)

    x_T, tau = noisy(1, 1, 2, 2), (0, 500, 999)
    settings = {"timesteps": tau, "eta": 1.0, "noise": lambda t, x: torch.ones_like(x)}
    # -1 is the lower bound, the variance of eta = 1
    learned = sample(Learned(learned_variance=True), x_T, variance="learned", **settings)
    torch.testing.assert_close(learned, sample(GaussianModel(), x_T, **settings))
