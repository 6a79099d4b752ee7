"""The papers' solves, restraints and spreads, against direct transcriptions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ece.errors import UserError
from ece.models import LowRank
from ece.update.after import AsSolved, Prune, Rect, combined
from ece.update.solve import least_squares
from ece.update.solvers import Equality, LeastSquares, NullSpace, Solve, Writing
from ece.update.spread import Rounds, Spread, in_common

quick = settings(max_examples=30, deadline=None, derandomize=True)
D_FF, D_MODEL, FACTS = 14, 6, 4
SEEDS = st.integers(0, 10_000)


def writing(seed: int = 0, *, used: int = D_FF, neurons: Tensor | None = None) -> Writing:
    """A layer whose ordinary keys use only so many directions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    text = normal(60, used) @ normal(used, D_FF)
    ordinary = text.T @ text / len(text)
    earlier = normal(3, D_FF)
    kept = 5 * ordinary + earlier.T @ earlier
    keys, bare = normal(FACTS, D_FF), normal(FACTS, D_FF)
    neurons = torch.arange(D_FF) if neurons is None else neurons
    return Writing(keys, bare, normal(FACTS, D_MODEL), neurons, kept, ordinary)


def dense(change: LowRank) -> Tensor:
    total = torch.zeros(D_MODEL, D_FF, dtype=torch.float64)
    change.add_to(total)
    return total


def close(found: Tensor, wanted: np.ndarray) -> None:
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=2e-4, atol=2e-5)


@quick
@given(SEEDS)
def test_least_squares_is_what_it_was(seed: int):
    given_ = writing(seed)
    found = LeastSquares()(given_)
    wanted = least_squares(given_.kept, given_.keys, given_.residuals, given_.neurons)
    assert torch.equal(found.left, wanted.left)
    assert torch.equal(found.right, wanted.right)


@quick
@given(SEEDS, st.floats(0.1, 100))
def test_penalised_norm(seed: int, ridge: float):
    """ENCORE: the minimum of |Delta K1 - R|^2 + tr(Delta C Delta^T) + ridge |Delta|^2."""
    w = writing(seed)
    found = dense(LeastSquares(ridge)(w))
    close(found, reference.least_squares(w.kept + ridge * torch.eye(D_FF), w.keys.T, w.residuals.T))
    assert found.norm() < dense(LeastSquares()(w)).norm()


@quick
@given(SEEDS)
def test_equality_holds(seed: int):
    w = writing(seed)
    found = dense(Equality()(w))
    close(found, reference.equality(w.kept, w.keys.T, w.residuals.T))
    torch.testing.assert_close(found @ w.keys.T, w.residuals.T, rtol=1e-4, atol=1e-5)


@quick
@given(SEEDS)
def test_equality_is_the_least_change_of_what_is_kept(seed: int):
    """Any other change that holds the constraint disturbs kept keys more."""
    w = writing(seed)
    found = dense(Equality()(w))
    free = torch.from_numpy(np.eye(D_FF) - np.linalg.pinv(w.keys.numpy()) @ w.keys.numpy())
    other = found + 0.1 * torch.randn(D_MODEL, D_FF, generator=torch.Generator().manual_seed(1)).double() @ free
    torch.testing.assert_close(other @ w.keys.T, w.residuals.T, rtol=1e-4, atol=1e-5)
    assert (found @ w.kept * found).sum() < (other @ w.kept * other).sum()


def test_equality_with_slack():
    w = writing()
    close(dense(Equality(slack=0.3)(w)), reference.equality(w.kept, w.keys.T, w.residuals.T, slack=0.3))


def test_equality_with_two_facts_of_one_key():
    """The constraints are at odds; what comes is finite and holds for the others."""
    w = writing()
    keys = w.keys.clone()
    keys[1] = keys[0]
    found = dense(Equality()(Writing(keys, w.prompt_keys, w.residuals, w.neurons, w.kept, w.ordinary)))
    torch.testing.assert_close(found @ keys[2:].T, w.residuals[2:].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found @ keys[0], w.residuals[:2].mean(0), rtol=1e-4, atol=1e-5)


