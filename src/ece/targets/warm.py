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
    def of(cls, x: Tensor, y: Tensor, device: torch.device) -> _Sums:
        """Of rows `[rows, d_model]`, kept on a device."""
        x, y = x.to(device, torch.float64), y.to(device, torch.float64)
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y)

    def __add__(self, other: _Sums) -> _Sums:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Sums(*(mine + yours for mine, yours in pairs))


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
        device = self._sums.inputs.device if self._sums else delta.device
        new = _Sums.of(embeddings.to(delta.device)[solved], (delta / norm)[solved], device)
        self._sums = self._sums + new if self._sums else new

    def __call__(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Where to start `[facts, d_model]`: zero until enough has been learned."""
        sums = self._sums
        if sums is None or sums.count < self.enough:
            return torch.zeros_like(hidden)
        centre, scale, coefficients, intercept = self._regressed(sums)
        x = (embeddings.to(centre) - centre) / scale
        predicted = (x @ coefficients + intercept).to(hidden)
        return self.length * hidden.norm(dim=1, keepdim=True) * nn.functional.normalize(predicted, dim=1)

    def _regressed(self, sums: _Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ridge regression on inputs that are centred and scaled by one number: both, coefficients and intercept.

        Centred inputs say nothing about the intercept, which therefore is regressed alone.
        """
        n, width = sums.count, len(sums.inputs)
        centre = sums.inputs / n
        scale = ((sums.inputs_squared.trace() - sums.inputs.sum() ** 2 / (n * width)) / (n * width - 1)).sqrt()
        moment = (sums.inputs_squared - n * centre.outer(centre)) / scale**2
        moment.diagonal().add_(self.ridge * n)
        crossed = (sums.crossed - centre.outer(sums.outputs)) / scale
        return centre, scale, torch.linalg.solve(moment, crossed), sums.outputs / n / (1 + self.ridge)
