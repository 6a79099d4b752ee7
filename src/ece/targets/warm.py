"""A start for the search, learned from solved edits: ridge regression from the target's embedding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from ece.models.model import Model
from ece.models.tokens import encode


def target_embeddings(model: Model, targets: Sequence[str]) -> Tensor:
    """Mean token embedding of each target `[targets, d_model]`, float32."""
    table = cast(Tensor, cast(nn.Module, model.network.get_input_embeddings()).weight)
    means = []
    for target in targets:
        ids, _, start = encode(model, "is", target)
        means.append(table[torch.tensor(ids[start:], device=table.device)].float().mean(0))
    return torch.stack(means)


@dataclass
class WarmStart:
    """Predicts the direction of a fact's delta from its target, once enough edits have been solved."""

    length: float = 0.3
    """Of the start, relative to the norm of h."""

    ridge: float = 0.1
    """Penalty, relative to the mean eigenvalue of the features' second moment."""

    enough: int = 20
    """Solved edits before the first prediction."""

    _features: list[Tensor] = field(default_factory=list)
    _directions: list[Tensor] = field(default_factory=list)

    def copy(self) -> WarmStart:
        """One that learns on its own."""
        return replace(self, _features=list(self._features), _directions=list(self._directions))

    @property
    def learned(self) -> list[Tensor]:
        """All that was taken in."""
        return [*self._features, *self._directions]

    def learn(self, embeddings: Tensor, delta: Tensor) -> None:
        """Take in solved edits: embeddings and deltas, both `[facts, d_model]`."""
        norm = delta.norm(dim=1, keepdim=True)
        solved = norm[:, 0] > 0
        self._features.append(embeddings.to(delta.device)[solved])
        self._directions.append((delta / norm)[solved])

    def __call__(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Where to start `[facts, d_model]`: zero until enough has been learned."""
        features, directions = ([x.to(hidden.device) for x in parts] for parts in (self._features, self._directions))
        if sum(map(len, features)) < self.enough:
            return torch.zeros_like(hidden)
        centre, scale = _centre_and_scale(features)

        def design(x: Tensor) -> Tensor:
            return nn.functional.pad((x.to(centre) - centre) / scale, (0, 1), value=1.0)

        coefficients = self._regressed(map(design, features), directions)
        predicted = design(embeddings).to(hidden) @ coefficients.to(hidden)
        return self.length * hidden.norm(dim=1, keepdim=True) * nn.functional.normalize(predicted, dim=1)

    def _regressed(self, designs: Iterable[Tensor], directions: Sequence[Tensor]) -> Tensor:
        """Coefficients `[d_model + 1, d_model]`, float64, from edits in parts: at once they would be one more copy."""
        width, device = directions[0].shape[1], directions[0].device
        moment = torch.eye(width + 1, dtype=torch.float64, device=device) * self.ridge * sum(map(len, directions))
        crossed = torch.zeros(width + 1, width, dtype=torch.float64, device=device)
        for x, y in zip(designs, directions, strict=True):
            moment.addmm_(x.T, x)
            crossed.addmm_(x.T, y.to(x))
        return torch.linalg.solve(moment, crossed)


def _centre_and_scale(parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean `[d_model]` of all rows and the standard deviation of all entries, float64."""
    total = torch.stack([x.double().sum(0) for x in parts]).sum(0)
    squares = torch.stack([x.double().square().sum() for x in parts]).sum()
    count = sum(x.numel() for x in parts)
    variance = (squares - total.sum() ** 2 / count) / (count - 1)
    return total / sum(map(len, parts)), variance.sqrt()