@quick
@given(SEEDS)
def test_one_fact_is_romes_rank_one(seed: int):
    w = writing(seed)
    one = Writing(w.keys[:1], w.prompt_keys[:1], w.residuals[:1], w.neurons, w.kept, w.ordinary)
    for solve, held in ((Equality(0.1), one.keys[0]), (Equality(0.1, at="prompt"), one.prompt_keys[0])):
        found = solve(one)
        wanted = reference.rank_one(w.kept, one.keys[0], held, one.residuals[0])
        assert reference.relative(dense(found), torch.from_numpy(wanted)) < 1e-4
        assert found.left.shape[1] == 1
        assert reference.relative(dense(found) @ held, one.residuals[0]) < 1e-5


@quick
@given(SEEDS, st.floats(0.01, 100))
def test_null_space(seed: int, ridge: float):
    w = writing(seed, used=5)
    found = dense(NullSpace(threshold=1e-6, ridge=ridge)(w))
    p = reference.projector(w.ordinary, 1e-6)
    assert np.linalg.matrix_rank(p) == D_FF - 5
    close(found, reference.null_space(p, w.kept, w.keys.T, w.residuals.T, ridge))
    assert (found @ w.ordinary).norm() < 1e-5 * found.norm() * w.ordinary.norm()


def test_null_space_by_threshold():
    w = writing()
    values = torch.linalg.eigvalsh(w.ordinary)
    threshold = float(values[:6].max() + values[6]) / 2
    found = dense(NullSpace(threshold, ridge=1.0)(w))
    close(found, reference.null_space(reference.projector(w.ordinary, threshold), w.kept, w.keys.T, w.residuals.T, 1))
    used = torch.linalg.eigh(w.ordinary)[1][:, 6:]
    assert (found @ used).norm() < 1e-5 * found.norm()


def test_no_null_space_is_refused():
    with pytest.raises(UserError, match="solve.threshold=1e-09"):
        NullSpace(threshold=1e-9)(writing())


@pytest.mark.parametrize("solve", [LeastSquares(1.0), Equality(), Equality(at="prompt"), NullSpace(5.0)], ids=str)
def test_only_chosen_neurons_change(solve: Solve):
    inside = torch.tensor([0, 2, 3, 5, 7, 8, 11])
    w = writing(neurons=inside)
    found = solve(w)
    assert torch.equal(found.neurons, inside)
    small = [x[:, inside] for x in (w.keys, w.prompt_keys, w.kept[inside], w.ordinary[inside])]
    alone = solve(Writing(small[0], small[1], w.residuals, torch.arange(len(inside)), small[2], small[3]))
    torch.testing.assert_close(found.left @ found.right, alone.left @ alone.right)


@pytest.mark.parametrize("solve", [LeastSquares(1.0), Equality(), NullSpace(0.5)], ids=str)
@pytest.mark.parametrize("broken", ["keys", "residuals"])
def test_what_is_not_finite_is_refused(solve: Solve, broken: str):
    w = writing()
    getattr(w, broken)[0, 0] = math.nan
    with pytest.raises((UserError, RuntimeError)):
        solve(w)


# --- restraints


