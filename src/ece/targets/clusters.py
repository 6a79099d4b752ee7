"""Clusters of facts by the Jaccard distance of their neuron sets, and their anchors (Eq. 9-10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ece.facts import Fact


@dataclass(frozen=True)
class Clusters:
    """Which cluster each fact is in, and each cluster's anchor."""

    of_fact: Tensor
    """`[facts]`"""

    anchors: Tensor
    """`[clusters]`: the fact that stands for each cluster"""


def jaccard_distances(sets: Tensor, others: Tensor) -> Tensor:
    """Eq. 9: `1 - |A & B| / |A | B|`, for all pairs `[sets, others]`.

    Args:
        sets: `[sets, neurons]` bool.
        others: `[others, neurons]` bool.
    """
    both = sets.float() @ others.float().T
    either = sets.sum(1)[:, None] + others.sum(1) - both
    return torch.where(either > 0, 1 - both / either.clamp_min(1), 0)


def k_means(sets: Tensor, clusters: int, seed: int = 0, rounds: int = 50) -> Tensor:
    """k-means under Jaccard distance: a cluster's centre is its anchor (Eq. 10).

    The neurons that most members have would be nearer to every fact than a fact is: facts of a model share a core and
    are otherwise about equally far from each other, and the clusters would run together into one.

    Starts from members far apart (k-means++), and ends when no fact changes its cluster.

    Args:
        sets: `[facts, neurons]` bool.
        clusters: how many; fewer come back where sets are equal.
        seed: of the start.
        rounds: at most.

    Returns:
        `[facts]`: each fact's cluster, numbered from 0 without gaps.
    """
    generator = torch.Generator().manual_seed(seed)
    distances = jaccard_distances(sets, sets).cpu()
    chosen = [int(torch.randint(len(sets), (1,), generator=generator))]
    while len(chosen) < min(clusters, len(sets)):
        weight = distances[:, chosen].amin(1) ** 2
        if weight.sum() == 0:
            break
        chosen.append(int(torch.multinomial(weight, 1, generator=generator)))
    centres = torch.tensor(chosen)
    of_fact = torch.full((len(sets),), -1)
    for _ in range(rounds):
        nearest = distances[:, centres].argmin(1).unique(return_inverse=True)[1]
        if torch.equal(nearest, of_fact):
            break
        of_fact, centres = nearest, _medoids(distances, nearest)
    return of_fact.to(sets.device)


def anchors(sets: Tensor, of_fact: Tensor) -> Tensor:
    """Eq. 10: in each cluster, the member with the smallest sum of distances to the others.

    Args:
        sets: `[facts, neurons]` bool.
        of_fact: `[facts]` cluster numbers without gaps.

    Returns:
        `[clusters]` fact numbers.
    """
    return _medoids(jaccard_distances(sets, sets), of_fact)


def _medoids(distances: Tensor, of_fact: Tensor) -> Tensor:
    found = []
    for cluster in range(int(of_fact.max()) + 1):
        members = (of_fact == cluster).nonzero()[:, 0]
        found.append(members[distances[members][:, members].sum(1).argmin()])
    return torch.stack(found)


def grouped(by: str, facts: Sequence[Fact], sets: Tensor, clusters: int, seed: int = 0) -> Clusters:
    """Clusters of one kind.

    Args:
        by: `neurons` (Eq. 9), or a control: `relation`, `target`, `random` (clusters of random size), `none` (one).
        facts: to be grouped.
        sets: `[facts, neurons]` bool: each fact's own neuron set.
        clusters: how many, for `neurons` and `random`.
        seed: of the random choices.
    """
    labels = {
        "relation": lambda: _numbered([fact.relation or fact.prompt for fact in facts]),
        "target": lambda: _numbered([fact.target for fact in facts]),
        "none": lambda: torch.zeros(len(facts), dtype=torch.long),
        "random": lambda: torch.randint(clusters, (len(facts),), generator=torch.Generator().manual_seed(seed)),
        "neurons": lambda: k_means(sets, clusters, seed),
    }[by]()
    of_fact = labels.unique(return_inverse=True)[1].to(sets.device)
    return Clusters(of_fact, anchors(sets, of_fact))


def _numbered(names: Sequence[str]) -> Tensor:
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])
