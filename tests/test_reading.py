"""Attention of packed rows by hand: against a slow, obvious one in float64, and against torch's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import tiny as make
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ece.models.attention import grouped_attention
from ece.models.padding import Packing
from ece.models.reading import Layout
from ece.models.replay import Past, _mask, padded, record

WIDTH, WIDTH_OF_VALUES, SCALE = 8, 6, 0.3


@dataclass
class Drawn:
    """Packed rows of some lengths, each behind some of the places of a past."""

    query: Tensor
    key: Tensor
    value: Tensor
    past: Past
    mask: Tensor

    @property
    def states(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.query, self.key, self.value

    def read(self) -> Tensor:
        """What `grouped_attention` gives `[1, real, heads, width]`."""
        module = nn.Module()
        module.layer_idx = 0  # pyright: ignore[reportArgumentType]
        module.num_key_value_groups = self.query.shape[1] // self.key.shape[1]  # pyright: ignore[reportArgumentType]
        return grouped_attention(module, *self.states, self.mask, past=self.past, scaling=SCALE)[0]


def drawn(lengths: list[int], behind: list[int], key_heads: int, groups: int, dtype: torch.dtype) -> Drawn:
    """Random states; row i has `lengths[i]` positions behind `behind[i]` of the past."""
    real, places = sum(lengths), 7
    _, visible = padded([[1] * length for length in lengths], torch.device("cpu"))

    def state(heads: int, width: int) -> Tensor:
        return torch.randn(1, heads, real, width, dtype=dtype, requires_grad=True)

    where = torch.zeros(len(lengths), max(behind), dtype=torch.long)
    for row, number in enumerate(behind):
        where[row, :number] = torch.randint(1, places, (number,))
    kept = [torch.randn(places, key_heads, width, dtype=dtype) for width in (WIDTH, WIDTH_OF_VALUES)]
    past = Past(where, {0: (kept[0], kept[1])}, packing=Packing(visible))
    mask = _mask(past.visible, visible, dtype)
    heads = key_heads * groups
    return Drawn(state(heads, WIDTH), state(key_heads, WIDTH), state(key_heads, WIDTH_OF_VALUES), past, mask)


def slow(made: Drawn) -> Tensor:
    """Position by position and head by head, in float64."""
    keys, values = (state.double() for state in made.past.states[0])
    query, key, value = (state[0].double() for state in made.states)
    groups, read, first = len(query) // len(key), [], 0
    assert made.past.packing is not None
    for row, length in enumerate(made.past.packing.visible.sum(1).tolist()):
        places = made.past.where[row][made.past.where[row] > 0]
        for position in range(first, first + length):
            for head in range(len(query)):
                mine = head // groups
                seen = torch.cat([keys[places, mine], key[mine, first : position + 1]])
                weights = (SCALE * seen @ query[head, position]).softmax(0)
                read.append(weights @ torch.cat([values[places, mine], value[mine, first : position + 1]]))
        first += length
    return torch.stack(read).view(1, first, len(query), -1)


def assert_read_as_by_each_position(made: Drawn, off: float) -> None:
    """In value and gradient."""
    found, wanted = made.read(), slow(made)
    torch.testing.assert_close(found.double(), wanted, rtol=off, atol=off)
    slope = torch.randn_like(wanted)
    ours, theirs = (torch.autograd.grad((read.double() * slope).sum(), made.states) for read in (found, wanted))
    for mine, its in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, its.to(mine.dtype), rtol=off, atol=off)


rows = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=4)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(rows, st.integers(1, 3), st.integers(1, 3), st.sampled_from([torch.float32, torch.float64]))
def test_it_is_what_each_position_reads(rows: list[tuple[int, int]], key_heads: int, groups: int, dtype: torch.dtype):
    """In value and gradient; padding and places that a row does not have count for nothing."""
    lengths, behind = ([row[part] for row in rows] for part in (0, 1))
    made = drawn(lengths, behind, key_heads, groups, dtype)
    assert_read_as_by_each_position(made, 1e-4 if dtype == torch.float32 else 1e-10)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(rows, st.integers(1, 3), st.sampled_from([1, 8, 40]))
def test_rows_that_are_multiplied_apart_come_out_the_same(rows: list[tuple[int, int]], groups: int, least: int):
    """However little it must save."""
    lengths, behind = ([row[part] for row in rows] for part in (0, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ece.models.reading.LEAST", least)
        assert_read_as_by_each_position(drawn(lengths, behind, 2, groups, torch.float64), 1e-10)


def test_rows_of_unlike_length_are_multiplied_apart_where_it_saves_enough():
    """Eight rows of one position behind one, and one of 20 behind 20: 9 * 20 * 40 scores a head, or 20 * 40 + 8 * 2."""
    lengths, behind = [1] * 4 + [20] + [1] * 4, [1] * 4 + [20] + [1] * 4
    _, visible = padded([[1] * length for length in lengths], torch.device("cpu"))
    where = torch.zeros(9, 20, dtype=torch.long)
    for row, number in enumerate(behind):
        where[row, :number] = 1
    few, many = (Layout.of(where, visible, heads, 1, 7).blocks for heads in (1, 3))
    assert [sorted(block.rows.tolist()) for block in few] == [list(range(9))]
    assert [sorted(block.rows.tolist()) for block in many] == [[0, 1, 2, 3, 5, 6, 7, 8], [4]]
    assert [(block.positions, block.past) for block in many] == [(1, 1), (20, 20)]
    assert Layout.of(where, visible, 3, 1, 7).scores == 3 * (20 * 40 + 8 * 2)


def test_many_scores_are_left_to_torch_and_are_the_same(monkeypatch: pytest.MonkeyPatch):
    made = drawn([3, 1, 2], [2, 4, 0], 2, 3, torch.float64)
    made.value = torch.randn_like(made.key, requires_grad=True)  # torch's own wants it as wide as the key
    made.past.states[0] = (made.past.states[0][0], torch.randn_like(made.past.states[0][0]))
    slope = torch.randn(1, 6, 6, WIDTH, dtype=torch.float64)
    found = []
    for few in (1 << 20, 3 * 3 * 6 * 7 - 1):  # rows, positions, heads, keys
        monkeypatch.setattr("ece.models.attention.FEW", few)
        read = made.read()
        assert (type(read.grad_fn).__name__ == "ReadingBackward") == (few == 1 << 20)
        found.append((read, *torch.autograd.grad((read * slope).sum(), made.states)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_is_multiplied_in_float32():
    made = drawn([3, 1], [2, 4], 2, 2, torch.bfloat16)
    read = made.read()
    assert read.dtype == torch.bfloat16
    torch.testing.assert_close(read.double(), slow(made), rtol=1e-2, atol=1e-2)
    gradients = torch.autograd.grad(read.float().sum(), made.states)
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}


def test_a_row_that_is_not_a_number_spoils_no_other():
    made = drawn([3, 2], [1, 1], 1, 2, torch.float32)
    with torch.no_grad():
        made.key[:, :, :3] = math.nan
    read = made.read()
    assert read[:, :3].isnan().all()
    assert read[:, 3:].isfinite().all()
    for gradient in torch.autograd.grad(read[:, 3:].sum(), made.states):
        assert gradient[:, :, 3:].isfinite().all()


def test_nothing_padded_is_kept_for_the_gradient():
    """Queries, keys and values without padding, and the weights; the past is kept as it is, once."""
    made, kept = drawn([9, 1, 1, 1], [5, 5, 5, 5], 2, 2, torch.float32), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        read: Any = made.read()
    *states, weights = kept
    assert [state.data_ptr() for state in states] == [state.data_ptr() for state in made.states]
    assert weights.shape == (4 * 2, 9 * 2, 5 + 9)
    before = read.grad_fn.past
    assert [state.data_ptr() for state in before] == [state.data_ptr() for state in made.past.states[0]]


def test_all_layers_share_a_layout_and_a_mask():
    model = make.build("llama")
    replay = record(model, *padded([[1, 2, 3], [4]], model.device), Past.empty(2, model.device), pack=True)
    replay.run(replay.embedded, 0, len(model.layers))
    assert replay.past.packing is not None
    assert len(replay.past.packing._made) == 2
