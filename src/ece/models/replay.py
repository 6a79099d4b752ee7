"""Calling decoder layers again: on some positions, from some layer on, with the past held fixed.

A causal model's state at a position depends only on earlier positions and lower layers. Whatever lies before a change
can therefore be computed once. `record` notes what the network hands to each of its layers (masks, rotary embeddings,
positions); `Replay.run` calls any range of layers with that again; `Past` plays the part of the attention cache.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ece.models.attention import takes_packed
from ece.models.model import Model
from ece.models.padding import Call, Packing

KeysAndValues = tuple[Tensor, Tensor]


@dataclass
class Past:
    """Attention keys and values of earlier positions, held fixed. Layers use it as they use a cache.

    Each is kept once, however many rows come after it, and without padding: a row says where its own are.
    """

    where: Tensor
    """`[rows, positions]`: the places of each row's earlier positions, in their order; 0 where it is padded."""

    states: dict[int, KeysAndValues]
    """By layer, both `[places, heads, head_dim]`; place 0 has zeros."""

    seen: dict[int, KeysAndValues] | None = None
    """What the layers add while it is recorded, as `states`; None when nothing is kept."""

    packing: Packing | None = None
    """Where the layers get their rows packed."""

    @classmethod
    def empty(cls, rows: int, device: torch.device) -> Past:
        """No earlier positions."""
        return cls(torch.zeros(rows, 0, dtype=torch.long, device=device), {})

    @property
    def visible(self) -> Tensor:
        """`[rows, positions]` bool: False where a row is padded."""
        return self.where > 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysAndValues:
        """The past followed by the present, as attention wants it; if packed, the present (it asks for the `whole`)."""
        if self.seen is not None:
            self.seen[layer_idx] = key.transpose(1, 2).flatten(0, 1), value.transpose(1, 2).flatten(0, 1)
        if self.packing:
            return key, value
        return self.whole(layer_idx, 0, key), self.whole(layer_idx, 1, value)

    def whole(self, layer: int, part: int, present: Tensor) -> Tensor:
        """The past's keys (part 0) or values (1) followed by the present ones `[rows, heads, positions, head_dim]`."""
        present = self.packing.heads(present) if self.packing else present
        if layer not in self.states:
            return present
        states = self.states[layer][part]
        where = self.where.to(states.device)
        earlier = states.index_select(0, where.flatten()).unflatten(0, where.shape)
        return torch.cat([earlier, present.transpose(1, 2)], dim=1).transpose(1, 2)

    def extended(self, visible: Tensor, rows: Tensor | slice = slice(None)) -> Past:
        """This past with what was seen after some rows appended to theirs; the others stay as they are.

        Args:
            visible: `[some, new]` bool: the new positions, but for padding.
            rows: the numbers of those rows; all of them, if left out.
        """
        packing, kept = Packing(visible), len(next(iter(self.states.values()))[0]) if self.states else 1
        where = self.where.new_zeros(len(self.where), visible.shape[1])
        where[rows] = (packing.place.view(visible.shape) + kept) * visible
        states = {
            layer: (self._appended(layer, 0, key, packing), self._appended(layer, 1, value, packing))
            for layer, (key, value) in (self.seen or {}).items()
        }
        return Past(torch.cat([self.where, where], dim=1), states)._closed_up()

    def _appended(self, layer: int, part: int, seen: Tensor, packing: Packing) -> Tensor:
        """What is kept in a layer, followed by what was seen at real positions: packed rows have no others."""
        if len(seen) > len(packing.real):
            seen = seen[packing.real.to(seen.device)]
        kept = self.states[layer][part] if layer in self.states else seen.new_zeros(1, *seen.shape[1:])
        return torch.cat([kept, seen])

    def _closed_up(self) -> Past:
        """This past with each row's padding at its end, and no more than the longest needs."""
        order = (~self.visible).byte().argsort(dim=1, stable=True)[:, : int(self.visible.sum(1).max())]
        return replace(self, where=self.where.gather(1, order))

    @classmethod
    def joined(cls, parts: Sequence[Past]) -> Past:
        """The pasts of several parts' rows, in their order: no more than the rows have, and what parts share once."""
        sharing = {id(part.states): [other for other in parts if other.states is part.states] for part in parts}
        longest, kept = max(part.where.shape[1] for part in parts), 1
        place, chosen = {}, []
        for key, some in sharing.items():
            used = torch.cat([part.where[part.visible] for part in some]).unique()
            place[key] = used.new_zeros(int(used.max()) + 1 if len(used) else 1)
            place[key][used] = torch.arange(kept, kept + len(used), device=used.device)
            kept += len(used)
            chosen.append((some[0].states, used))
        where = [pad(place[id(part.states)][part.where], [0, longest - part.where.shape[1]]) for part in parts]
        chosen = [(states, used) for states, used in chosen if states]
        states = {
            layer: _chosen([(of[layer], used) for of, used in chosen]) for layer in (chosen[0][0] if chosen else ())
        }
        return cls(torch.cat(where), states)

    def select(self, rows: Tensor) -> Past:
        """Some rows (repeats allowed); no state is copied."""
        where = self.where[rows]
        return Past(where[:, where.any(0)], self.states)

    def repeated(self, rows: int) -> Past:
        """The first row, so many times."""
        return self.select(self.where.new_zeros(rows))

    def of_layers(self, layers: range) -> Past:
        """What some layers remember; nothing is copied."""
        states = {layer: states for layer, states in self.states.items() if layer in layers}
        return Past(self.where, states)


