"""The part of many token sequences that a change of one hidden state can reach (docs/method.md).

A sequence is cut at a position (the subject's last token) and a layer L. What lies before the cut, or at or below layer
L, never sees a change of layer L's output at the cut: it is computed once. What remains, the *tail*, is run again and
again: layers above L, from the cut to the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from ece.models.attention import takes_packed
from ece.models.model import Model
from ece.models.replay import Past, Replay, padded, record


@dataclass(frozen=True)
class SharedPrefixes:
    """Beginnings that many sequences have in common, run through all layers once."""

    tokens: list[list[int]]
    past: Past

    @classmethod
    @torch.no_grad()
    def compute(cls, model: Model, tokens: list[list[int]]) -> SharedPrefixes:
        """Run the prefixes `tokens` through the model as it is now."""
        nothing, everything = Past.empty(len(tokens), model.device), range(len(model.layers))
        return cls(tokens, _continued(model, tokens, nothing, everything)[0])

    @classmethod
    def of_all(cls, model: Model, sequences: Sequence[Sequence[int]], limit: int, least: int = 1) -> SharedPrefixes:
        """What all sequences begin with as the one prefix: at most `limit` tokens; none if under `least`."""
        rows = [list(row) for row in sequences]
        common = min(in_common(rows), limit)
        return cls.compute(model, [rows[0][: common if common >= least else 0]])

    def repeated(self, rows: int) -> Past:
        """The first prefix as the past of so many rows."""
        return self.past.repeated(rows)

    def longest(self, sequence: Sequence[int], limit: int) -> tuple[int, int]:
        """Which prefix shares the longest beginning with a sequence, and how long it is (at most `limit`)."""
        lengths = [_common(prefix, sequence[:limit]) for prefix in self.tokens]
        best = max(range(len(lengths)), key=lengths.__getitem__)
        return best, lengths[best]


@dataclass(frozen=True)
class Tails:
    """Tails of many sequences, right-padded to one length."""

    model: Model
    layer: int
    ids: Tensor
    """`[rows, positions]`"""

    visible: Tensor
    """`[rows, positions]` bool"""

    hidden: Tensor
    """`[rows, positions, d_model]`: layer L's output, unchanged."""

    past: Past
    """What the layers above L remember of the positions before the cut."""

    @classmethod
    @torch.no_grad()
    def cut(
        cls,
        model: Model,
        layer: int,
        sequences: Sequence[Sequence[int]],
        cuts: Sequence[int],
        prefixes: SharedPrefixes,
        ended: Sequence[int] = (),
    ) -> tuple[Tails, Tensor]:
        """Compute once what the change cannot reach: whole rows up to layer L, above it what is before the cuts.

        Args:
            model: the model, as it is now.
            layer: L, whose output is going to be changed.
            sequences: token ids of each row.
            cuts: the position of the change in each row.
            prefixes: beginnings that have been computed already.
            ended: numbers of rows that run to their end in all layers, without a change.

        Returns:
            The tails, and what the last layer gives at the end of those rows `[ended, d_model]`.
        """
        shared = [prefixes.longest(row, cut) for row, cut in zip(sequences, cuts, strict=True)]
        which = torch.tensor([index for index, _ in shared], device=model.device)
        lengths = torch.tensor([length for _, length in shared], device=model.device)
        before = _shortened(prefixes.past.select(which), lengths)
        own = [row[length:] for row, (_, length) in zip(sequences, shared, strict=True)]
        _, hidden = _continued(model, own, before, range(layer + 1))

        starts = [cut - length for cut, (_, length) in zip(cuts, shared, strict=True)]
        heads = [row[:start] for row, start in zip(own, starts, strict=True)]
        for row in ended:
            heads[row] = own[row]
        above = range(layer + 1, len(model.layers))
        past, last = _continued(model, heads, before, above, hidden)
        past = _shortened(past, torch.tensor(cuts, device=model.device))

        ids, visible = padded([row[cut:] for row, cut in zip(sequences, cuts, strict=True)], model.device)
        tails = cls(model, layer, ids, visible, _from(hidden, starts, ids.shape[1]), past.of_layers(above))
        ends = [len(heads[row]) - 1 for row in ended]
        return tails, last[torch.tensor(ended, dtype=torch.long), torch.tensor(ends, dtype=torch.long)]

    @cached_property
    def replay(self) -> Replay:
        """What the layers above L are handed."""
        return record(self.model, self.ids, self.visible, self.past, pack=True)

    @classmethod
    def joined(cls, parts: Sequence[Tails]) -> Tails:
        """Those of several parts, in their order; all above one layer of one model."""
        longest = max(part.ids.shape[1] for part in parts)

        def lengthened(values: Tensor) -> Tensor:
            return pad(values, [0, 0] * (values.dim() - 2) + [0, longest - values.shape[1]])

        ids, visible, hidden = (
            torch.cat([lengthened(getattr(part, name)) for part in parts]) for name in ("ids", "visible", "hidden")
        )
        past = Past.joined([part.past for part in parts])
        return cls(parts[0].model, parts[0].layer, ids, visible, hidden, past)

    def select(self, rows: Tensor) -> Tails:
        """Some of the rows."""
        past = self.past.select(rows)
        return Tails(self.model, self.layer, self.ids[rows], self.visible[rows], self.hidden[rows], past)

    def run(self, change: Tensor) -> Tensor:
        """The last layer's output `[rows, positions, d_model]` when `change` `[rows, d_model]` is added at the cut."""
        at_cut = self.hidden[:, 0] + change.to(self.hidden)
        hidden = torch.cat([at_cut[:, None], self.hidden[:, 1:]], dim=1)
        return self.replay.run(hidden, self.layer + 1, len(self.model.layers))


