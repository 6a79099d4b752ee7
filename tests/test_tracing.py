"""Causal tracing, against runs of the whole model with one state put back at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny as make
import torch
from torch import Tensor

from ece.errors import UserError
from ece.facts import Fact
from ece.locate.tracing import KINDS, Part, _spread_of_embeddings, kind_of, trace, traced_layers
from ece.methods.engine import edit, with_layers
from ece.methods.registry import as_recipe, method
from ece.models import Model
from ece.models.tokens import Tokens, locate

SAMPLES = 2


def subject_span(model: Model, fact: Fact) -> range:
    first = len(reference.token_ids(model, fact.prompt.split("{}")[0].rstrip()))
    return range(first, reference.subject_position(model, fact) + 1)


def run(model: Model, ids: Sequence[int], noise: Tensor | None, span: range, restored: dict[Any, Tensor]) -> dict:
    """One run of the whole model on one row.

    Args:
        model: the model.
        ids: of the prompt.
        noise: added to the embeddings of the subject's tokens.
        span: where those are.
        restored: states `[d_model]` put back, by part, layer and position.
    """
    seen: dict[Any, Tensor] = {}

    def embed(_: Any, __: Any, output: Tensor) -> Tensor:
        output = output.clone()
        if noise is not None:
            output[0, list(span)] += noise
        return output

    def hook(part: str, layer: int) -> Any:
        def act(_: Any, __: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            for (wanted, at, place), state in restored.items():
                if (wanted, at) == (part, layer):
                    states[0, place] = state
            seen[part, layer] = states[0]
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return act

    handles = [model.network.get_input_embeddings().register_forward_hook(embed)]
    for layer in range(len(model.layers)):
        handles.append(model.layers[layer].register_forward_hook(hook("layer", layer)))
        handles.append(model.ffn_output(layer).register_forward_hook(hook("ffn", layer)))
    try:
        seen["p"] = model.network(torch.tensor([list(ids)])).logits[0, -1].float().softmax(-1)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def slow_effects(model: Model, fact: Fact, sigma: float, part: Part, window: int) -> tuple[Tensor, float, float]:
    """Indirect effects `[positions, layers]`, and the answer's clean and corrupted probabilities."""
    ids, span = reference.token_ids(model, fact.question), subject_span(model, fact)
    layers = len(model.layers)
    generator = torch.Generator().manual_seed(0)
    noise = sigma * torch.randn(SAMPLES, len(span), model.d_model, generator=generator)
    clean = run(model, ids, None, span, {})
    answer = int(clean["p"].argmax())

    def mean(restored: dict[Any, Tensor]) -> float:
        return sum(float(run(model, ids, drawn, span, restored)["p"][answer]) for drawn in noise) / SAMPLES

    corrupted = mean({})
    effects = torch.zeros(len(ids), layers)
    for place in range(len(ids)):
        for layer in range(layers):
            together = [layer] if part == "layer" else range(layer - window // 2, layer - (-window // 2))
            back = {(part, at, place): clean[part, at][place] for at in together if 0 <= at < layers}
            effects[place, layer] = mean(back) - corrupted
    return effects, float(clean["p"][answer]), corrupted


def spread_of_embeddings(model: Model, facts: Sequence[Fact]) -> float:
    table: Any = model.network.get_input_embeddings().weight
    ids = [reference.token_ids(model, fact.question)[i] for fact in facts for i in subject_span(model, fact)]
    return float(table[ids].std())


def slow_kind(place: int, span: range, length: int) -> str | None:
    subject = ["first subject token", *["middle subject tokens"] * (len(span) - 2), "last subject token"]
    if place in span:
        return subject[place - span[0]] if len(span) > 1 else "last subject token"
    after = ["first subsequent token", *["further tokens"] * length][: length - span[-1] - 1]
    if after:
        after[-1] = "last token"
    return after[place - span[-1] - 1] if place > span[-1] else None


@pytest.mark.parametrize(("part", "window"), [("layer", 1), ("ffn", 3), ("ffn", 2)])
def test_equals_whole_runs(tiny: Model, facts: list[Fact], part: Part, window: int):
    found = trace(tiny, facts, part, samples=SAMPLES, window=window)
    sigma = 3 * spread_of_embeddings(tiny, facts)
    slow = [slow_effects(tiny, fact, sigma, part, window) for fact in facts]
    by_kind: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    for fact, (effects, _, _) in zip(facts, slow, strict=True):
        span = subject_span(tiny, fact)
        for kind in KINDS:
            places = [p for p in range(len(effects)) if slow_kind(p, span, len(effects)) == kind]
            if places:
                by_kind[kind].append(effects[places].mean(0))
    for row, kind in enumerate(KINDS):
        some = by_kind[kind]
        assert int(found.facts[row]) == len(some)
        if some:
            torch.testing.assert_close(found.effects[row], torch.stack(some).mean(0), rtol=1e-3, atol=1e-6)
        else:
            assert found.effects[row].isnan().all()
        if len(some) > 1:
            error = torch.stack(some).std(0) / math.sqrt(len(some))
            torch.testing.assert_close(found.errors[row], error, rtol=1e-2, atol=1e-6)
        else:
            assert found.errors[row].isnan().all()
    assert found.clean == pytest.approx(sum(s[1] for s in slow) / 3, rel=1e-4)
    assert found.corrupted == pytest.approx(sum(s[2] for s in slow) / 3, rel=1e-4)
    assert found.window == (window if part == "ffn" else 1)


def test_nothing_is_left_behind(tiny: Model, facts: list[Fact]):
    before = tiny.network(torch.tensor([[5, 6, 7]])).logits
    trace(tiny, facts[:1], "ffn", samples=1)
    assert torch.equal(tiny.network(torch.tensor([[5, 6, 7]])).logits, before)
    assert not any(tiny.ffn_output(layer)._forward_hooks for layer in range(len(tiny.layers)))


def test_the_last_layers_last_token_brings_everything_back(tiny: Model, facts: list[Fact]):
    found = trace(tiny, facts, samples=SAMPLES)
    last = KINDS.index("last token")
    assert float(found.effects[last, -1]) == pytest.approx(found.total, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    ("place", "kind"),
    [(0, None), (1, "first subject token"), (2, "middle subject tokens"), (3, "last subject token"),
     (4, "first subsequent token"), (5, "further tokens"), (6, "last token")],
)  # fmt: skip
def test_kinds_of_positions(place: int, kind: str | None):
    assert kind_of(Tokens(list(range(7)), 1, 3, 7), place) == kind


def test_kinds_where_there_are_few_positions():
    assert kind_of(Tokens([1], 0, 0, 1), 0) == "last subject token"
    assert kind_of(Tokens([1, 2], 0, 0, 2), 1) == "last token"


def test_subjects_first_token(tiny: Model, facts: list[Fact]):
    for fact in facts:
        text = locate(tiny, fact.prompt, fact.subject)
        assert range(text.subject_first, text.subject_last + 1) == subject_span(tiny, fact)


def test_layers_by_tracing(tiny_llama: Model, facts: list[Fact]):
    chosen = traced_layers(tiny_llama, facts)
    found = trace(tiny_llama, facts, "ffn", samples=3)
    effects = found.effects[KINDS.index("last subject token")]
    assert len(chosen) == 2  # half of four layers
    assert max(chosen) < 3
    sums = [float(effects[first : first + 2].sum()) for first in range(2)]
    assert chosen[0] == sums.index(max(sums))
    recipe = replace(as_recipe("memit"), layers="tracing", tokens=512)
    assert with_layers(tiny_llama, facts, recipe).layers == chosen
    recipe = method("rome").with_options({"layers": "tracing", "tokens": "512", "targets.descent.steps": "2"})
    assert edit(tiny_llama, facts[:1], recipe, before=make.OPENINGS).manifest.layers == [chosen[-1]]


def test_no_facts(tiny_llama: Model):
    with pytest.raises(UserError, match="no facts"):
        trace(tiny_llama, [])


def test_heat_map_is_drawn_and_is_data(tiny_llama: Model, facts: list[Fact], tmp_path: Path):
    pytest.importorskip("matplotlib")
    from ece.explain.plots import draw_trace

    found = trace(tiny_llama, facts, "ffn", samples=1)
    (file,) = draw_trace(found, tmp_path)
    assert file.name == "tracing-ffn.png"
    assert file.read_bytes().startswith(b"\x89PNG")
    data = found.as_json()
    assert data["positions"] == list(KINDS)
    assert len(data["effects"]) == len(KINDS)
    assert len(data["effects"][0]) == data["layers"] == 4


def test_noise_is_measured_in_what_the_network_reads(facts: list[Fact]):
    """Gemma multiplies what its table holds by the root of d_model."""
    model = make.build("gemma")
    texts = [locate(model, fact.prompt, fact.subject) for fact in facts]
    ids = [token for text in texts for token in text.ids[text.subject_first : text.subject_last + 1]]
    table = model.network.get_input_embeddings().weight  # type: ignore[union-attr]
    expected = float(table[torch.tensor(ids)].std()) * model.d_model**0.5  # type: ignore[index]
    assert _spread_of_embeddings(model, texts) == pytest.approx(expected, rel=1e-3)
