"""Calling layers again: replays, frozen pasts and tails give what the whole model gives."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import tiny as make
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ece.models import Model
from ece.models.replay import Led, evenly, keys_captured, padded, record
from ece.models.tails import SharedPrefixes, Tails

VOCABULARY = 300
SEQUENCE = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9)
ids_of = torch.tensor

several = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the model is not changed
)


@st.composite
def cut_sequences(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Prefixes (maybe empty), sequences that may begin with one of them, and a cut in each."""
    prefixes = draw(st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=5), min_size=1, max_size=3))
    starts = draw(st.lists(st.sampled_from([[], *prefixes]), min_size=1, max_size=4))
    sequences = [start + draw(SEQUENCE) for start in starts]
    cuts = [draw(st.integers(0, len(row) - 1)) for row in sequences]
    return prefixes, sequences, cuts


def assert_tails_equal_the_model(model: Model, layer: int, drawn: Any, seed: int) -> None:
    prefixes, sequences, cuts = drawn
    change = torch.randn(len(sequences), model.d_model, generator=torch.Generator().manual_seed(seed))
    tails, _ = Tails.cut(model, layer, sequences, cuts, SharedPrefixes.compute(model, prefixes))
    with torch.no_grad():
        found = tails.run(change)
        for row, (sequence, cut) in enumerate(zip(sequences, cuts, strict=True)):
            whole = reference.run_hooked(model, sequence, layer, cut, change[row])
            length = len(sequence) - cut
            torch.testing.assert_close(found[row, :length], whole["last"][cut:], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(tails.hidden[row, 0], whole["hidden"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.logits(found[row, :length]), whole["logits"][cut:], rtol=1e-4, atol=1e-3)


@several
@given(drawn=cut_sequences(), layer=st.integers(0, 2), seed=st.integers(0, 99))
def test_tails_equal_the_whole_model(tiny: Model, drawn: Any, layer: int, seed: int):
    assert_tails_equal_the_model(tiny, layer, drawn, seed)


@pytest.mark.parametrize("kind", make.OTHERS)
def test_tails_for_the_other_types(kind: str):
    drawn = ([[1, 2, 3], [1, 2]], [[1, 2, 3, 4, 5, 6], [1, 2, 9], [7, 8, 9, 10]], [4, 2, 0])
    assert_tails_equal_the_model(make.build(kind), 1, drawn, 0)


@several
@given(drawn=cut_sequences(), layer=st.integers(0, 2), data=st.data())
def test_rows_that_run_to_their_end_are_the_models(tiny: Model, drawn: Any, layer: int, data: st.DataObject):
    """And the tails of all are what they are without."""
    prefixes, sequences, cuts = drawn
    ended = data.draw(st.lists(st.integers(0, len(sequences) - 1), unique=True))
    ahead, change = SharedPrefixes.compute(tiny, prefixes), torch.randn(len(sequences), tiny.d_model)
    tails, last = Tails.cut(tiny, layer, sequences, cuts, ahead, ended)
    alone, none = Tails.cut(tiny, layer, sequences, cuts, ahead)
    assert (len(last), len(none)) == (len(ended), 0)
    with torch.no_grad():
        for row, found in zip(ended, last, strict=True):
            whole = reference.run_hooked(tiny, sequences[row], layer, 0, None)["last"]
            torch.testing.assert_close(found, whole[-1], rtol=1e-4, atol=1e-4)
        real = tails.visible[..., None]
        assert torch.equal(tails.past.visible, alone.past.visible)
        torch.testing.assert_close(tails.run(change) * real, alone.run(change) * real, rtol=1e-4, atol=1e-4)


def test_a_change_reaches_what_follows(tiny: Model):
    tails, _ = Tails.cut(tiny, 1, [[5, 6, 7, 8]], [1], SharedPrefixes.compute(tiny, [[5]]))
    with torch.no_grad():
        moved = (tails.run(torch.randn(1, tiny.d_model)) - tails.run(torch.zeros(1, tiny.d_model))).norm(dim=-1)
    assert (moved > 1e-2).all()


@several
@given(st.lists(st.integers(0, VOCABULARY - 1), max_size=5), st.lists(SEQUENCE, min_size=1, max_size=4))
def test_what_follows_a_beginning_is_what_it_is_in_the_whole(tiny: Model, beginning: list[int], rows: list[list[int]]):
    """In parts, and with the layers as they are at the time: the second one's matrix is doubled and put back."""
    led = Led.record(tiny, beginning, rows)
    top, weight = len(tiny.layers), tiny.weight(1)
    with torch.no_grad():
        entering = led.run(led.embedded, 0, 1)
        led.run(entering, 1, top)
        weight.mul_(2)
        found = led.run(led.run(entering, 1, 2), 2, top)[0]
        wanted = [reference.run_hooked(tiny, [*beginning, *row], 2, 0, None)["last"] for row in rows]
        weight.div_(2)
    for row, whole in zip(found, wanted, strict=True):
        own = whole[len(beginning) :]
        torch.testing.assert_close(row[: len(own)], own, rtol=1e-4, atol=1e-4)


def test_select_keeps_the_rows_asked_for(tiny: Model):
    sequences, cuts = [[1, 2, 3, 4], [9, 8, 7], [1, 2, 5, 6, 7, 8], [4]], [2, 1, 3, 0]
    tails, _ = Tails.cut(tiny, 1, sequences, cuts, SharedPrefixes.compute(tiny, [[1, 2], []]))
    change = torch.randn(4, tiny.d_model)
    rows = ids_of([0, 2, 3])
    with torch.no_grad():
        whole, part = tails.run(change), tails.select(rows).run(change[rows])
        torch.testing.assert_close(part, whole[rows], rtol=1e-4, atol=1e-5)
        again = tails.select(rows).select(ids_of([1])).run(change[[2]])
    torch.testing.assert_close(again, whole[[2]], rtol=1e-4, atol=1e-5)


def test_pasts_are_kept_once_and_without_padding(tiny: Model):
    """Two begin with what is computed already, two tokens; two and one of their own follow, and none in the last."""
    sequences, cuts = [[1, 2, 3, 4, 5], [9, 8, 7], [1, 2, 5, 6, 7, 8], [4]], [4, 1, 3, 0]
    tails, _ = Tails.cut(tiny, 1, sequences, cuts, SharedPrefixes.compute(tiny, [[1, 2], []]))
    assert tails.past.visible.sum(1).tolist() == [4, 1, 3, 0]
    assert tails.past.states[2][0].shape[0] == 1 + 2 + (2 + 1 + 1)
    some = tails.select(ids_of([1, 3])).past
    assert some.visible.tolist() == [[True], [False]]
    assert some.states[2][0] is tails.past.states[2][0]


def test_gradients_flow_to_the_change_only(tiny: Model):
    tails, _ = Tails.cut(tiny, 1, [[5, 6, 7, 8]], [1], SharedPrefixes.compute(tiny, [[]]))
    change = torch.zeros(1, tiny.d_model, requires_grad=True)
    tails.run(change).sum().backward()
    assert change.grad is not None
    assert change.grad.norm() > 0
    assert all(parameter.grad is None for parameter in tiny.network.parameters())


def test_run_in_parts_equals_run_at_once(tiny: Model):
    ids, visible = padded([[3, 4, 5], [6, 7]], tiny.device)
    replay = record(tiny, ids, visible)
    last = len(tiny.layers)
    with torch.no_grad():
        parts = replay.run(replay.run(replay.embedded, 0, 2), 2, last)
        torch.testing.assert_close(parts, replay.run(replay.embedded, 0, last))
        torch.testing.assert_close(
            tiny.logits(parts[1, :2]), tiny.network(ids_of([[6, 7]])).logits[0], rtol=1e-4, atol=1e-4
        )


@several
@given(rows=st.lists(SEQUENCE, min_size=1, max_size=5), seed=st.integers(0, 99))
def test_packed_rows_come_out_as_padded_ones(tiny: Model, rows: list[list[int]], seed: int):
    ids, visible = padded(rows, tiny.device)
    ahead = SharedPrefixes.compute(tiny, [[1, 2, 3]])
    change = torch.randn(*ids.shape, tiny.d_model, generator=torch.Generator().manual_seed(seed))
    found = {}
    for pack in (False, True):
        replay = record(tiny, ids, visible, ahead.repeated(len(rows)), pack=pack)
        moved = change.clone().requires_grad_()
        states = replay.run(replay.embedded + moved, 0, len(tiny.layers))[visible]
        (gradient,) = torch.autograd.grad(states.square().sum(), moved)
        found[pack] = states.detach(), gradient[visible]
    for padded_rows, packed_rows in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(packed_rows, padded_rows, rtol=1e-4, atol=1e-4)


def test_a_gradient_keeps_no_copy_of_the_past():
    """Keys and values are put together again from a past that all rows and evaluations share."""
    model, kept = make.build("llama"), []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    prefixes = SharedPrefixes.compute(model, [list(range(3, 43))])
    past = prefixes.repeated(2)
    assert past.states is prefixes.past.states
    replay = record(model, *padded([[5, 6, 7], [8]], model.device), past, pack=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        replay.run(replay.embedded.requires_grad_(), 0, len(model.layers))
    assert len(kept) > len(model.layers)
    of_past = [tensor for tensor in kept if 43 in tensor.shape]
    heads = model.network.config.num_attention_heads
    assert [tensor.numel() for tensor in of_past] == [2 * heads * 3 * 43] * len(model.layers)  # the weights alone


def test_packed_rows_leave_out_the_padding(tiny: Model):
    ids, visible = padded([[3, 4, 5], [6], [7, 8]], tiny.device)
    replay = record(tiny, ids, visible, pack=True)
    with keys_captured(tiny, [1]) as keys, torch.no_grad():
        replay.run(replay.embedded, 0, 2)
    assert keys[1].shape[:2] == (1, 6)


def test_rows_without_padding_are_not_packed(tiny: Model):
    ids, visible = padded([[3, 4, 5], [6, 7, 8]], tiny.device)
    assert record(tiny, ids, visible, pack=True).past.packing is None


def fingerprint_of_hooks(model: Model) -> list[Any]:
    return [("forward" in layer.__dict__, len(layer._forward_hooks), layer.training) for layer in model.layers]


def test_record_leaves_the_model_as_it_was(tiny: Model):
    ids = ids_of([[3, 4, 5, 6]])
    hooks, weights = fingerprint_of_hooks(tiny), [p.clone() for p in tiny.network.parameters()]
    wanted = tiny.network(ids).logits
    record(tiny, ids, torch.ones_like(ids, dtype=torch.bool))
    assert fingerprint_of_hooks(tiny) == hooks
    assert not any(forward for forward, _, _ in hooks)
    assert torch.equal(tiny.network(ids).logits, wanted)
    assert all(torch.equal(a, b) for a, b in zip(weights, tiny.network.parameters(), strict=True))


def test_record_restores_forward_when_the_model_fails(tiny: Model):
    with pytest.raises(IndexError):
        record(tiny, ids_of([[10**6]]), torch.ones(1, 1, dtype=torch.bool))
    assert not any(forward for forward, _, _ in fingerprint_of_hooks(tiny))


def test_record_restores_a_forward_that_was_wrapped(tiny: Model):
    """Accelerate puts its own `forward` on each layer's instance."""

    def wrapped(*arguments: Any, **options: Any) -> Any:
        return type(layer).forward(layer, *arguments, **options)

    layer = tiny.layers[1]
    layer.forward = wrapped
    record(tiny, ids_of([[3, 4]]), torch.ones(1, 2, dtype=torch.bool))
    assert layer.__dict__["forward"] is wrapped
    assert "forward" not in tiny.layers[0].__dict__


def test_keys_are_what_enters_the_output_matrix(tiny: Model):
    ids = ids_of([[3, 4, 5]])
    with torch.no_grad(), keys_captured(tiny, [1, 2]) as keys:
        replay = record(tiny, ids, torch.ones_like(ids, dtype=torch.bool))
        replay.run(replay.embedded, 0, 3)
    assert sorted(keys) == [1, 2]
    assert keys[1].shape == (1, 3, tiny.d_ff)
    outputs: list[Tensor] = []
    handle = tiny.ffn_output(1).register_forward_hook(lambda *seen: outputs.append(seen[2]))
    tiny.network(ids)
    handle.remove()
    bias = getattr(tiny.ffn_output(1), "bias", None)
    value = keys[1] @ tiny.weight(1).T + (bias if bias is not None else 0)
    torch.testing.assert_close(value, outputs[0], rtol=1e-4, atol=1e-5)


def test_key_hooks_are_removed_when_the_block_fails(tiny: Model):
    with pytest.raises(KeyError), keys_captured(tiny, [1]):
        raise KeyError
    module: nn.Module = tiny.ffn_output(1)
    assert not module._forward_pre_hooks


def test_padded():
    ids, visible = padded([[1, 2, 3], [], [4]], torch.device("cpu"))
    assert visible.tolist() == [[True] * 3, [False] * 3, [True, False, False]]
    assert ids[visible].tolist() == [1, 2, 3, 4]


def test_longest_prefix():
    prefixes = SharedPrefixes([[], [1, 2, 3], [1, 9]], None)  # pyright: ignore[reportArgumentType]
    assert prefixes.longest([1, 2, 3, 4], 4) == (1, 3)
    assert prefixes.longest([1, 2, 3, 4], 2)[1] == 2
    assert prefixes.longest([1, 9, 9], 3) == (2, 2)
    assert prefixes.longest([5], 1)[1] == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 12))
def test_rows_are_divided_evenly(lengths: list[int], parts: int):
    runs = evenly(lengths, parts)
    assert [row for run in runs for row in run] == list(range(len(lengths)))
    assert len(runs) <= parts
    assert all(runs)
    assert max(sum(lengths[row] for row in run) for run in runs) <= sum(lengths) / parts + max(lengths)
