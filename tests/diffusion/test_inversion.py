import math
from itertools import pairwise

import pytest
import torch
from gaussian import GaussianModel
from mixture import SHAPE, MixtureModel, image

import ddimctl
from ddimctl.api.sampling import invert, sample
from ddimctl.diffusion.float32 import ieee_float32
from ddimctl.diffusion.inversion import invert_steps
from ddimctl.diffusion.noise import seeded_noise
from ddimctl.diffusion.predictions import make_denoiser
from ddimctl.diffusion.sampling import trajectory
from ddimctl.diffusion.schedules import make_schedule
from ddimctl.diffusion.timesteps import KINDS, timesteps
from ddimctl.errors import DataError, NumericsError, RequestError

LEVEL = 2 / 255


def top_of(model, x_0, tau, **settings):
    """x_T in float64, which the latents round to float32."""
    return invert_steps(make_denoiser(model), x_0, model.schedule, tau, **settings).latents


@pytest.mark.parametrize("prediction", ["eps", "x_0", "v"])
def test_exact_inversion_is_decoded_to_the_image(prediction):
    for kind, S in (("linspace", 10), ("quadratic", 10), *((kind, 50) for kind in KINDS)):
        model, x_0 = MixtureModel(prediction=prediction), image(*range(20))
        tau = timesteps(kind, S)
        x_T = top_of(model, x_0, tau, tolerance=1e-10)
        torch.testing.assert_close(sample(model, x_T, timesteps=tau), x_0, rtol=0, atol=1e-6)


def test_the_latent_of_a_sample_is_the_noise_it_came_from():
    model, tau = GaussianModel(), timesteps("linspace", 20)
    x_T = seeded_noise(range(4), (1, 4, 4)).double()
    back = invert(model, sample(model, x_T, timesteps=tau), timesteps=tau, tolerance=1e-12)
    torch.testing.assert_close(back.latents.double(), x_T, rtol=0, atol=1e-6)


def test_every_step_up_undoes_the_step_down():
    """Adjacent pairs of one list: the end of each shorter way up is on the way down."""
    model, tau = MixtureModel(), timesteps("quadratic", 12)
    up = {tau[k - 1]: top_of(model, image(1), tau[:k], tolerance=1e-12) for k in range(1, 13)}
    down = list(trajectory(make_denoiser(model), up[tau[-1]], model.schedule, tau))
    assert [step.t for step in down] == list(reversed(tau))
    for step in down[:-1]:
        torch.testing.assert_close(step.x, up[step.t_next], rtol=0, atol=1e-7)


