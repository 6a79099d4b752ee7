"""Changes laid over the weights and taken off again, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny as make
import torch
from torch import Tensor

from ece.models import Delta, LowRank, Model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def change(model: Model, layers: tuple[int, ...], seed: int, neurons: Tensor | None = None) -> Delta:
    generator = torch.Generator().manual_seed(seed)

    def one() -> LowRank:
        chosen = torch.arange(3, model.d_ff, 4) if neurons is None else neurons
        left = torch.randn(model.d_model, 2, generator=generator)
        return LowRank(left, 0.1 * torch.randn(2, len(chosen), generator=generator), chosen)

    return {layer: one() for layer in layers}


def weights(model: Model) -> dict[str, Tensor]:
    """Every parameter's bits."""
    return {name: p.detach().clone().view(torch.uint8) for name, p in model.network.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(params=DTYPES, ids=str)
def model(request: pytest.FixtureRequest, tiny: Model) -> Model:
    make.cast(tiny, request.param)
    return tiny


def test_push_adds_left_times_right_to_the_chosen_columns(model: Model):
    before, delta = model.weight(1).clone(), change(model, (1,), 0)
    everything = weights(model)
    model.overlay.push(model, delta)
    chosen = delta[1].neurons
    others = [k for k in range(model.d_ff) if k not in chosen.tolist()]
    wanted = before[:, chosen].float() + delta[1].left @ delta[1].right
    assert torch.equal(model.weight(1)[:, chosen], wanted.to(before.dtype))
    assert torch.equal(model.weight(1)[:, others], before[:, others])
    changed = [name for name, bits in weights(model).items() if not torch.equal(bits, everything[name])]
    assert changed == [model.weight_name(1)]


def test_all_neurons(model: Model):
    before, delta = model.weight(2).clone(), change(model, (2,), 0, torch.arange(model.d_ff))
    model.overlay.push(model, delta)
    assert torch.equal(model.weight(2), (before.float() + delta[2].left @ delta[2].right).to(before.dtype))


def test_the_network_itself_runs_with_the_change(model: Model):
    ids = torch.tensor([[5, 6, 7]])
    before = model.network(ids).logits
    delta = change(model, (1,), 0)
    model.overlay.push(model, delta)
    assert not torch.equal(model.network(ids).logits, before)
    model.overlay.remove(model, delta)
    assert torch.equal(model.network(ids).logits, before)


def test_remove_gives_the_original_bits(model: Model):
    before = weights(model)
    deltas = [change(model, (0, 1), 0), change(model, (1, 2), 1), change(model, (0,), 2)]
    for delta in deltas:
        model.overlay.push(model, delta)
    assert not same(weights(model), before)
    for delta in deltas[::-1]:
        model.overlay.remove(model, delta)
    assert same(weights(model), before)
    assert not model.overlay.base
    assert not model.overlay.stack


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_removing_in_any_order_equals_never_having_pushed(model: Model, removed: int):
    before = weights(model)
    deltas = [change(model, (0, 1), 0), change(model, (1, 2), 1), change(model, (0, 1), 2)]
    kept = [delta for i, delta in enumerate(deltas) if i != removed]
    for delta in kept:
        model.overlay.push(model, delta)
    wanted = weights(model)
    for delta in kept:
        model.overlay.remove(model, delta)
    for delta in deltas:
        model.overlay.push(model, delta)
    model.overlay.remove(model, deltas[removed])
    assert same(weights(model), wanted)
    for delta in kept:
        model.overlay.remove(model, delta)
    assert same(weights(model), before)


def test_small_changes_add_up_in_low_precision():
    """The sum is kept wide: a hundred changes, each too small for bfloat16, are not lost."""
    model = make.build("llama", dtype=torch.bfloat16)
    neurons = torch.arange(model.d_ff)
    before = model.weight(1).clone()
    nudge = 1e-3 * before.float().abs().mean()
    for _ in range(100):
        left = torch.full((model.d_model, 1), float(nudge))
        model.overlay.push(model, {1: LowRank(left, torch.ones(1, model.d_ff), neurons)})
    wanted = before.float() + 100 * nudge
    torch.testing.assert_close(model.weight(1).float(), wanted, rtol=8e-3, atol=1e-4)


def test_what_is_not_there_cannot_be_removed(tiny_llama: Model):
    delta = change(tiny_llama, (1,), 0)
    with pytest.raises(ValueError, match="not applied"):
        tiny_llama.overlay.remove(tiny_llama, delta)
    tiny_llama.overlay.push(tiny_llama, delta)
    with pytest.raises(ValueError, match="not applied"):
        tiny_llama.overlay.remove(tiny_llama, change(tiny_llama, (1,), 0))  # equal, but another one


def test_suspended_shows_the_base(model: Model):
    before = weights(model)
    with model.overlay.suspended(model):
        assert same(weights(model), before)
    model.overlay.push(model, change(model, (0, 1), 0))
    model.overlay.push(model, change(model, (1,), 1))
    edited = weights(model)
    with model.overlay.suspended(model):
        assert same(weights(model), before)
    assert same(weights(model), edited)
    with pytest.raises(KeyError), model.overlay.suspended(model):
        raise KeyError
    assert same(weights(model), edited)


def lay_and_fail(lay: Callable[[Delta], None], delta: Delta) -> None:
    lay(delta)
    raise RuntimeError("failed")


def test_a_trial_ends_without_a_trace(model: Model):
    model.overlay.push(model, change(model, (1,), 0))
    edited, stacked = weights(model), model.weight(1).clone()
    tried = change(model, (0, 1), 1)
    with model.overlay.trial(model) as lay:
        lay({0: tried[0]})
        lay({1: tried[1]})
        shown = model.weight(1).clone()
    assert not torch.equal(shown, stacked)
    assert same(weights(model), edited)
    with pytest.raises(RuntimeError, match="failed"), model.overlay.trial(model) as lay:
        lay_and_fail(lay, change(model, (1, 2), 2))
    assert same(weights(model), edited)
    assert len(model.overlay.stack) == 1
    assert list(model.overlay.base) == [1]
    model.overlay.push(model, {1: tried[1]})  # gives what the trial showed
    assert torch.equal(model.weight(1), shown)


def test_a_change_of_the_wrong_shape_leaves_the_model_as_it_was(tiny_llama: Model):
    before = weights(tiny_llama)
    wrong = {1: LowRank(torch.ones(3, 1), torch.ones(1, 2), torch.tensor([0, 1]))}
    with pytest.raises(ValueError, match="does not fit"):
        tiny_llama.overlay.push(tiny_llama, wrong)
    assert same(weights(tiny_llama), before)
    assert not tiny_llama.overlay.stack
    assert not tiny_llama.overlay.base


def test_fingerprint_is_of_the_unedited_model(model: Model):
    before = model.fingerprint
    model.overlay.push(model, change(model, (0, 1), 0))
    fresh = Model(model.network, model.tokenizer, "another name")
    fresh.overlay = model.overlay
    assert fresh.fingerprint == before
    fresh.overlay = type(model.overlay)()
    del fresh.fingerprint
    assert fresh.fingerprint != before


def test_weight_is_a_view(tiny: Model):
    tiny.weight(1)[0, 5] = 42.0
    stored = dict(tiny.network.named_parameters())[tiny.weight_name(1)]
    assert stored[(5, 0) if tiny.family.transposed else (0, 5)] == 42
    assert tiny.weight(1).shape == (tiny.d_model, tiny.d_ff)


def test_memories_are_forgotten_with_the_changes(tiny_llama: Model):
    kept: list[Any] = ["a memory"]
    tiny_llama.memories[:] = kept
    for away in (tiny_llama.overlay.suspended(tiny_llama), tiny_llama.overlay.rewound(tiny_llama)):
        with away:
            assert tiny_llama.memories == []
            tiny_llama.memories.append(None)  # type: ignore[arg-type]
        assert tiny_llama.memories == kept
