"""What earlier batches leave to later ones (Eq. 4's K0): their keys, and what was learned from their targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ece.edits.edit import Edit
from ece.facts import Fact
from ece.models import Model
from ece.targets.warm import WarmStart, target_embeddings
from ece.update.symmetric import Symmetric


@dataclass
class History:
    """Grows by one edit at a time. It can be rebuilt from the edits alone."""

    moments: dict[int, Symmetric] = field(default_factory=dict)
    """By layer: the sum of kk^T of all edited facts `[d_ff, d_ff]`, float64."""

    warm: WarmStart = field(default_factory=WarmStart)

    @classmethod
    def of(cls, model: Model, edits: Iterable[Edit]) -> History:
        """The history after these edits."""
        history = cls()
        for edit in edits:
            history.add(model, edit)
        return history

    def add(self, model: Model, edit: Edit) -> None:
        """K0 K0^T <- K0 K0^T + K1 K1^T, with all neurons; and the same for the prompts' other keys, where kept."""
        self.take(model, edit.facts, edit.keys, edit.around, edit.delta)

    def take(
        self,
        model: Model,
        facts: Sequence[Fact],
        keys: Mapping[int, Tensor],
        around: Mapping[int, Tensor],
        delta: Tensor,
    ) -> None:
        """The same for the parts of an edit that is not whole yet."""
        for layer, some in [*keys.items(), *around.items()]:
            some = some.to(model.weight(layer).device, torch.float64)
            moment = some.T @ some
            if layer in self.moments:
                moment += self.moments[layer].whole()
            self.moments[layer] = Symmetric.of(moment)
        if len(delta):
            self.warm.learn(target_embeddings(model, [fact.target for fact in facts]), delta.to(model.device))

    def copy(self) -> History:
        """One that grows on its own."""
        return History(dict(self.moments), self.warm.copy())
