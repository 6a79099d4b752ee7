"""Attention of packed rows, written out with its gradient: in a third of torch's time for the short tails of a search.

What all heads of all rows need is gathered from where it lies, and multiplied at once. The gradient goes to what is
present alone, for the past has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ece.models.padding import Packing

FEW = 1 << 20
"""Scores of this many queries and keys are held at once, at most: 4 MB, which stay in a processor's cache."""


@dataclass(frozen=True)
class Layout:
    """Where packed rows and their past are found, and where they go; the same for all layers."""

    queries: Tensor
    """`[rows * key heads * together * positions]`: of the grouped queries, among `[heads * real]`"""

    keys: Tensor
    """`[rows * key heads * keys]`: of the keys, among `[(places + real) * key heads]`"""

    read: Tensor
    """`[real * heads]`: of what real positions read, among the grouped queries"""

    asked: Tensor
    """`[heads * real]`: the same, head by head"""

    present: Tensor
    """`[real * key heads]`: of real positions, among `[rows * key heads * positions]`"""

    own: Tensor
    """`[key heads * real]`: the same, head by head"""

    positions: int
    rows: int
    """Rows of one key head each."""

    @classmethod
    def of(cls, where: Tensor, visible: Tensor, heads: int, key_heads: int, places: int) -> Layout:
        """Of packed rows.

        Args:
            where: `[rows, past]`: the place of each of a row's earlier positions.
            visible: `[rows, positions]` bool: where they are not padded.
            heads: of the queries.
            key_heads: of the keys and values.
            places: where the present begins, behind what is kept of the past.
        """
        packing, (rows, positions), device = Packing(visible), visible.shape, where.device
        head, key_head = torch.arange(heads, device=device), torch.arange(key_heads, device=device)
        real, place = packing.real, packing.place.view(rows, positions)
        queries = head.view(1, key_heads, -1, 1) * len(real) + place[:, None, None]
        keys = torch.cat([where, places + place], 1)[:, None] * key_heads + key_head[:, None]
        row, position = (real // positions)[:, None], (real % positions)[:, None]
        read = (row * heads + head) * positions + position
        present = (row * key_heads + key_head) * positions + position
        return cls(
            queries=queries.flatten(),
            keys=keys.flatten(),
            read=read.flatten(),
            asked=read.T.flatten(),
            present=present.flatten(),
            own=present.T.flatten(),
            positions=positions,
            rows=rows * key_heads,
        )


class Reading(torch.autograd.Function):
    """`softmax(scale * q k^T + mask) v` of packed rows, of which the gradient keeps the weights, and nothing padded."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: tuple[Tensor, Tensor] | None,
        mask: Tensor,
        scale: float,
        layout: Layout,
    ) -> Tensor:
        """What real positions read `[1, real, heads, d_head]`.

        Args:
            ctx: of autograd.
            query: `[1, heads, real, d_head]`
            key: `[1, key heads, real, d_head]`
            value: as `key`.
            past: keys and values `[places, key heads, d_head]` that come before.
            mask: `[rows * key heads, together * positions, keys]`: what is added to the scores.
            scale: of the scores.
            layout: of the rows.
        """
        before = past or (None, None)
        grouped, keys = _grouped(query, layout), _whole(before[0], key, layout)
        weights = torch.baddbmm(mask, grouped, keys.mT, alpha=scale).softmax(-1)
        read = torch.bmm(weights, _whole(before[1], value, layout))
        ctx.save_for_backward(query, key, value, weights)
        ctx.past, ctx.scale, ctx.layout = before, scale, layout
        return _rows(read, layout.read).view(1, -1, query.shape[1], read.shape[-1]).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides its parameters' names)
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Its gradient by the queries, keys and values of what is present."""
        query, key, value, weights = ctx.saved_tensors
        layout, (past_keys, past_values) = ctx.layout, ctx.past
        of_read = weights.new_zeros(weights.shape[0] * weights.shape[1], slope.shape[-1])
        of_read = of_read.index_copy_(0, layout.read, slope.flatten(0, 2).to(of_read)).view(*weights.shape[:2], -1)
        scores = torch.bmm(of_read, _whole(past_values, value, layout).mT).mul_(weights)
        scores = scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1).mul_(ctx.scale)
        of_query = torch.bmm(scores, _whole(past_keys, key, layout))
        here = slice(weights.shape[2] - layout.positions, None)
        of_key = torch.bmm(scores[:, :, here].mT, _grouped(query, layout))
        of_value = torch.bmm(weights[:, :, here].mT, of_read)
        return (
            _rows(of_query, layout.asked).view(query.shape).to(query.dtype),
            _rows(of_key, layout.own).view(key.shape).to(key.dtype),
            _rows(of_value, layout.present).view(1, -1, *value.shape[1::2]).transpose(1, 2).to(value.dtype),
            *(None,) * 4,
        )


def _grouped(query: Tensor, layout: Layout) -> Tensor:
    """`[rows * key heads, together * positions, d_head]`, float32 at least, as all that is multiplied."""
    return wide(query[0].flatten(0, 1).index_select(0, layout.queries)).view(layout.rows, -1, query.shape[-1])


def _whole(past: Tensor | None, present: Tensor, layout: Layout) -> Tensor:
    """The past followed by the present, `[rows * key heads, keys, d_head]`."""
    present = present[0].transpose(0, 1)
    states = present if past is None else torch.cat([past, present])
    return wide(states.flatten(0, 1).index_select(0, layout.keys)).view(layout.rows, -1, states.shape[-1])


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Some of the rows of `[rows * key heads, queries or keys, d_head]`."""
    return values.flatten(0, 1).index_select(0, index)


def wide(values: Tensor) -> Tensor:
    """In float32, or in a wider type that they have."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
