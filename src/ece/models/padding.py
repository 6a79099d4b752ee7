"""Rows of unequal length in one long row without their padding, which only attention takes apart again.

A linear map costs as much for a padded position as for a real one. Between attention and attention nothing in a decoder
layer looks from one position at another, so that there the real positions may stand in one row, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is handed besides the hidden states, by place and by name."""


Made = TypeVar("Made")


@dataclass(frozen=True)
class Packing:
    """Which positions of right-padded rows are real: at least the first of each row."""

    visible: Tensor
    """`[rows, positions]` bool, False at padding."""

    _made: dict[Any, tuple[Tensor, Any]] = field(default_factory=dict, repr=False, compare=False)

    def once(self, make: Callable[..., Made], of: Tensor, *options: Hashable) -> Made:
        """`make(of, *options)`, which all layers of these rows share."""
        key = (make, id(of), *options)
        if key not in self._made:
            self._made[key] = of, make(of, *options)
        return self._made[key][1]

    @cached_property
    def real(self) -> Tensor:
        """`[real]`: the real positions, counted through the rows."""
        return self.visible.flatten().nonzero()[:, 0]

    @cached_property
    def place(self) -> Tensor:
        """`[rows * positions]`: where among the real ones a position is; padding stands at the last one before it.

        That is of its own row, so that no row's NaN comes to another.
        """
        return (self.visible.flatten().cumsum(0) - 1).clamp_min(0)

    def pack(self, values: Tensor) -> Tensor:
        """`[rows, positions, ...]` without the padding: `[1, real, ...]`."""
        return values.flatten(0, 1).index_select(0, self.real.to(values.device))[None]

    def unpack(self, values: Tensor) -> Tensor:
        """`[1, real, ...]` as `[rows, positions, ...]`, with the row's last value at padding."""
        return values[0].index_select(0, self.place.to(values.device)).unflatten(0, self.visible.shape)

    def heads(self, values: Tensor) -> Tensor:
        """`[1, heads, real, d_head]` as `[rows, heads, positions, d_head]`."""
        return self.unpack(values.transpose(1, 2)).transpose(1, 2)

    def calls(self, calls: Sequence[Call]) -> list[Call]:
        """What layers are handed for the rows, for the one long row instead."""
        packed: dict[int, Tensor] = {}

        def of(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(of(part) for part in value)
            if not (isinstance(value, Tensor) and value.shape[:2] == self.visible.shape):
                return value
            if id(value) not in packed:  # layers are handed the same
                packed[id(value)] = self.pack(value)
            return packed[id(value)]

        return [(of(arguments), {name: of(value) for name, value in options.items()}) for arguments, options in calls]
