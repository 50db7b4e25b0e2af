import math
from itertools import pairwise, product

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, IPNDMScheduler
from gaussian import GaussianModel, continuous_schedule

from ddimctl.api.sampling import sample
from ddimctl.diffusion.multistep import SOLVERS, make_correction
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import CLEAN, make_schedule
from ddimctl.diffusion.timesteps import KINDS, timesteps
from ddimctl.errors import RequestError

MULTISTEP = [solver for solver in SOLVERS if solver != "ddim"]


def noisy(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Wavy(GaussianModel):
    """Bounded, and curved everywhere: not the ideal network, whose errors float32 would amplify."""

    def network(self, x, t, labels=None):
        return (3 * x + t.view(-1, 1, 1, 1)).sin()


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
@pytest.mark.parametrize("solver", MULTISTEP)
def test_converges_to_the_exact_flow_with_second_order(solver, prediction):
    """Halving the steps' length quarters the error (stopped before alpha_bar = 1)."""
    x_T = noisy(4, 1, 2, 2)
    errors = []
    for steps in (100, 200, 400, 800, 1600):
        schedule = continuous_schedule(steps)
        model = GaussianModel(schedule, prediction)
        walk = trajectory(make_denoiser(model), x_T, schedule, range(steps), solver=solver)
        last = [step for step in walk if step.t_next != CLEAN][-1]
        exact = model.exact_flow(x_T, schedule(steps - 1), schedule(0))
        errors.append(float((last.x - exact).abs().max()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(2, abs=0.1)


def test_ten_steps_come_nearer_than_twenty_of_ddim():
    x_T = noisy(4, 1, 2, 2)

    def error(solver, steps):
        schedule = continuous_schedule(steps)
        model = GaussianModel(schedule)
        walk = trajectory(make_denoiser(model), x_T, schedule, range(steps), solver=solver)
        last = [step for step in walk if step.t_next != CLEAN][-1]
        return float((last.x - model.exact_flow(x_T, schedule(steps - 1), schedule(0))).abs().max())

    for solver in MULTISTEP:
        assert error(solver, 10) < error("ddim", 20) / 3


def test_dpm_agrees_with_an_independent_solver():
    model, x_T = Wavy(), noisy(2, 3, 4, 4)
    for kind, S in product(KINDS, (1, 2, 7, 20, 333)):
        tau = timesteps(kind, S, 1000)
        ours = sample(model, x_T, timesteps=tau, solver="dpm++2m")
        solver = DPMSolverMultistepScheduler(
            solver_order=2,
            algorithm_type="dpmsolver++",
            solver_type="midpoint",
            final_sigmas_type="zero",
        )
        solver.set_timesteps(timesteps=list(reversed(tau)))
        x = x_T
        for t in solver.timesteps:
            x = solver.step(model.network(x, t.repeat(2)), t, x).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_ipndm_agrees_with_an_independent_solver():
    """diffusers' takes a v-prediction, and any levels as its betas, here sqrt(1 - alpha_bar)."""
    schedule, x_T = make_schedule(), noisy(2, 3, 4, 4)
    model = Wavy(schedule, "v")
    for kind, S in product(KINDS, (1, 2, 3, 7, 20)):
        tau = timesteps(kind, S, 1000)
        ours = sample(model, x_T, timesteps=tau, solver="ipndm")
        levels = [math.sqrt(1 - schedule(t)) for t in reversed(tau)]
        solver = IPNDMScheduler(trained_betas=[*levels, 0.0])
        solver.set_timesteps(S)
        x = x_T
        for t, theirs in zip(reversed(tau), solver.timesteps, strict=True):
            solver.ets = solver.ets[-2:]  # theirs goes on to an average of four
            output = model.network(x, torch.tensor([t, t]))
            x = solver.step(output, theirs, x).prev_sample
        # float32 betas leave few digits of the signal at the noisy end
        torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))


@pytest.mark.parametrize("solver", MULTISTEP)
def test_the_first_step_is_ddims_own(solver):
    for tau in ((999,), (600,)):
        model, x_T = Wavy(), noisy(2, 3, 4, 4)
        assert torch.equal(
            sample(model, x_T, timesteps=tau, solver=solver), sample(model, x_T, timesteps=tau)
        )
        of_two, ddim = (
            next(trajectory(make_denoiser(model), x_T, model.schedule, (0, *tau), solver=each))
            for each in (solver, "ddim")
        )
        assert torch.equal(of_two.x, ddim.x)


def test_constant_predictions_need_no_correction():
    """Where the network says the same at all levels, DDIM is exact, and the past adds nothing."""
    found = make_denoiser(GaussianModel())(noisy(1, 1, 2, 2), 500)
    for solver in MULTISTEP:
        correct = make_correction(solver)
        for level, level_next in pairwise((0.1, 0.2, 0.4, 0.8, 0.9, 1.0)):
            added = correct(found, level, level_next)
            torch.testing.assert_close(torch.as_tensor(added) + found.x_0, found.x_0)


@pytest.mark.parametrize("solver", MULTISTEP)
def test_zero_snr_works_where_the_prediction_determines_x_0(solver):
    for prediction in ("x_0", "v"):
        model = GaussianModel(make_schedule(rescale_zero_snr=True), prediction)
        x_T = noisy(2, 1, 4, 4)
        tau = timesteps("linspace", 50)
        x = sample(model, x_T, timesteps=tau, solver=solver)
        assert x.isfinite().all()
        # all of the flow, to the data's own deviation; with endless steps at its ends
        torch.testing.assert_close(x, model.deviation * x_T, rtol=0.1, atol=0)


def test_an_image_does_not_depend_on_its_company():
    for solver in MULTISTEP:
        model, x_T, tau = Wavy(), noisy(5, 3, 4, 4), timesteps("linspace", 7)
        together = sample(model, x_T, timesteps=tau, solver=solver)
        alone = sample(model, x_T[3:4], timesteps=tau, solver=solver)
        torch.testing.assert_close(together[3:4], alone)


def test_solvers_go_on_with_clipped_predictions():
    """Of a held x_0 that stays where it is, nothing is left to extrapolate: the end is that x_0."""

    class Loud(GaussianModel):
        def network(self, x, t, labels=None):
            return torch.full_like(x, 7.0)

    model, x_T = Loud(prediction="x_0"), noisy(1, 1, 4, 4)
    for solver, clip in product(MULTISTEP, ("static", "dynamic")):
        x = sample(model, x_T, timesteps=(0, 500, 999), clip=clip, solver=solver)
        assert float(x.min()) == pytest.approx(1) == float(x.max())


def test_settings_that_cannot_be_are_refused_with_the_reason():
    for settings, message in (
        ({"solver": "heun"}, "unknown solver 'heun'"),
        ({"solver": "ipndm", "eta": 0.5}, "but eta 0.5 adds noise"),
        ({"solver": "dpm++2m", "eta": 1.0, "variance": "large"}, "but variance large adds noise"),
    ):
        with pytest.raises(RequestError, match=message):
            sample(GaussianModel(), noisy(1, 1, 2, 2), timesteps=(0, 999), **settings)
