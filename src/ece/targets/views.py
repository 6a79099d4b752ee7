"""A loss seen through a few contexts at a time: each evaluation takes the next view, so that it costs a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from ece.facts import Fact
from ece.targets.loss import TargetLoss, Value

Prepare = Callable[[Sequence[Fact], Sequence[str]], TargetLoss]
"""Prepares the loss of some facts with some contexts."""


OWN = ("hidden", "size", "attention")
"""What belongs to a fact, and not to the contexts that its loss is seen through."""


class Views:
    """Behaves as a `TargetLoss`; the contexts are dealt out among the views, and each evaluation sees one of them.

    A view is prepared when it is first needed, for the facts that are still there.
    """

    def __init__(self, prepare: Prepare, facts: Sequence[Fact], before: Sequence[str], views: int):
        """Deal the contexts `before` (the first is empty) out among `views`."""
        self.prepare = prepare
        self.facts = list(facts)
        self.parts = [list(before[i::views]) for i in range(min(views, len(before)))]
        self.prepared: dict[int, TargetLoss] = {0: prepare(facts, self.parts[0])}
        self.hidden, self.size, self.attention = (getattr(self.prepared[0], name) for name in OWN)
        self.turn = 0

    def __len__(self) -> int:
        return len(self.facts)

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        """Loss and gradient at delta `[facts, d_model]`, through the next view."""
        view = self.turn % len(self.parts)
        self.turn += 1
        if view not in self.prepared:
            loss = self.prepare(self.facts, self.parts[view])
            self.prepared[view] = replace(loss, hidden=self.hidden, size=self.size, attention=self.attention)
        return self.prepared[view](delta, ranked)

    @property
    def tokens(self) -> Tensor:
        """How many tokens each target has `[facts]`."""
        return self.prepared[0].tokens

    @property
    def clamp(self) -> float:
        """Largest norm of delta, relative to `size`."""
        return self.prepared[0].clamp

    def project(self, delta: Tensor) -> Tensor:
        """The nearest delta inside the clamp's ball."""
        return self.prepared[0].project(delta)

    def select(self, facts: Tensor) -> Views:
        """Some of the facts, in the order given."""
        chosen = object.__new__(Views)
        chosen.prepare, chosen.parts, chosen.turn = self.prepare, self.parts, self.turn
        chosen.facts = [self.facts[i] for i in facts.tolist()]
        chosen.prepared = {view: loss.select(facts) for view, loss in self.prepared.items()}
        chosen.hidden, chosen.size = self.hidden[facts], self.size[facts]
        chosen.attention = self.attention[facts] if self.attention is not None else None
        return chosen
