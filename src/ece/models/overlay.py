"""Low-rank changes of W, laid over the base weights and taken off again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ece.models.model import Model


@dataclass(frozen=True)
class LowRank:
    """A change of some columns of W: `W[:, neurons] += left @ right`."""

    left: Tensor
    """`[d_model, rank]`"""

    right: Tensor
    """`[rank, neurons]`"""

    neurons: Tensor
    """`[neurons]`: which columns of W, ascending."""

    def add_to(self, total: Tensor) -> None:
        """Add the change to `total` `[d_model, d_ff]`, in its dtype."""
        change = self.left.to(total) @ self.right.to(total)
        if len(self.neurons) == total.shape[1]:
            total += change
        else:
            total[:, self.neurons.to(total.device)] += change


Delta = Mapping[int, LowRank]
"""The changes of one edit, by layer."""


@dataclass
class Overlay:
    """What is laid over a model now. The weights are always `base + the sum of the stack`, in order."""

    base: dict[int, Tensor] = field(default_factory=dict)
    """Untouched copies `[d_model, d_ff]` of every matrix the stack changes."""

    stack: list[Delta] = field(default_factory=list)
    _sums: dict[int, Tensor] = field(default_factory=dict)

    def push(self, model: Model, delta: Delta) -> None:
        """Lay one more change over the weights."""
        for layer in delta:
            self.base.setdefault(layer, model.weight(layer).clone())
        self.stack.append(delta)
        self._add(delta)
        self._write(model, delta)

    def remove(self, model: Model, delta: Delta) -> None:
        """Take a change off; what came after it stays.

        Raises:
            ValueError: this change is not on the model.
        """
        place = next((i for i, item in enumerate(self.stack) if item is delta), None)
        if place is None:
            raise ValueError("this edit is not applied to the model")
        del self.stack[place]
        self._sums = {layer: total for layer, total in self._sums.items() if layer not in delta}
        for item in self.stack:
            self._add({layer: change for layer, change in item.items() if layer in delta})
        self._write(model, delta)
        for layer in set(self.base) - {layer for item in self.stack for layer in item}:
            del self.base[layer]

    @contextmanager
    def suspended(self, model: Model) -> Iterator[None]:
        """While this lasts, the model has its base weights."""
        for layer, base in self.base.items():
            model.weight(layer).copy_(base)
        try:
            yield
        finally:
            for delta in self.stack:
                self._write(model, delta)

    @contextmanager
    def tentative(self, model: Model) -> Iterator[None]:
        """Whatever is pushed while this lasts is taken off at its end."""
        before = len(self.stack)
        try:
            yield
        finally:
            for delta in self.stack[before:][::-1]:
                self.remove(model, delta)

    def _add(self, delta: Delta) -> None:
        for layer, change in delta.items():
            if layer not in self._sums:
                wide = torch.promote_types(self.base[layer].dtype, torch.float32)
                self._sums[layer] = torch.zeros_like(self.base[layer], dtype=wide)
            change.add_to(self._sums[layer])

    def _write(self, model: Model, delta: Delta) -> None:
        for layer in delta:
            base = self.base[layer]
            weight = base if layer not in self._sums else (base.to(self._sums[layer]) + self._sums[layer])
            model.weight(layer).copy_(weight)
