"""The closed form (Eq. 4, 14)."""

from __future__ import annotations

import mpmath
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ece.errors import UserError
from ece.models import LowRank
from ece.update.solve import least_squares, positive_solve, reduced, shrunk
from ece.update.symmetric import Symmetric

quick = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = st.tuples(st.integers(2, 12), st.integers(1, 6), st.integers(1, 7), st.integers(0, 10_000))


def problem(d_ff: int, d_model: int, facts: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """C, K1 (facts are rows), R (facts are rows)."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(3 * d_ff, d_ff, generator=generator, dtype=torch.float64)
    keys = torch.randn(facts, d_ff, generator=generator)
    return text.T @ text / 4, keys, torch.randn(facts, d_model, generator=generator)


def dense(change: LowRank, d_ff: int) -> Tensor:
    total = torch.zeros(change.left.shape[0], d_ff, dtype=torch.float64)
    change.add_to(total)
    return total


@quick
@given(SHAPES)
def test_equals_the_papers_formula(shape: tuple[int, int, int, int]):
    kept, keys, residuals = problem(*shape)
    change = least_squares(kept, keys, residuals, torch.arange(shape[0]))
    wanted = torch.from_numpy(reference.least_squares(kept, keys.T, residuals.T))
    torch.testing.assert_close(dense(change, shape[0]), wanted, rtol=1e-4, atol=1e-6)


@quick
@given(SHAPES, st.data())
def test_normal_equations_hold_and_only_selected_neurons_change(shape: tuple[int, int, int, int], data: st.DataObject):
    kept, keys, residuals = problem(*shape)
    inside = sorted(data.draw(st.sets(st.integers(0, shape[0] - 1), min_size=1)))
    total = dense(least_squares(kept, keys, residuals, torch.tensor(inside)), shape[0])
    outside = [k for k in range(shape[0]) if k not in inside]
    assert (total[:, outside] == 0).all()
    k1 = keys.double()[:, inside].T
    left = total[:, inside] @ (kept[inside][:, inside] + k1 @ k1.T)
    torch.testing.assert_close(left, residuals.double().T @ k1.T, rtol=1e-4, atol=1e-5)


def test_minimises_the_penalised_squares():
    kept, keys, residuals = problem(8, 4, 3, seed=1)
    best = dense(least_squares(kept, keys, residuals, torch.arange(8)), 8)

    def objective(delta: Tensor) -> float:
        return float((delta @ keys.double().T - residuals.double().T).pow(2).sum() + (delta @ kept * delta).sum())

    for seed in range(5):
        nudge = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert objective(best) < objective(best + 1e-2 * nudge)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_best_change_of_a_lower_rank(rank: int):
    kept, keys, residuals = problem(8, 5, 6, seed=6)
    neurons = torch.tensor([0, 1, 3, 4, 6, 7])
    solved = least_squares(kept, keys, residuals, neurons)
    found = reduced(solved, keys, rank)
    assert found.left.shape == (5, rank)
    chosen = keys.double()[:, neurons]
    system = kept[neurons][:, neurons].double() + chosen.T @ chosen
    wanted = reference.of_rank(solved.left.double() @ solved.right.double(), system, rank)
    assert reference.relative(found.left.double() @ found.right.double(), wanted) < 1e-5


def test_a_change_of_low_rank_stays_as_it_is():
    kept, keys, residuals = problem(8, 5, 3, seed=6)
    solved = least_squares(kept, keys, residuals, torch.arange(8))
    assert reduced(solved, keys, 3) is solved


def ill_conditioned(n: int, aligned: bool) -> Tensor:
    """A positive matrix with one eigenvalue 1e8 times the others."""
    basis = torch.eye(n, dtype=torch.float64)
    if not aligned:
        basis = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    values = torch.linspace(1, 2, n, dtype=torch.float64)
    values[0] = 1e8
    matrix = basis * values @ basis.T
    return (matrix + matrix.T) / 2


def exact_solution(matrix: Tensor, right: Tensor) -> Tensor:
    with mpmath.workdps(50):
        solution = mpmath.lu_solve(mpmath.matrix(matrix.tolist()), mpmath.matrix(right.tolist()))
        return torch.tensor([float(x) for x in solution], dtype=torch.float64)


@pytest.mark.parametrize("aligned", [True, False])
def test_one_huge_eigenvalue_does_not_drown_the_others(aligned: bool):
    matrix = ill_conditioned(10, aligned)
    right = torch.randn(10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = positive_solve(matrix, right[:, None])[:, 0]
    assert reference.relative(found, exact_solution(matrix, right)) < (1e-14 if aligned else 1e-7)


def test_rows_of_very_different_scale():
    """One neuron's activations are 1e6 times the others': scaled to a unit diagonal this is a benign system."""
    kept, _, _ = problem(10, 1, 1, seed=5)
    scale = torch.logspace(0, 6, 10, dtype=torch.float64)
    matrix = kept * scale[:, None] * scale
    right = torch.randn(10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found, wanted = positive_solve(matrix, right[:, None])[:, 0], exact_solution(matrix, right)
    assert ((found - wanted) / wanted).abs().max() < 1e-11


def test_a_silent_neuron_stays_as_it_is():
    kept, keys, residuals = problem(6, 3, 2, seed=2)
    kept[2] = kept[:, 2] = 0
    keys[:, 2] = 0
    total = dense(least_squares(kept, keys, residuals, torch.arange(6)), 6)
    assert (total[:, 2] == 0).all()
    others = [0, 1, 3, 4, 5]
    wanted = reference.least_squares(kept[others][:, others], keys[:, others].T, residuals.T)
    torch.testing.assert_close(total[:, others], torch.from_numpy(wanted), rtol=1e-5, atol=1e-6)


def test_semi_definite_systems_are_solved():
    keys = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    residuals = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    total = dense(least_squares(torch.zeros(6, 6), keys, residuals, torch.arange(6)), 6)
    torch.testing.assert_close(total @ keys.double().T, residuals.double().T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("broken", ["keys", "residuals", "kept"])
def test_what_is_not_finite_is_refused(broken: str):
    kept, keys, residuals = problem(5, 3, 2, seed=0)
    {"keys": keys, "residuals": residuals, "kept": kept}[broken][0, 0] = float("nan")
    with pytest.raises(UserError):
        least_squares(kept, keys, residuals, torch.arange(5))


def test_an_indefinite_matrix_is_refused():
    with pytest.raises(UserError):
        positive_solve(torch.tensor([[1.0, 5.0], [5.0, 1.0]], dtype=torch.float64), torch.ones(2, 1).double())


@pytest.mark.parametrize("sizes", [[3, 4], [1, 1, 1, 5], [2, 2, 2]])
def test_batches_with_history_equal_one_solve(sizes: list[int]):
    """With fixed keys and all neurons, sequential least squares is recursive least squares."""
    d_ff, facts = 20, sum(sizes)
    kept, keys, values = problem(d_ff, 6, facts, seed=9)
    neurons = torch.arange(d_ff)
    weight = torch.randn(6, d_ff, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    once = least_squares(kept, keys, values - (keys.double() @ weight.T).float(), neurons)

    edited, history = weight.clone(), kept.clone()
    for some, wanted in zip(keys.split(sizes), values.split(sizes), strict=True):
        residual = wanted.double() - some.double() @ edited.T
        edited += dense(least_squares(history, some, residual, neurons), d_ff)
        history += some.double().T @ some.double()
    torch.testing.assert_close(edited - weight, dense(once, d_ff), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("amount", [0.0, 0.1, 1.0])
def test_shrinking_keeps_the_diagonal_and_scales_the_rest(amount: float):
    moment = problem(4, 3, 2, seed=1)[0].float()
    found = shrunk(moment, amount)
    assert found.dtype == torch.float64
    for i in range(4):
        for j in range(4):
            wanted = moment[i, j].item() * (1 if i == j else 1 - amount)
            assert found[i, j].item() == pytest.approx(wanted, rel=1e-9)


@quick
@given(st.integers(1, 12), st.integers(0, 10_000))
def test_a_symmetric_matrix_is_kept_in_half_the_memory(n: int, seed: int):
    rows = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = Symmetric.of(rows + rows.T)
    assert torch.equal(kept.whole(), rows + rows.T)
    assert sum(part.numel() for part in vars(kept).values()) <= (n + 1) ** 2 / 2 + n / 2
    assert all(part.untyped_storage().nbytes() == 8 * part.numel() for part in vars(kept).values())
