"""A start for the search, learned from solved edits: ridge regression from the target's embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class _Sums:
    """What a ridge regression needs to know of the rows it has seen, float64."""

    count: int
    inputs: Tensor
    """`[d_model]`"""

    outputs: Tensor
    """`[d_model]`"""

    inputs_squared: Tensor
    """`[d_model, d_model]`: X^T X"""

    crossed: Tensor
    """`[d_model, d_model]`: X^T Y"""

    @classmethod
    def none(cls, width: int, device: torch.device) -> _Sums:
        """Of no rows yet, kept on a device."""
        row = torch.zeros(width, dtype=torch.float64, device=device)
        return cls(0, row, row, row.diag(), row.diag())

    def plus(self, x: Tensor, y: Tensor) -> _Sums:
        """With some more rows `[rows, d_model]`."""
        x, y = x.to(self.inputs), y.to(self.inputs)
        squared, crossed = self.inputs_squared.addmm(x.T, x), self.crossed.addmm(x.T, y)
        return _Sums(self.count + len(x), self.inputs + x.sum(0), self.outputs + y.sum(0), squared, crossed)


@dataclass
class WarmStart:
    """Predicts the direction of a fact's delta from its target, once enough edits have been solved."""

    length: float = 0.3
    """Of the start, relative to the norm of h."""

    ridge: float = 0.1
    """Penalty, relative to the mean eigenvalue of the features' second moment."""

    enough: int = 20
    """Solved edits before the first prediction."""

    _sums: _Sums | None = None

    def copy(self) -> WarmStart:
        """One that learns on its own."""
        return replace(self)

    @property
    def learned(self) -> list[Tensor]:
        """What is kept of all that was taken in."""
        return [torch.as_tensor(part) for part in vars(self._sums).values()] if self._sums else []

    def learn(self, embeddings: Tensor, delta: Tensor) -> None:
        """Take in solved edits: embeddings and deltas, both `[facts, d_model]`."""
        norm = delta.norm(dim=1, keepdim=True)
        solved = norm[:, 0] > 0
        if not solved.any():
            return
        sums = self._sums or _Sums.none(delta.shape[1], delta.device)
        self._sums = sums.plus(embeddings.to(delta.device)[solved], (delta / norm)[solved])

    def __call__(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Where to start `[facts, d_model]`: zero until enough has been learned."""
        sums = self._sums
        if sums is None or sums.count < self.enough:
            return torch.zeros_like(hidden)
        predicted = self._regressed(sums, embeddings.to(sums.inputs)).to(hidden)
        return self.length * hidden.norm(dim=1, keepdim=True) * nn.functional.normalize(predicted, dim=1)

    def _regressed(self, sums: _Sums, inputs: Tensor) -> Tensor:
        """Ridge regression on inputs that are centred and scaled by one number: what it predicts of `[facts, d_model]`.

        Centred inputs say nothing about the intercept, which therefore is regressed alone.
        """
        n, width = sums.count, len(sums.inputs)
        centre = sums.inputs / n
        scale = ((sums.inputs_squared.trace() - sums.inputs.sum() ** 2 / (n * width)) / (n * width - 1)).sqrt()
        moment = sums.inputs_squared.addr(centre, centre, alpha=-n).div_(scale**2)
        moment.diagonal().add_(self.ridge * n)
        crossed = sums.crossed.addr(centre, sums.outputs, alpha=-1).div_(scale)
        weights = torch.linalg.solve(moment, ((inputs - centre) / scale).T).T
        return weights @ crossed + sums.outputs / n / (1 + self.ridge)