def _chosen(parts: Sequence[tuple[KeysAndValues, Tensor]]) -> KeysAndValues:
    """Some of what several pasts keep in a layer, behind one place of zeros."""
    (first, _), *_ = parts
    key, value = (
        torch.cat([first[i][:1], *(states[i].index_select(0, places.to(states[i].device)) for states, places in parts)])
        for i in (0, 1)
    )
    return key, value


@dataclass
class Replay:
    """Rows of tokens, ready to be run through any range of layers."""

    model: Model
    embedded: Tensor
    """`[rows, positions, d_model]`: what enters the lowest layer."""

    past: Past
    calls: list[Call]
    """What each layer is handed besides the hidden states."""

    def run(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Hidden states `[rows, positions, d_model]` taken from the input of layer `start` to that of `stop`."""
        if packing := self.past.packing:
            return packing.unpack(self._through(packing.pack(hidden), start, stop))
        return self._through(hidden, start, stop)

    def _through(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        for layer in range(start, stop):
            arguments, options = self.calls[layer]
            output = self.model.layers[layer](hidden, *arguments, **options)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


Entering = tuple[Tensor, Tensor | None]
"""What enters a layer: in rows `[rows, positions, d_model]`, and in what they begin with `[1, positions, d_model]`."""


@dataclass(frozen=True)
class Led:
    """Rows of tokens that all follow one beginning, which is run through the layers once."""

    rows: Replay
    beginning: Replay | None

    @classmethod
    def record(cls, model: Model, beginning: Sequence[int], rows: Sequence[Sequence[int]]) -> Led:
        """Note what the network hands to its layers for both; the beginning may have no tokens."""
        tokens = padded(rows, model.device)
        if not beginning:
            return cls(record(model, *tokens), None)
        ids, visible = padded([beginning], model.device)
        lead = record(model, ids, visible, replace(Past.empty(1, model.device), seen={}))
        ahead = Past.empty(1, model.device).extended(visible).repeated(len(rows))
        return cls(record(model, *tokens, ahead), lead)

    @property
    def embedded(self) -> Entering:
        """What enters the lowest layer."""
        return self.rows.embedded, self.beginning.embedded if self.beginning else None

    def run(self, entering: Entering, start: int, stop: int) -> Entering:
        """Taken from the input of layer `start` to that of `stop`, with the layers as they are now."""
        rows, lead = entering
        if self.beginning is not None and lead is not None:
            lead = self.beginning.run(lead, start, stop)
            visible = torch.ones(lead.shape[:2], dtype=torch.bool, device=self.beginning.past.visible.device)
            self.rows.past.states |= self.beginning.past.extended(visible).states
        return self.rows.run(rows, start, stop), lead


def record(model: Model, ids: Tensor, visible: Tensor, past: Past | None = None, pack: bool = False) -> Replay:
    """Note what the network hands to its layers for right-padded tokens that follow a past.

    Args:
        model: the model.
        ids: `[rows, positions]` token ids.
        visible: `[rows, positions]` bool, False at padding.
        past: what came before; None for nothing.
        pack: let the layers compute nothing for padding, where the model's attention can; what is caught inside of
            them is then packed too.
    """
    packing = Packing(visible) if pack and takes_packed(model.network) and not visible.all() else None
    past = replace(past or Past.empty(len(ids), ids.device), packing=packing)
    inputs: list[Tensor] = []
    calls: list[Call] = []

    def note(hidden: Tensor, *arguments: Any, **options: Any) -> Tensor:
        inputs.append(hidden)
        calls.append((arguments, options))
        return hidden

    first = past.visible.sum(1, keepdim=True)
    positions = first + torch.arange(ids.shape[1], device=ids.device)
    with torch.no_grad(), model.recording, _layers_replaced(model, note):
        model.network.base_model(
            input_ids=ids,
            attention_mask=_mask(past.visible, visible, model.network.dtype),
            position_ids=positions,
            **model.remembering(past),
        )
    if packing:
        calls = [(arguments, options | {"past": past}) for arguments, options in packing.calls(calls)]
    return Replay(model, inputs[0], past, calls)


def _mask(past: Tensor, present: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask `[rows, 1, queries, keys]`: the visible past, and the present up to oneself."""
    queries = present.shape[1]
    causal = torch.ones(queries, queries, dtype=torch.bool, device=present.device).tril()
    allowed = torch.cat([past[:, None].expand(-1, queries, -1), causal & present[:, None]], dim=2)
    allowed[:, range(queries), range(past.shape[1], past.shape[1] + queries)] = True  # padding sees itself: no NaN
    mask = torch.zeros(allowed.shape, dtype=dtype, device=present.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


@contextmanager
def _layers_replaced(model: Model, note: Callable[..., Tensor]) -> Iterator[None]:
    """While this lasts, every decoder layer only calls `note`, in this thread; other threads find them as they were."""
    tuples = model.layers_return_tuples
    saved = [layer.__dict__.get("forward") for layer in model.layers]
    recording = threading.get_ident()

    def stand_in(real: Callable[..., Any], hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != recording:
            return real(hidden, *arguments, **options)
        hidden = note(hidden, *arguments, **options)
        return (hidden, None) if tuples else hidden

    for layer in model.layers:
        layer.forward = partial(stand_in, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(model.layers, saved, strict=True):
            if forward is None:
                del layer.forward
            else:  # accelerate's own wrapper
                layer.forward = forward


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids `[rows, longest]`, right-padded, and which of them are real (bool)."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    visible = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        visible[i, : len(row)] = True
    return ids.to(device), visible.to(device)


def passes(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Row numbers in groups of like length, shortest first: one row, or at most `budget` tokens when padded."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        size = 1
        while size < len(order) and lengths[order[size]] * (size + 1) <= budget:
            size += 1
        yield order[:size]
        order = order[size:]


def evenly(lengths: Sequence[int], parts: int) -> list[range]:
    """Runs of rows of about the same number of tokens, at most so many."""
    ends = list(accumulate(lengths))
    of_row = [(end - length / 2) * parts // ends[-1] for end, length in zip(ends, lengths, strict=True)]
    bounds = [row for row in range(len(lengths)) if row == 0 or of_row[row] > of_row[row - 1]]
    return [range(first, stop) for first, stop in pairwise([*bounds, len(lengths)])]


def of_device(model: Model, tokens: Mapping[str, int]) -> int:
    """How many tokens a pass takes on the model's device: `tokens` says it for `cpu` and for any `other`."""
    return tokens.get(model.device.type, tokens["other"])


@dataclass
class Parts:
    """What makes up a layer's output h = x + attention + ffn, each `[rows, positions, d_model]`."""

    x: Tensor = field(default_factory=lambda: torch.empty(0))
    ffn: Tensor = field(default_factory=lambda: torch.empty(0))
    h: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def attention(self) -> Tensor:
        """What is not the layer's input and not the FFN's output."""
        return self.h - self.x - self.ffn


@contextmanager
def parts_captured(model: Model, layer: int) -> Iterator[Parts]:
    """While this lasts, the parts of a layer's newest output in this thread are kept."""
    parts = Parts()
    ran: list[Tensor] = []
    capturing = threading.get_ident()

    def keep_ffn(_: nn.Module, __: Any, output: Tensor) -> None:
        if threading.get_ident() == capturing:
            ran.append(output)

    def keep_layer(_: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if ran and threading.get_ident() == capturing:  # a layer that is only recorded does not run
            parts.x, parts.ffn, parts.h = inputs[0], ran.pop(), output[0] if isinstance(output, tuple) else output

    handles = [
        model.ffn_output(layer).register_forward_hook(keep_ffn),
        model.layers[layer].register_forward_hook(keep_layer),
    ]
    try:
        yield parts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def keys_captured(model: Model, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While this lasts, the newest input of W `[rows, positions, d_ff]` is kept for each layer."""
    keys: dict[int, Tensor] = {}

    def hook(layer: int) -> Any:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            keys[layer] = inputs[0]

        return keep

    handles = [model.ffn_output(layer).register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        yield keys
    finally:
        for handle in handles:
            handle.remove()
