"""Heads that share keys: the same as transformers' own attention, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import tiny as make
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ece.models import Model
from ece.models.attention import GROUPED, grouped_attention
from ece.models.replay import Past, padded, record


@dataclass
class Drawn:
    """An attention with its queries, keys and values, and a mask that hides some of the past."""

    module: nn.Module
    states: tuple[Tensor, Tensor, Tensor]
    mask: Tensor

    def read(self, attention: Callable[..., tuple[Tensor, object]], mask: Tensor | None) -> Tensor:
        """What an attention function gives."""
        return attention(self.module, *self.states, mask, scaling=0.3)[0]


def drawn(rows: int, key_heads: int, groups: int, queries: int, past: int) -> Drawn:
    """Random states in float64."""

    def state(heads: int, length: int) -> Tensor:
        return torch.randn(rows, heads, length, 8, dtype=torch.float64, requires_grad=True)

    module = nn.Module()
    module.num_key_value_groups = groups  # pyright: ignore[reportArgumentType]
    keys = past + queries
    seen = torch.cat([torch.rand(rows, queries, past) < 0.7, torch.ones(rows, queries, queries).tril().bool()], 2)
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)[:, None]
    states = state(key_heads * groups, queries), state(key_heads, keys), state(key_heads, keys)
    return Drawn(module, states, mask)


@given(some.integers(1, 3), some.integers(1, 3), some.integers(1, 4), some.integers(1, 5), some.integers(0, 6))
def test_it_is_what_transformers_computes(rows: int, key_heads: int, groups: int, queries: int, past: int) -> None:
    made = drawn(rows, key_heads, groups, queries, past)
    weight = torch.randn(rows, queries, key_heads * groups, 8, dtype=torch.float64)
    ours, theirs = (made.read(f, made.mask) for f in (grouped_attention, sdpa_attention_forward))
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((read * weight).sum(), made.states) for read in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_without_a_mask_it_is_causal() -> None:
    made = drawn(2, 2, 3, 5, 0)
    ours, theirs = (made.read(f, None) for f in (grouped_attention, sdpa_attention_forward))
    torch.testing.assert_close(ours, theirs)
    causal = torch.zeros(2, 1, 5, 5, dtype=torch.float64).masked_fill(~torch.ones(5, 5).tril().bool(), -torch.inf)
    torch.testing.assert_close(made.read(grouped_attention, causal), ours)


def test_nothing_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> Tensor:
        seen.extend((query.shape, key.shape, value.shape))
        return query

    monkeypatch.setattr("ece.models.attention.scaled_dot_product_attention", attend)
    made = drawn(2, 2, 3, 5, 4)
    made.read(grouped_attention, made.mask)
    assert seen == [(2, 2, 15, 8), (2, 2, 9, 8), (2, 2, 9, 8)]


def test_what_sdpa_refuses_is_refused() -> None:
    made = drawn(2, 2, 3, 5, 4)
    with pytest.raises(ValueError, match="softcap"):
        grouped_attention(made.module, *made.states, made.mask, softcap=30.0)


def test_a_model_attends_so_and_says_the_same() -> None:
    network = make.network("llama")
    ids = torch.arange(12).reshape(2, 6)
    visible = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        before = network(input_ids=ids, attention_mask=visible).logits
        model = Model(network, make.words("llama"), "tiny")
        after = model.network(input_ids=ids, attention_mask=visible).logits
    assert network.config.num_key_value_heads < network.config.num_attention_heads
    assert network.config._attn_implementation == GROUPED
    assert GROUPED not in network.config.to_json_string()
    torch.testing.assert_close(after, before)


def test_a_gradient_keeps_no_padding_and_is_the_same() -> None:
    """What packed layers keep has as many positions as are real, but for the weights; those of padded ones have all."""
    model = Model(make.network("llama"), make.words("llama"), "tiny")
    ids, visible = padded([[1, 2, 3, 4], [5, 6]], model.device)
    weight = torch.randn(*ids.shape, model.d_model) * visible[:, :, None]
    width, real = model.d_model // model.network.config.num_attention_heads, int(visible.sum())
    gradients, padded_states = [], []
    for pack in (True, False):
        replay, kept = record(model, ids, visible, Past.empty(2, model.device), pack), []

        def note(tensor: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
            entering = replay.embedded.detach().requires_grad_()
            leaving = (replay.run(entering, 0, len(model.layers)) * weight).sum()
        wide = [tensor for tensor in kept if tensor.shape[-1:] == (width,) and tensor.dim() == 4]
        padded_states.append(sum(tensor.shape[0] * tensor.shape[2] > real for tensor in wide))
        gradients.append(torch.autograd.grad(leaving, entering)[0] * visible[:, :, None])
    assert padded_states[0] == 0
    assert padded_states[1] >= 4 * len(model.layers)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_an_attention_that_was_chosen_stays() -> None:
    network = make.network("llama")
    network.set_attn_implementation("eager")
    Model(network, make.words("llama"), "tiny")
    assert network.config._attn_implementation == "eager"
