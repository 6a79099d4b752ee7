"""Clusters under Jaccard distance and their anchors (Eq. 9-10)."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ece.facts import Fact
from ece.targets.clusters import anchors, grouped, jaccard_distances, k_means

quick = settings(max_examples=60, deadline=None, derandomize=True)
NEURONS = 12
SETS = st.lists(st.sets(st.integers(0, NEURONS - 1), min_size=1), min_size=1, max_size=9)


def as_rows(sets: list[set[int]]) -> Tensor:
    return torch.tensor([[k in s for k in range(NEURONS)] for s in sets])


def three_groups() -> Tensor:
    """Twelve facts whose sets overlap within groups of four and hardly between them."""
    sets = torch.zeros(12, 30, dtype=torch.bool)
    for fact in range(12):
        group = fact % 3
        sets[fact, 10 * group : 10 * group + 10] = True
        sets[fact, 10 * group + fact // 3] = False
        sets[fact, (10 * group + 10 + fact) % 30] = True
    return sets


@quick
@given(SETS)
def test_distances_equal_the_naive_ones(sets: list[set[int]]):
    found = jaccard_distances(as_rows(sets), as_rows(sets))
    wanted = torch.tensor([[reference.jaccard(a, b) for b in sets] for a in sets])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@quick
@given(SETS)
def test_distance_is_a_metric(sets: list[set[int]]):
    d = jaccard_distances(as_rows(sets), as_rows(sets))
    assert d.min() >= 0
    assert d.max() <= 1
    assert (d.diagonal() == 0).all()
    assert torch.equal(d, d.T)
    assert (d[:, None] <= d[:, :, None] + d[None] + 1e-6).all()  # [a, b, c]: d(a, c) <= d(a, b) + d(b, c)
    assert all(d[i, j] > 0 for i, a in enumerate(sets) for j, b in enumerate(sets) if a != b)


def test_an_empty_set_is_at_no_distance_from_itself():
    empty = torch.zeros(1, 4, dtype=torch.bool)
    assert jaccard_distances(empty, empty).item() == 0


def test_k_means_finds_plain_groups():
    labels = k_means(three_groups(), 3)
    assert labels.unique().tolist() == [0, 1, 2]
    for group in range(3):
        assert len(labels[group::3].unique()) == 1


@quick
@given(SETS, st.integers(1, 5), st.integers(0, 5))
def test_k_means_is_deterministic_and_numbers_without_gaps(sets: list[set[int]], clusters: int, seed: int):
    rows = as_rows(sets)
    labels = k_means(rows, clusters, seed)
    assert torch.equal(labels, k_means(rows, clusters, seed))
    assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert int(labels.max()) < clusters


def test_facts_about_equally_far_do_not_run_together():
    """As SmolLM2's are: a core that all have, and else about as much in common as chance gives."""
    sets = torch.rand(60, 400, generator=torch.Generator().manual_seed(1)) < 0.3
    sets[:, :60] = True
    for clusters in (2, 5, 10):
        labels = k_means(sets, clusters)
        assert len(labels.unique()) == clusters
        nearest = jaccard_distances(sets, sets[anchors(sets, labels)]).min(1).values
        own = jaccard_distances(sets, sets)[torch.arange(60), anchors(sets, labels)[labels]]
        assert torch.equal(own, nearest)  # it has settled: each fact is with the anchor nearest to it


def test_k_means_depends_on_its_seed():
    sets = torch.rand(40, 60, generator=torch.Generator().manual_seed(0)) < 0.3
    assert len({tuple(k_means(sets, 5, seed).tolist()) for seed in range(4)}) > 1


def test_k_means_leaves_the_random_state_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    k_means(three_groups(), 3)
    assert torch.equal(torch.rand(3), wanted)


@quick
@given(SETS, st.data())
def test_anchors_minimise_the_sum_of_distances(sets: list[set[int]], data: st.DataObject):
    raw = data.draw(st.lists(st.integers(0, 2), min_size=len(sets), max_size=len(sets)))
    of_fact = torch.tensor(raw).unique(return_inverse=True)[1]
    found = anchors(as_rows(sets), of_fact)
    assert len(found) == int(of_fact.max()) + 1
    for cluster, anchor in enumerate(found.tolist()):
        members = [i for i in range(len(sets)) if of_fact[i] == cluster]
        sums = {i: sum(reference.jaccard(sets[i], sets[j]) for j in members) for i in members}
        assert anchor in members
        assert sums[anchor] <= min(sums.values()) + 1e-5


@pytest.mark.parametrize(
    ("by", "wanted"),
    [("relation", [0, 1, 0, 2]), ("target", [0, 0, 1, 1]), ("none", [0, 0, 0, 0])],
)
def test_grouped_by_a_property_of_the_facts(by: str, wanted: list[int]):
    facts = [
        Fact("{} is in", "a", "Rome", "city"),
        Fact("{} speaks", "b", "Rome", "language"),
        Fact("{} lies in", "c", "Oslo", "city"),
        Fact("{} plays", "d", "Oslo"),  # no relation: its prompt serves
    ]
    clusters = grouped(by, facts, as_rows([{0, 1}, {1}, {0, 1, 2}, {3}]), 10)
    assert clusters.of_fact.tolist() == wanted
    assert [wanted[i] for i in clusters.anchors.tolist()] == sorted(set(wanted))


def test_grouped_by_neurons_and_at_random():
    facts = [Fact("{} is in", str(i), "Rome") for i in range(12)]
    neurons = grouped("neurons", facts, three_groups(), 3)
    assert torch.equal(neurons.of_fact, k_means(three_groups(), 3))
    assert torch.equal(neurons.anchors, anchors(three_groups(), neurons.of_fact))
    random = [grouped("random", facts, three_groups(), 3, seed) for seed in (0, 0, 1)]
    assert torch.equal(random[0].of_fact, random[1].of_fact)
    assert not torch.equal(random[0].of_fact, random[2].of_fact)
