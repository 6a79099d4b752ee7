"""Low-rank changes of W, laid over the base weights and taken off again, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ece.models.memories import forgotten

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

    @classmethod
    def nothing(cls, weight: Tensor) -> LowRank:
        """The change of W `[d_model, d_ff]` that changes nothing."""
        none = torch.zeros(0, dtype=torch.long, device=weight.device)
        return cls(weight.new_zeros(len(weight), 0).float(), weight.new_zeros(0, 0).float(), none)

    def add_to(self, total: Tensor) -> None:
        """Add the change to `total` `[d_model, d_ff]`, in its dtype."""
        change = self.left.to(total) @ self.right.to(total)
        if len(self.neurons) == total.shape[1]:
            total += change
        else:
            total[:, self.neurons.to(total.device)] += change

    def wide(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors `[d_model, rank]` and `[rank, d_ff]` of the whole `weight`, in its dtype and on its device."""
        left, right = self.left.to(weight), self.right.to(weight)
        if len(self.neurons) == weight.shape[1]:
            return left, right
        whole = right.new_zeros(len(right), weight.shape[1])
        whole[:, self.neurons.to(whole.device)] = right
        return left, whole

    def fits(self, weight: Tensor) -> bool:
        """Whether the factors have the shapes that a change of `weight` `[d_model, d_ff]` needs."""
        shapes = (self.left.shape[0], self.left.shape[1], self.right.shape[1])
        wanted = (weight.shape[0], self.right.shape[0], len(self.neurons))
        return shapes == wanted and bool((self.neurons < weight.shape[1]).all())


Delta = Mapping[int, LowRank]
"""The changes of one edit, by layer."""

BLOCK = 512
"""Changes are multiplied out together up to this rank, the highest that servers take of an adapter: one product gives
the same bits as the adapter's."""


def product(changes: Sequence[LowRank], like: Tensor) -> Tensor:
    """The sum of changes `[d_model, d_ff]` as one product of their factors side by side, in the dtype of `like`."""
    lefts, rights = zip(*(change.wide(like) for change in changes), strict=True)
    return torch.cat(lefts, 1) @ torch.cat(rights)


@dataclass
class _Sum:
    """Of the changes of one layer, in order, in float32 or wider."""

    whole: Tensor | None = None
    """Of the blocks that are full."""

    block: list[LowRank] = field(default_factory=list)
    """The changes since."""

    def plus(self, change: LowRank) -> _Sum:
        """The sum with one more change."""
        return _Sum(self.whole, [*self.block, change])

    def total(self, like: Tensor) -> Tensor:
        """All of it, in the dtype of `like`."""
        last = product(self.block, like) if self.block else torch.zeros_like(like)
        return last if self.whole is None else self.whole + last

    def closed(self, like: Tensor) -> _Sum:
        """The same sum; a block that has reached its rank is multiplied out."""
        full = sum(change.left.shape[1] for change in self.block) >= BLOCK
        return _Sum(self.total(like)) if full else self