def change_of(seed: int, size: float = 1.0) -> tuple[LowRank, Tensor, Tensor]:
    """A change, W, and what was changed before."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(D_MODEL, 2, generator=generator), torch.randn(2, 9, generator=generator)
    weight = torch.randn(D_MODEL, D_FF, generator=generator)
    earlier = torch.randn(D_MODEL, D_FF, generator=generator) / 2
    return LowRank(size * left, right, torch.tensor([0, 1, 2, 4, 5, 7, 9, 10, 13])), weight, earlier


@quick
@given(SEEDS, st.floats(1.2, 5), st.floats(0.5, 20))
def test_prune(seed: int, base: float, size: float):
    change, weight, earlier = change_of(seed, size)
    found = earlier.double() + dense(Prune(base)(change, weight, earlier))
    wanted = torch.from_numpy(reference.pruned(weight, earlier.double() + dense(change), base))
    assert reference.relative(found, wanted) < 1e-5
    most = float(torch.linalg.matrix_norm(weight.double(), 2))
    before = float(torch.linalg.matrix_norm(earlier.double() + dense(change), 2))
    bound = most + math.log(max(before / most, 1), base)
    assert float(torch.linalg.matrix_norm(found, 2)) <= bound * (1 + 1e-5)


def test_prune_leaves_small_changes_alone():
    change, weight, earlier = change_of(0, 0.01)
    assert Prune()(change, weight, 0.1 * earlier) is change
    assert Prune()(change, weight, None) is change


@quick
@given(SEEDS, st.floats(0.05, 1))
def test_rect(seed: int, share: float):
    change, weight, earlier = change_of(seed)
    found = Rect(share)(change, weight, earlier)
    inside = change.neurons
    entries = (change.left.double() @ change.right.double()).numpy()
    wanted = reference.rectified((weight + earlier.double())[:, inside], entries, share)
    torch.testing.assert_close(dense(found)[:, inside], torch.from_numpy(wanted).float().double())
    assert int((dense(found) != 0).sum()) == round(share * entries.size)


def test_as_solved():
    change, weight, earlier = change_of(0)
    assert AsSolved()(change, weight, earlier) is change


def test_combined_changes():
    first, _, _ = change_of(0)
    second = LowRank(torch.randn(D_MODEL, 3), torch.randn(3, 4), torch.tensor([1, 3, 6, 13]))
    nothing = LowRank.nothing(torch.zeros(D_MODEL, D_FF))
    both = combined([nothing, first, second])
    torch.testing.assert_close(dense(both), dense(first) + dense(second))
    assert both.neurons.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 13]
    assert dense(nothing).abs().sum() == 0


def test_many_combined_changes_take_no_more_room_than_w():
    changes = [change_of(seed)[0] for seed in range(5)]
    both = combined(changes)
    assert both.left.shape[1] == D_MODEL
    torch.testing.assert_close(dense(both), torch.stack([dense(change) for change in changes]).sum(0))


# --- spreads and sweeps


def test_layers_written():
    critical = (3, 4, 5, 6, 7)
    assert Spread().written(critical) == critical
    assert Spread(layers="ends").written(critical) == (3, 7)
    assert Spread(layers="last").written(critical) == (7,)
    assert Spread(layers="ends").written((4,)) == (4,)


def test_shares_of_the_residual():
    assert [Spread().divisor(left) for left in (3, 2, 1)] == [3, 2, 1]
    assert [Spread(share="root").divisor(left) for left in (4, 1)] == [2.0, 1.0]


def test_a_fact_alone_has_nothing_in_common_with_others():
    assert in_common(torch.tensor([[1.0, 2.0]]), 1).tolist() == [[0, 0]]
    assert in_common(torch.ones(3, 2), 1).tolist() == [[0, 0]] * 3


@quick
@given(st.integers(2, 40), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_what_facts_have_in_common_is_of_the_others(facts: int, contexts: int, seed: int):
    """Not of the fact itself; half of the others' mean with ten of them, nearly all of it with many."""
    generator = torch.Generator().manual_seed(seed)
    residuals = torch.randn(facts * (1 + contexts), 4, generator=generator, dtype=torch.float64)
    found = in_common(residuals, facts)
    for fact in range(facts):
        others = residuals[[other for other in range(facts) if other != fact]]
        expected = others.mean(0) * len(others) / (len(others) + 10)
        rows = [fact, *range(facts + fact * contexts, facts + (fact + 1) * contexts)]
        torch.testing.assert_close(found[rows], expected.expand(len(rows), -1))


def test_facts_that_take_part_in_a_sweep():
    residuals = torch.tensor([[3.0, 4.0], [0.3, 0.4], [30.0, 40.0], [0.0, 0.0]])
    assert Rounds().open(residuals).tolist() == [0, 1, 2]
    assert Rounds(above=1).open(residuals).tolist() == [0, 2]
    assert Rounds(above=0.1, below=10).open(residuals).tolist() == [0, 1]
