from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ddimctl.errors import DataError
from ddimctl.metrics import inception_distances
from ddimctl.metrics.inception_distances import (
    frechet_distance,
    kernel_distance,
    mean_and_covariance,
)

RECORDED = Path(__file__).parent.parent / "data" / "features.safetensors"


def gaussian(vectors):
    exact = vectors.double()
    return mean_and_covariance(len(exact), exact.sum(0), exact.T @ exact)


def random(count, dimensions, seed):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def recorded():
    """Two sets of 120 vectors, and what torch-fidelity 0.4.0's own functions say of them."""
    with safe_open(RECORDED, framework="pt") as file:
        return file.get_tensor("first"), file.get_tensor("second"), file.metadata()


def test_frechet_distance_agrees_with_torch_fidelity(recorded):
    first, second, said = recorded
    assert frechet_distance(*gaussian(first), *gaussian(second)) == pytest.approx(
        float(said["fid"]), rel=1e-6
    )


def test_kernel_distance_agrees_with_torch_fidelity(recorded):
    first, second, said = recorded
    mean, deviation = kernel_distance(first, second)
    assert mean == pytest.approx(float(said["kid"]), rel=1e-6)
    assert deviation < 1e-9  # every subset is the whole


def test_mean_and_covariance_are_those_of_the_vectors():
    vectors = random(50, 6, 0).double() + 3
    mean, covariance = gaussian(vectors)
    assert torch.allclose(mean, vectors.mean(0))
    assert torch.allclose(covariance, vectors.T.cov())
    with pytest.raises(DataError, match="two"):
        gaussian(vectors[:1])


def test_gaussians_that_commute_have_a_closed_form():
    """Diagonal covariances: |m - n|^2 + sum (s - r)^2."""
    m, n = torch.tensor([1.0, 2, 3]).double(), torch.tensor([0.0, 4, 3]).double()
    s, r = torch.tensor([1.0, 2, 0]).double(), torch.tensor([3.0, 2, 1]).double()
    turn = torch.linalg.qr(random(3, 3, 1).double()).Q
    found = frechet_distance(m, turn * s**2 @ turn.T, n, turn * r**2 @ turn.T)
    assert found == pytest.approx(5 + 4 + 0 + 1, abs=1e-7)


def test_frechet_distance_is_symmetric_and_zero_for_one_set():
    a, b = gaussian(random(40, 5, 0)), gaussian(random(60, 5, 1) * 2 + 1)
    assert frechet_distance(*a, *b) == pytest.approx(frechet_distance(*b, *a), rel=1e-10)
    assert frechet_distance(*a, *a) == pytest.approx(0, abs=1e-9)


def test_fewer_vectors_than_dimensions_are_no_trouble():
    """The cross term equals the nuclear norm of the product of the centred sets."""
    a, b = random(10, 40, 0).double(), random(12, 40, 1).double() + 0.5
    x, y = a - a.mean(0), b - b.mean(0)
    cross = torch.linalg.svdvals(x @ y.T / (9 * 11) ** 0.5).sum()
    traces = x.square().sum() / 9 + y.square().sum() / 11
    expected = (a.mean(0) - b.mean(0)).square().sum() + traces - 2 * cross
    found = frechet_distance(*gaussian(a), *gaussian(b))
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_kernel_distance_is_the_mean_over_all_pairs(monkeypatch):
    """The definition, written out: no vector is compared with itself."""
    x, y = random(6, 4, 0).double(), random(6, 4, 1).double() + 1

    def kernel(a, b):
        return float((a @ b / 4 + 1) ** 3)

    pairs = [(i, j) for i in range(6) for j in range(6)]
    within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j) / 30
    between = sum(kernel(x[i], y[j]) for i, j in pairs) / 36
    assert kernel_distance(x, y)[0] == pytest.approx(within - 2 * between, rel=1e-10)


def test_kernel_distance_is_unbiased_and_repeatable(monkeypatch):
    monkeypatch.setattr(inception_distances, "SUBSET_SIZE", 50)
    a, b, other = random(600, 8, 0), random(500, 8, 1), random(500, 8, 2) * 1.5
    mean, deviation = kernel_distance(a, b)
    assert abs(mean) < 3 * deviation / 10 + 0.05
    assert deviation > 0
    torch.manual_seed(5)
    assert kernel_distance(a, b) == (mean, deviation)
    assert kernel_distance(a, other)[0] > 10 * abs(mean)
    with pytest.raises(DataError, match="two"):
        kernel_distance(a, b[:1])