@dataclass
class Overlay:
    """What is laid over a model now. The weights are always `base + the sum of the stack`, in order."""

    base: dict[int, Tensor] = field(default_factory=dict)
    """Untouched copies `[d_model, d_ff]` of every matrix that is changed."""

    stack: list[Delta] = field(default_factory=list)
    _sums: dict[int, _Sum] = field(default_factory=dict)
    """Of the stack, by layer."""

    def push(self, model: Model, delta: Delta) -> None:
        """Lay one more change over the weights.

        Raises:
            ValueError: a factor does not fit its matrix; nothing is changed.
        """
        self.push_all(model, [delta])

    def push_all(self, model: Model, deltas: Sequence[Delta]) -> None:
        """Lay changes over the weights, one after another, and write the weights once.

        Raises:
            ValueError: a factor does not fit its matrix; nothing is changed.
        """
        for delta in deltas:
            self._check(model, delta)
        for delta in deltas:
            self._keep_base(model, delta)
            self.stack.append(delta)
            self._add(delta)
        self._write(model, {layer for delta in deltas for layer in delta})

    def remove(self, model: Model, delta: Delta) -> None:
        """Take a change off; what came after it stays.

        Raises:
            ValueError: this change is not on the model.
        """
        self.replace(model, [delta], [])

    def replace(self, model: Model, old: Sequence[Delta], new: Sequence[Delta]) -> None:
        """Take changes off and lay others over what stays; the weights are written once.

        Raises:
            ValueError: an old change is not on the model, or a new one does not fit; nothing is changed.
        """
        for delta in new:
            self._check(model, delta)
        stack = list(self.stack)
        for delta in old:
            place = next((i for i, item in enumerate(stack) if item is delta), None)
            if place is None:
                raise ValueError("this edit is not applied to the model")
            del stack[place]
        touched = {layer for delta in [*old, *new] for layer in delta}
        for delta in new:
            self._keep_base(model, delta)
        self.stack = [*stack, *new]
        self._sums = {layer: total for layer, total in self._sums.items() if layer not in touched}
        for item in self.stack:
            self._add({layer: change for layer, change in item.items() if layer in touched})
        self._write(model, touched)
        self._drop_base()

    @contextmanager
    def suspended(self, model: Model) -> Iterator[None]:
        """While this lasts, the model has its base weights and no memories."""
        for layer, base in self.base.items():
            model.weight(layer).copy_(base)
        try:
            with forgotten(model):
                yield
        finally:
            self._write(model, self.base)

    def change(self, layer: int) -> Tensor | None:
        """The sum of the stack in a layer `[d_model, d_ff]`; None where nothing is laid over it."""
        return self._sums[layer].total(self._wide(layer)) if layer in self._sums else None

    @contextmanager
    def undone(self, model: Model) -> Iterator[None]:
        """Whatever is pushed while this lasts is taken off at its end, all at once."""
        stack, base, sums = list(self.stack), dict(self.base), dict(self._sums)
        try:
            yield
        finally:
            changed = set(self.base)
            base = {layer: self.base[layer] for layer in changed} | base
            self.stack, self.base, self._sums = stack, base, sums
            self._write(model, changed)
            self._drop_base()

    @contextmanager
    def rewound(self, model: Model) -> Iterator[None]:
        """While this lasts, nothing is laid over the model or kept beside it, and changes can be laid over it anew."""
        base, stack, sums = self.base, self.stack, self._sums
        for layer, weight in base.items():
            model.weight(layer).copy_(weight)
        self.base, self.stack, self._sums = {}, [], {}
        try:
            with forgotten(model):
                yield
        finally:
            for layer, weight in self.base.items():
                model.weight(layer).copy_(weight)
            self.base, self.stack, self._sums = base, stack, sums
            self._write(model, base)

    @contextmanager
    def trial(self, model: Model) -> Iterator[Callable[[Delta], None]]:
        """Gives a function that lays a change over the weights until the block ends; one change for each layer."""
        tried: set[int] = set()

        def lay(delta: Delta) -> None:
            self._keep_base(model, delta)
            tried.update(delta)
            for layer, change in delta.items():
                self._lay(model, layer, self._sums.get(layer, _Sum()).plus(change))

        try:
            yield lay
        finally:
            self._write(model, tried)
            self._drop_base()

    def _check(self, model: Model, delta: Delta) -> None:
        for layer, change in delta.items():
            if not change.fits(model.weight(layer)):
                raise ValueError(f"a change of layer {layer} does not fit its matrix {list(model.weight(layer).shape)}")

    def _keep_base(self, model: Model, delta: Delta) -> None:
        self._check(model, delta)
        for layer in delta:
            self.base.setdefault(layer, model.weight(layer).clone())

    def _drop_base(self) -> None:
        changed = {layer for item in self.stack for layer in item}
        self.base = {layer: base for layer, base in self.base.items() if layer in changed}

    def _wide(self, layer: int) -> Tensor:
        """A tensor of the shape of W and of the dtype that changes are summed in."""
        base = self.base[layer]
        return base.new_empty(base.shape, dtype=torch.promote_types(base.dtype, torch.float32))

    def _add(self, delta: Delta) -> None:
        for layer, change in delta.items():
            self._sums[layer] = self._sums.get(layer, _Sum()).plus(change).closed(self._wide(layer))

    def _lay(self, model: Model, layer: int, changes: _Sum) -> None:
        total = changes.total(self._wide(layer))
        model.weight(layer).copy_(self.base[layer].to(total) + total)

    def _write(self, model: Model, layers: Iterable[int]) -> None:
        for layer in layers:
            if layer in self._sums:
                self._lay(model, layer, self._sums[layer])
            else:
                model.weight(layer).copy_(self.base[layer])
