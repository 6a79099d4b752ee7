"""Attention of packed rows, written out with its gradient: in a third of torch's time for the short tails of a search.

What all heads of many rows need is gathered from where it lies, and multiplied at once; rows of other lengths come
apart, for padding is multiplied too. The gradient goes to what is present alone, for the past has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ece.models.padding import Packing

FEW = 1 << 20
"""Scores of this many queries and keys are held, at most: 4 MB, which stay in a processor's cache."""

LEAST = 1 << 14
"""As many fewer of them make it worth while to multiply some rows apart."""


@dataclass(frozen=True, eq=False)
class Block:
    """Rows of like length, which are multiplied together."""

    rows: Tensor
    """`[some]`: their numbers"""

    positions: int
    """Of the longest."""

    past: int
    """Earlier positions, where there are most."""

    queries: Tensor
    """`[some * key heads * together * positions]`: of the grouped queries, among `[heads * real]`"""

    keys: Tensor
    """`[some * key heads * keys]`: of the keys, among `[(places + real) * key heads]`"""

    matrices: int
    """One for every row and key head."""

    def seen(self, mask: Tensor) -> Tensor:
        """Of all rows' `[rows, queries, past + queries]` its own `[some, positions, keys]`."""
        present = mask.shape[2] - mask.shape[1]
        mask = mask[self.rows, : self.positions]
        return torch.cat([mask[:, :, : self.past], mask[:, :, present : present + self.positions]], 2)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where packed rows and their past are found, and where they go; the same for all layers."""

    blocks: tuple[Block, ...]

    read: Tensor
    """`[real * heads]`: of what real positions read, among the grouped queries of all blocks"""

    asked: Tensor
    """`[heads * real]`: the same, head by head"""

    present: Tensor
    """`[real * key heads]`: of real positions, among `[some * key heads * positions]` of all blocks"""

    own: Tensor
    """`[key heads * real]`: the same, head by head"""

    @property
    def scores(self) -> int:
        """How many queries of all heads meet a key."""
        return sum(len(block.queries) * (block.past + block.positions) for block in self.blocks)

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
        packing, device = Packing(visible), where.device
        head, key_head = torch.arange(heads, device=device), torch.arange(key_heads, device=device)
        real, place = packing.real, packing.place.view(visible.shape)
        positions, past = visible.sum(1), _last(where > 0)
        first, width, blocks, before = torch.zeros_like(positions), torch.zeros_like(positions), [], 0
        for rows in _alike(torch.arange(len(visible), device=device), positions, past, heads):
            longest, most = int(positions[rows].max()), int(past[rows].max())
            here = place[rows, :longest]
            queries = head.view(1, key_heads, -1, 1) * len(real) + here[:, None, None]
            keys = torch.cat([where[rows, :most], places + here], 1)[:, None] * key_heads + key_head[:, None]
            blocks.append(Block(rows, longest, most, queries.flatten(), keys.flatten(), len(rows) * key_heads))
            first[rows] = before + longest * torch.arange(len(rows), device=device)
            width[rows] = longest
            before += longest * len(rows)
        row, position = (real // visible.shape[1])[:, None], (real % visible.shape[1])[:, None]
        read, present = (first[row] * len(of) + of * width[row] + position for of in (head, key_head))
        return cls(tuple(blocks), read.flatten(), read.T.flatten(), present.flatten(), present.T.flatten())


def _last(some: Tensor) -> Tensor:
    """How many of each row `[rows, positions]` (bool) there are up to the last."""
    return (some * torch.arange(1, some.shape[1] + 1, device=some.device)).amax(1) if some.shape[1] else some.sum(1)


def _alike(rows: Tensor, positions: Tensor, past: Tensor, heads: int) -> list[Tensor]:
    """Rows in groups, in each of which few scores are of padding: cut in two where that saves most, and so on."""
    order = rows[(positions * (past + positions))[rows].argsort(stable=True)]
    ways = [_scores(positions[some], past[some], heads) for some in (order, order.flip(0))]
    saved = ways[0][-1] - (ways[0][:-1] + ways[1][:-1].flip(0))
    if not len(saved) or saved.max() < LEAST:
        return [rows]
    cut = int(saved.argmax()) + 1
    return [group for some in (order[:cut], order[cut:]) for group in _alike(some, positions, past, heads)]


def _scores(positions: Tensor, past: Tensor, heads: int) -> Tensor:
    """`[rows]`: how many the first row has, the first two in one block, and so on."""
    many, longest = torch.arange(1, len(positions) + 1, device=positions.device), positions.cummax(0).values
    return heads * many * longest * (past.cummax(0).values + longest)


class Reading(torch.autograd.Function):
    """`softmax(scale * q k^T + mask) v` of packed rows, of which the gradient keeps the weights, and little padded."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: tuple[Tensor, Tensor] | None,
        masks: Sequence[Tensor],
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
            masks: of each block `[matrices, together * positions, keys]`: what is added to the scores.
            scale: of the scores.
            layout: of the rows.
        """
        before = past or (None, None)
        queries, keys, values = query[0].flatten(0, 1), _all(before[0], key), _all(before[1], value)
        read, kept = [], []
        for block, mask in zip(layout.blocks, masks, strict=True):
            grouped = _taken(queries, block.queries, block)
            weights = torch.baddbmm(mask, grouped, _taken(keys, block.keys, block).mT, alpha=scale).softmax(-1)
            read.append(torch.bmm(weights, _taken(values, block.keys, block)))
            kept.append(weights)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.past, ctx.scale, ctx.layout = before, scale, layout
        return _rows(read, layout.read).view(1, -1, query.shape[1], value.shape[-1]).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides its parameters' names)
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Its gradient by the queries, keys and values of what is present."""
        query, key, value, *kept = ctx.saved_tensors
        layout, of_queries, of_keys, of_values = ctx.layout, [], [], []
        queries, keys, values = query[0].flatten(0, 1), _all(ctx.past[0], key), _all(ctx.past[1], value)
        sizes = [weights.shape[0] * weights.shape[1] for weights in kept]
        of_read = kept[0].new_zeros(sum(sizes), slope.shape[-1])
        of_read.index_copy_(0, layout.read, slope.flatten(0, 2).to(of_read))
        for block, weights, part in zip(layout.blocks, kept, of_read.split(sizes), strict=True):
            read, present = part.view(*weights.shape[:2], -1), slice(block.past, None)
            scores = torch.bmm(read, _taken(values, block.keys, block).mT).mul_(weights)
            scores = scores.addcmul_(weights, scores.sum(-1, keepdim=True), value=-1).mul_(ctx.scale)
            of_queries.append(torch.bmm(scores, _taken(keys, block.keys, block)))
            of_keys.append(torch.bmm(scores[:, :, present].mT, _taken(queries, block.queries, block)))
            of_values.append(torch.bmm(weights[:, :, present].mT, read))
        return (
            _rows(of_queries, layout.asked).view(query.shape).to(query.dtype),
            _rows(of_keys, layout.own).view(key.shape).to(key.dtype),
            _rows(of_values, layout.present).view(1, -1, *value.shape[1::2]).transpose(1, 2).to(value.dtype),
            *(None,) * 4,
        )


def _all(past: Tensor | None, present: Tensor) -> Tensor:
    """Keys or values, the past's followed by the present ones, `[(places + real) * key heads, d_head]`."""
    present = present[0].transpose(0, 1)
    return (present if past is None else torch.cat([past, present])).flatten(0, 1)


def _taken(states: Tensor, index: Tensor, block: Block) -> Tensor:
    """Those of a block, `[matrices, ..., d_head]`, float32 at least, as all that is multiplied."""
    return wide(states.index_select(0, index)).view(block.matrices, -1, states.shape[-1])


def _rows(values: Sequence[Tensor], index: Tensor) -> Tensor:
    """Some of the rows of all blocks' `[matrices, queries or keys, d_head]`."""
    rows = [block.flatten(0, 1) for block in values]
    return (rows[0] if len(rows) == 1 else torch.cat(rows)).index_select(0, index)


def wide(values: Tensor) -> Tensor:
    """In float32, or in a wider type that they have."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