def _continued(
    model: Model, tokens: Sequence[Sequence[int]], past: Past, layers: range, hidden: Tensor | None = None
) -> tuple[Past, Tensor]:
    """The past with each row's tokens appended, in some layers, and what leaves the last of these.

    Args:
        model: the model.
        tokens: of each row; it may have none.
        past: what comes before.
        layers: some, in their order.
        hidden: `[rows, positions, d_model]`: what enters the first of them; left out where that is the lowest.

    Returns:
        The past, and `[rows, positions, d_model]`.
    """
    leaving = None
    for rows in _together(model, tokens):
        ids, visible = padded([tokens[row] for row in rows], model.device)
        some = torch.tensor(rows, device=model.device)
        before = replace(past.select(some), seen={})
        replay = record(model, ids, visible, before, pack=True)
        entering = replay.embedded if hidden is None else hidden[some.to(hidden.device), : ids.shape[1]]
        reached = replay.run(entering, layers.start, layers.stop)
        if leaving is None:
            leaving = reached.new_zeros(len(tokens), max(map(len, tokens)), reached.shape[2])
        leaving[some.to(leaving.device), : ids.shape[1]] = reached
        past = replace(past, seen=before.seen).extended(visible, some)
    return past, torch.zeros(len(tokens), 0, model.d_model, device=model.device) if leaving is None else leaving


def _shortened(past: Past, lengths: Tensor) -> Past:
    """A past of which each row keeps so many positions `[rows]`, the first ones."""
    where = past.where[:, : int(lengths.max())]
    return replace(past, where=where * (torch.arange(where.shape[1], device=where.device) < lengths[:, None]))


def _from(hidden: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """So many positions of each row from its start on `[rows, length, d_model]`; behind its end its last one again."""
    row = torch.arange(len(hidden), device=hidden.device)[:, None]
    position = torch.tensor(starts, device=hidden.device)[:, None] + torch.arange(length, device=hidden.device)
    return hidden[row, position.clamp_max(hidden.shape[1] - 1)]


def _together(model: Model, tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows that run together and waste little, each group in the rows' order; empty rows are in none."""
    filled = [row for row in range(len(tokens)) if len(tokens[row])]
    if takes_packed(model.network):  # padding costs nothing
        if filled:
            yield filled
        return
    order = sorted(filled, key=lambda row: len(tokens[row]))
    while order:
        shortest = len(tokens[order[0]])
        group = [row for row in order if len(tokens[row]) <= shortest + shortest // 4]
        yield sorted(group)
        order = order[len(group) :]


def in_common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with: what the first and last in lexical order share, all share."""
    ordered = [tuple(row) for row in rows]
    return _common(min(ordered), max(ordered))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    length = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        length += 1
    return length
