import math

import pytest
import torch
from gaussian import GaussianModel

from ddimctl.api.sampling import sample
from ddimctl.diffusion.multistep import SOLVERS
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.diffusion.tau_search import (
    FINE,
    Probe,
    check_search,
    choose_timesteps,
    probe,
    probe_evaluations,
    search_timesteps,
)
from ddimctl.diffusion.timesteps import timesteps
from ddimctl.errors import NumericsError, RequestError


def noisy(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probe_of(model, x_T, batch_size=4, on_step=None):
    return probe(
        make_denoiser(model),
        model.schedule,
        lambda images: (x_T[images.start : images.stop], None),
        len(x_T),
        batch_size,
        on_step,
    )


@pytest.fixture(scope="module")
def gaussian() -> tuple[GaussianModel, torch.Tensor, Probe]:
    model, x_T = GaussianModel(make_schedule("cosine")), noisy(8, 1, 4, 4)
    return model, x_T, probe_of(model, x_T)


def test_a_survey_asks_as_often_as_it_says():
    x_T = noisy(5, 1, 2, 2)
    told: list[int] = []
    probe_of(GaussianModel(), x_T, batch_size=2, on_step=told.append)
    assert told == list(range(1, 3 * probe_evaluations(1000) + 1))


def test_the_response_is_the_networks_derivative(gaussian):
    """For Gaussian data x_0 = sqrt(alpha_bar) s^2 / variance x, at every level."""
    model, _, found = gaussian
    for t, response in zip(found.timesteps, found.response.tolist(), strict=True):
        level = model.schedule(t)
        exact = math.sqrt(level) * model.deviation**2 / model.variance(level)
        if 100 < t < 900:  # patches, it bends between the levels that the coarse walk saw
            assert response == pytest.approx(exact, rel=0.02)


def test_products_are_means_of_the_fine_walk(gaussian):
    model, x_T, found = gaussian
    N, top = len(found.timesteps), found.timesteps[-1]
    assert found.timesteps == timesteps("linspace", FINE)
    eps = make_denoiser(model)(x_T, top, None).eps
    assert float(found.products[2 * N - 1, 2 * N - 1]) == pytest.approx(float((eps**2).mean()))
    torch.testing.assert_close(found.products, found.products.T)


def test_batches_make_no_difference(gaussian):
    model, x_T, found = gaussian
    again = probe_of(model, x_T, batch_size=3)
    torch.testing.assert_close(again.products, found.products)
    torch.testing.assert_close(again.response, found.response)


@pytest.mark.parametrize("solver", SOLVERS)
def test_chosen_timesteps_end_nearer_than_every_plain_kind(gaussian, solver):
    model, x_T, found = gaussian
    reference = sample(model, x_T, timesteps=timesteps("linspace", 1000))

    def distance(tau):
        return float((sample(model, x_T, timesteps=tau, solver=solver) - reference).norm())

    for S in (3, 5, 8):
        chosen = choose_timesteps(found, model.schedule, S, solver)
        assert len(chosen) == S
        assert chosen[-1] == 999
        assert list(chosen) == sorted(set(chosen))
        plain = [distance(timesteps(kind, S)) for kind in ("linspace", "trailing")]
        assert distance(chosen) < min(plain) / (1.2 if solver == "ddim" or S == 3 else 3)


def test_the_choice_is_the_solvers_own(gaussian):
    model, _, found = gaussian
    chosen = {solver: choose_timesteps(found, model.schedule, 6, solver) for solver in SOLVERS}
    assert len(set(chosen.values())) == len(SOLVERS)


def test_a_search_of_a_model_and_latents_is_survey_and_choice(gaussian):
    model, x_T, found = gaussian
    for solver in SOLVERS:
        chosen = search_timesteps(model, x_T, steps=6, solver=solver, batch_size=3)
        assert chosen == choose_timesteps(found, model.schedule, 6, solver)


def test_a_search_asks_with_its_labels_guidance_and_clip():
    class Labelled(GaussianModel):
        def network(self, x, t, labels=None):
            asked.append(labels.tolist())
            return super().network(x, t, None)

    asked = []
    labels = torch.tensor([3, 1, 4])
    search_timesteps(
        Labelled(null_class=9),
        noisy(3, 1, 2, 2),
        steps=2,
        labels=labels,
        guidance=2.0,
        batch_size=2,
    )
    flat = [sorted(set(batch) - {9}) for batch in asked]
    N = probe_evaluations(1000)
    assert [batch for batch in flat if batch] == N * [[1, 3]] + N * [[4]]
    assert any(9 in batch for batch in asked)
    with pytest.raises(RequestError, match="unknown clipping"):
        search_timesteps(GaussianModel(), noisy(1, 1, 2, 2), steps=2, clip="hard")
    with pytest.raises(RequestError, match="too few for --steps 51"):
        search_timesteps(GaussianModel(), noisy(1, 1, 2, 2), steps=51)
    with pytest.raises(RequestError, match="solver"):
        search_timesteps(GaussianModel(), noisy(1, 1, 2, 2), steps=2, solver="heun")


def test_one_step_leaves_no_choice(gaussian):
    model, _, found = gaussian
    assert choose_timesteps(found, model.schedule, 1, "ddim") == (999,)


def test_more_steps_than_there_is_choice_are_refused():
    for steps, T in ((0, 1000), (51, 1000), (6, 10)):
        with pytest.raises(RequestError, match="too few for --steps"):
            check_search(steps, T)


def test_a_network_that_is_not_finite_is_refused():
    class Broken(GaussianModel):
        def network(self, x, t, labels=None):
            return torch.full_like(x, math.nan)

    with pytest.raises(NumericsError, match="not finite"):
        probe_of(Broken(), noisy(2, 1, 2, 2))