def test_the_error_of_the_naive_method_falls_with_first_order():
    model, x_0 = GaussianModel(), image(*range(4))
    errors = []
    for S in (25, 50, 100, 200):
        tau = timesteps("linspace", S)
        x_T = top_of(model, x_0, tau, method="naive")
        errors.append(float((sample(model, x_T, timesteps=tau) - x_0).abs().max()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(0.7 < order < 1.5 for order in orders), orders


def test_naive_takes_eps_at_the_level_it_comes_from():
    asked = []

    class Spy(MixtureModel):
        def network(self, x, t, labels=None):
            asked.append(int(t[0]))
            return super().network(x, t)

    invert(Spy(), image(0), timesteps=(3, 400, 999), method="naive")
    assert asked == [3, 3, 400]


def test_where_the_plain_iteration_diverges_the_accelerated_one_converges():
    model, x_0, tau = MixtureModel(deviation=0.02), image(0, 1, 2), timesteps("linspace", 20)
    plain = invert(model, x_0, timesteps=tau, method="fixed-point")
    exact = invert(model, x_0, timesteps=tau)
    assert float(plain.residuals.max()) > LEVEL
    assert float(exact.residuals.max()) <= 1e-6
    decoded = sample(model, exact.latents.double(), timesteps=tau)
    assert float((decoded - x_0).abs().max()) < LEVEL / 2


def test_the_plain_iteration_converges_where_steps_are_small():
    model, x_0, tau = GaussianModel(), image(0), timesteps("linspace", 200)
    plain = invert(model, x_0, timesteps=tau, method="fixed-point")
    assert float(plain.residuals.max()) <= 1e-6


@pytest.mark.parametrize("method", ["exact", "fixed-point", "naive"])
def test_evaluations_are_those_of_the_network(method):
    model, tau = MixtureModel(), timesteps("linspace", 10)
    found = invert(model, image(*range(5)), timesteps=tau, method=method)
    assert int(found.evaluations.sum()) == model.evaluations
    assert found.evaluations.shape == (5, 10)
    assert found.residuals.shape == (5, 10)
    assert int(found.evaluations.min()) >= 1
    if method == "naive":
        assert model.evaluations == 5 * 10
        assert bool(found.residuals.isnan().all())


@pytest.mark.parametrize("method", ["exact", "fixed-point"])
def test_batches_stay_full_until_an_image_is_done(method):
    """An image that has solved its step goes on with the next beside others still at theirs."""
    model, tau = MixtureModel(), timesteps("linspace", 20)
    found = invert(model, image(*range(5)), timesteps=tau, method=method)
    ends = found.evaluations.sum(1)
    assert len(set(ends.tolist())) > 1
    assert model.batches == [int((ends > done).sum()) for done in range(int(ends.max()))]


def test_progress_is_of_all_steps_of_all_images():
    model, tau = MixtureModel(), timesteps("linspace", 10)
    for method in ("exact", "naive"):
        told: list[int] = []
        invert_steps(
            make_denoiser(model),
            image(*range(5)),
            model.schedule,
            tau,
            method=method,
            on_step=told.append,
        )
        assert told == sorted(set(told))
        assert told[-1] == 50


def test_an_image_does_not_depend_on_its_company():
    tau, x_0 = timesteps("linspace", 20), image(*range(5))
    together = invert(MixtureModel(), x_0, timesteps=tau)
    for i in range(5):
        alone = invert(MixtureModel(), x_0[i : i + 1], timesteps=tau)
        torch.testing.assert_close(together.latents[i], alone.latents[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(together.evaluations[i], alone.evaluations[0])


def test_labels_stay_with_their_images_when_others_leave():
    class Labelled(GaussianModel):
        """An eps that depends on the label, and for higher ones is harder to invert."""

        def network(self, x, t, labels=None):
            return super().network(x, t) + 0.3 * labels.view(-1, 1, 1, 1) * (2 * x).sin()

    model, tau = Labelled(), timesteps("linspace", 20)
    x_0, labels = image(*range(3)), torch.tensor([2, 0, 1])
    found = invert(model, x_0, timesteps=tau, labels=labels)
    assert len(set(found.evaluations.sum(1).tolist())) > 1
    back = sample(model, found.latents.double(), timesteps=tau, labels=labels)
    torch.testing.assert_close(back, x_0, rtol=0, atol=1e-4)


def test_a_image_without_pre_image_ends_and_says_so():
    class Blind(GaussianModel):
        """Decodes everything to gray."""

        prediction = "x_0"

        def network(self, x, t, labels=None):
            return torch.zeros_like(x)

    found = invert(Blind(prediction="x_0"), image(0), timesteps=timesteps("linspace", 5))
    assert float(found.residuals.max()) > LEVEL
    assert int(found.evaluations.max()) <= 100


def test_latents_are_float32_and_found_in_inference_mode():
    found = ddimctl.invert(MixtureModel(), image(0).float(), timesteps=(0, 500, 999))
    assert found.latents.dtype == torch.float32
    assert found.latents.shape == (1, *SHAPE)
    assert not found.latents.requires_grad


def test_settings_that_cannot_be_are_refused():
    for settings, message in (
        ({"method": "edict"}, "unknown inversion method 'edict'"),
        ({"tolerance": 0.0}, "not above 0"),
        ({"tolerance": math.nan}, "tolerance must be a finite number"),
    ):
        with pytest.raises(RequestError, match=message):
            invert(MixtureModel(), image(0), timesteps=(0, 999), **settings)


def test_no_signal_at_the_top_is_refused_and_below_it_is_not():
    model = GaussianModel(make_schedule(rescale_zero_snr=True), "v")
    with pytest.raises(RequestError, match="zero terminal SNR"):
        invert(model, image(0), timesteps=(0, 500, 999))
    found = invert(model, image(0), timesteps=(0, 250, 500, 750, 998))
    assert found.latents.isfinite().all()


def test_a_image_that_is_not_finite_is_refused():
    x_0 = image(0, 1)
    x_0[1, 0, 0, 0] = math.nan
    with pytest.raises(DataError, match="not finite"):
        invert(MixtureModel(), x_0, timesteps=(0, 999))


def test_latents_that_are_not_finite_are_refused():
    class Broken(GaussianModel):
        def network(self, x, t, labels=None):
            return x * math.inf

    with pytest.raises(NumericsError, match="not finite"):
        invert(Broken(), image(0), timesteps=(0, 999), method="naive")


def test_float32_is_ieee_within_and_as_before_after():
    switches = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    with pytest.raises(KeyError), ieee_float32():
        assert {switch.fp32_precision for switch in switches} == {"ieee"}
        raise KeyError
    assert [switch.fp32_precision for switch in switches] == before
