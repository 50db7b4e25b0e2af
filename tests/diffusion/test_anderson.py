import pytest
import torch

from ddimctl.diffusion.anderson import (
    LIMIT,
    MEMORY,
    PATIENCE,
    Iterations,
    advance,
    begin,
)

STIFF = torch.diag(torch.tensor([0.2, 1.0, 3.0, 9.0], dtype=torch.float64))
WANTED = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.float64)


def solve(residual, start, slope, tolerance, memory=MEMORY):
    """The last state of each equation y - F(x) = residual(x, rows); those that are over leave."""
    state, rows = begin(start, torch.full((len(start),), slope).double(), memory), range(len(start))
    rows, ended = torch.tensor(rows), {}
    while len(rows):
        state, over = advance(state, residual(state.x, rows), tolerance)
        for i in over.nonzero().flatten().tolist():
            ended[int(rows[i])] = [each[i] for each in state]
        rows, state = rows[~over], Iterations(*(each[~over] for each in state))
    return Iterations(*map(torch.stack, zip(*(ended[i] for i in sorted(ended)), strict=True)))


def linear(x, rows):
    return WANTED[rows] - x @ STIFF


def test_a_linear_system_takes_about_as_many_evaluations_as_it_has_unknowns():
    found = solve(linear, torch.zeros(2, 4).double(), 1.0, 1e-9)
    torch.testing.assert_close(found.best @ STIFF, WANTED, rtol=0, atol=1e-9)
    assert int(found.evaluations.max()) <= 8
    assert float(found.residual.max()) <= 1e-9


def test_without_memory_it_is_the_plain_iteration():
    asked = []

    def halving(x, rows):
        asked.append(x.clone())
        return 0.5 * (1 - x)

    found = solve(halving, torch.zeros(1, 1).double(), 1.0, 0.01, memory=0)
    assert torch.cat(asked).flatten().tolist() == [1 - 0.5**k for k in range(len(asked))]
    assert found.best.item() == pytest.approx(1, abs=0.02)


def test_a_diverging_iteration_keeps_its_best_iterate():
    found = solve(linear, torch.zeros(2, 4).double(), 1.0, 1e-9, memory=0)
    expected = WANTED[torch.arange(2)].abs().amax(1)
    assert (found.residual <= expected).all()
    torch.testing.assert_close((WANTED - found.best @ STIFF).abs().amax(1), found.residual)
    assert int(found.evaluations.max()) <= PATIENCE + 5


def test_equations_that_are_done_are_not_asked_again():
    asked = []

    def residual(x, rows):
        asked.append(rows.tolist())
        return linear(x, rows)

    start = torch.stack((WANTED[0] @ STIFF.inverse(), torch.zeros(4).double()))
    found = solve(residual, start, 1.0, 1e-9)
    assert found.evaluations.tolist() == [1, len(asked)]
    assert all(rows == [1] for rows in asked[1:])


@pytest.mark.parametrize("memory", [0, 8])
def test_what_is_not_finite_ends_with_the_best_before_it(memory):
    calls = []

    def breaking(x, rows):
        calls.append(x)
        return torch.full_like(x, torch.nan) if len(calls) == 3 else linear(x, rows)

    found = solve(breaking, torch.zeros(2, 4).double(), 20.0, 1e-9, memory=memory)
    assert len(calls) == 3
    assert found.best.isfinite().all()
    assert found.residual.isfinite().all()


def test_an_equation_without_solution_ends_soon():
    found = solve(lambda x, rows: 1 + x**2, torch.ones(1, 1).double(), 1.0, 1e-9)
    assert int(found.evaluations) <= LIMIT
    assert float(found.residual) >= 1
