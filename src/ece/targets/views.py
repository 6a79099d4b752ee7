"""A loss seen through a few contexts at a time: each evaluation takes the next view, so that it costs a part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ece.targets.loss import TargetLoss, Value


class Views:
    """Behaves as the `TargetLoss` whose `views` these are; each evaluation sees the next of them."""

    def __init__(self, parts: Sequence[TargetLoss], turn: int = 0):
        """Begin with the part whose turn it is."""
        self.parts = parts
        self.turn = turn

    def __len__(self) -> int:
        return len(self.parts[0])

    def __call__(self, delta: Tensor, ranked: bool = False) -> Value:
        """Loss and gradient at delta `[facts, d_model]`, through the next view."""
        view = self.parts[self.turn % len(self.parts)]
        self.turn += 1
        return view(delta, ranked)

    @property
    def hidden(self) -> Tensor:
        """Of each fact `[facts, d_model]`: h, from its bare prompt."""
        return self.parts[0].hidden

    @property
    def size(self) -> Tensor:
        """The norm `[facts]` that clamp and decay refer to."""
        return self.parts[0].size

    @property
    def attention(self) -> Tensor | None:
        """The norm `[facts]` of the attention's part of h, where `size` is of the FFN's."""
        return self.parts[0].attention

    @property
    def tokens(self) -> Tensor:
        """How many tokens each target has `[facts]`."""
        return self.parts[0].tokens

    @property
    def clamp(self) -> float:
        """Largest norm of delta, relative to `size`."""
        return self.parts[0].clamp

    def project(self, delta: Tensor) -> Tensor:
        """The nearest delta inside the clamp's ball."""
        return self.parts[0].project(delta)

    def select(self, facts: Tensor) -> Views:
        """Some of the facts, in the order given."""
        return Views([part.select(facts) for part in self.parts], self.turn)
