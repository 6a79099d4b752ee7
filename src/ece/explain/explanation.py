"""An explanation as plain values: scores (Eq. 5-7), the neurons they choose (Eq. 8), and clusters (Eq. 9-10)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ece.explain.vocabulary import Reading
from ece.facts import Fact

STRONGEST = 5


@dataclass(frozen=True)
class Neuron:
    """One of the strongest neurons of a fact in a layer."""

    layer: int
    index: int
    activation: float
    """a_k: its entry in the fact's key, with its sign."""

    score: float
    share: float
    """Of the fact's score in this layer."""

    writes: Reading
    """What a_k W_k says: the neuron's column of W, turned round where the activation is negative, read through the
    final norm's scaling and the unembedding (`ece.explain.vocabulary.logits_of`). This is its direct effect alone: in
    low layers, whose neurons speak to the layers above, it seldom makes words."""


@dataclass(frozen=True)
class Site:
    """A fact in one layer."""

    layer: int
    score: float
    """The sum over all neurons."""

    share: float
    """Of the fact's score in all edited layers."""

    own: int
    """Size of the smallest set that holds `Explanation.fraction` of the score."""

    strongest: tuple[Neuron, ...]


@dataclass(frozen=True)
class Located:
    """A fact in the edited layers."""

    fact: Fact
    cluster: int
    sites: tuple[Site, ...]

    @property
    def strongest(self) -> tuple[Neuron, ...]:
        """The strongest neurons of all layers together."""
        neurons = [neuron for site in self.sites for neuron in site.strongest]
        return tuple(sorted(neurons, key=lambda neuron: -neuron.score)[:STRONGEST])


@dataclass(frozen=True)
class Chosen:
    """The neurons that may change in one layer (Eq. 8)."""

    layer: int
    neurons: tuple[int, ...]
    share_of_neurons: float
    share_of_score: float
    scores: Tensor
    """`[d_ff]`: of every neuron, summed over the facts."""


@dataclass(frozen=True)
class Cluster:
    """Facts whose neuron sets are alike (Eq. 9), by their numbers."""

    members: tuple[int, ...]
    anchor: int | None
    """The member that stands for it (Eq. 10); None if the edit left that fact out."""

    distance: float
    """Mean Jaccard distance between two members; 0 for a single one."""


@dataclass(frozen=True)
class Explanation:
    """Where facts are, and why these neurons were chosen."""

    model: str
    method: str
    score: str
    """The formula (Eq. 5-7) that neurons are chosen by. `random` is a control, and the scores shown are `rs`."""

    p: float
    """Fraction of the score that the chosen neurons hold; 1 chooses all."""

    fraction: float
    """Fraction that a fact's own set holds: p, or what clusters go by (0.8) where p is 1 and says nothing."""

    layers: tuple[Chosen, ...]
    facts: tuple[Located, ...]
    clusters: tuple[Cluster, ...]
    distances: Tensor
    """`[facts, facts]`: Jaccard distances (Eq. 9) of the facts' neuron sets."""

    chance: float
    """The Jaccard distance that random sets of their mean size would have."""

    @property
    def distance_within(self) -> float | None:
        """Mean distance of two facts in one cluster; None if there are no such two."""
        return self._mean_distance(together=True)

    @property
    def distance_between(self) -> float | None:
        """Mean distance of two facts in different clusters; None if there are no such two."""
        return self._mean_distance(together=False)

    def _mean_distance(self, together: bool) -> float | None:
        of_fact = torch.tensor([located.cluster for located in self.facts])
        pairs = ((of_fact[:, None] == of_fact) == together).triu(1)
        return float(self.distances[pairs].mean()) if pairs.any() else None

    def as_json(self) -> dict[str, Any]:
        """Everything but the tensors, for `json.dumps`: every number is finite."""
        return dataclasses.asdict(
            self, dict_factory=lambda items: {name: value for name, value in items if not isinstance(value, Tensor)}
        )
