"""Explanations: what they say is what the engine does, and what is drawn can be read."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import io
import json
import math
import sys
from pathlib import Path

import pytest
import tiny as make
import torch
from rich.console import Console

from ece.edits.edit import Edit
from ece.errors import UserError
from ece.explain import Explanation, explain, from_edits
from ece.explain.tables import rendered, visible
from ece.explain.vocabulary import logits_of, read, token_text
from ece.facts import Fact
from ece.locate.scores import FORMULAS, select
from ece.methods.engine import edit
from ece.methods.recipe import Neurons, PerFact, Recipe, TwoStep
from ece.methods.registry import as_recipe
from ece.methods.searching import cluster
from ece.methods.subjects import Subjects
from ece.models import Model
from ece.targets.descent import Adam

LAYERS = (1, 2)


def recipe(score: str = "rs", p: float = 0.8, two_step: bool = True, **changes: object) -> Recipe:
    short = Adam(steps=2)
    targets = TwoStep(clusters=2, shared=short, own=short) if two_step else PerFact(short)
    made = dataclasses.replace(
        as_recipe("ece-rs"), layers=LAYERS, keys="prompt", tokens=400, contexts=1, targets=targets
    )
    return dataclasses.replace(made, neurons=Neurons(score=score, p=p), **changes)  # type: ignore[arg-type]


@torch.no_grad()
def keys_of(model: Model, facts: list[Fact], before: list[str]) -> dict[int, torch.Tensor]:
    subjects = Subjects.prepare(model, facts, LAYERS[0], before)
    return {layer: read.key for layer, read in subjects.along(LAYERS)}


def printed(explanation: Explanation, **options: int) -> str:
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(rendered(explanation, **options))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("keys", ["prompt", "contexts"])
@pytest.mark.parametrize("score", ["as", "wi", "rs", "random"])
def test_chosen_neurons_are_those_of_the_engine(
    tiny: Model, more_facts: list[Fact], before: list[str], score: str, keys: str
):
    explanation = explain(tiny, more_facts, recipe(score, keys=keys, contexts=2), before=before)
    found = keys_of(tiny, more_facts, before if keys == "contexts" else [""])
    assert [chosen.layer for chosen in explanation.layers] == list(LAYERS)
    for chosen in explanation.layers:
        expected = select(score, 0.8, found[chosen.layer], tiny.weight(chosen.layer))  # type: ignore[arg-type]
        assert chosen.neurons == tuple(expected.tolist())
        assert chosen.share_of_neurons == len(expected) / tiny.d_ff
        if score != "random":
            assert 0.8 <= chosen.share_of_score < 0.8 + chosen.scores.max() / chosen.scores.sum()


def test_shares_and_scores_add_up(tiny: Model, more_facts: list[Fact]):
    explanation = explain(tiny, more_facts, recipe())
    keys = keys_of(tiny, more_facts, [""])
    scores = {layer: FORMULAS["rs"](keys[layer], tiny.weight(layer)) for layer in LAYERS}
    for number, located in enumerate(explanation.facts):
        assert located.fact == more_facts[number]
        assert math.isclose(sum(site.share for site in located.sites), 1, abs_tol=1e-6)
        for site in located.sites:
            own = scores[site.layer][number]
            assert math.isclose(site.score, float(own.sum()), rel_tol=1e-5)
            held = own.sort(descending=True).values.cumsum(0) / own.sum()
            assert held[site.own - 1] >= 0.8 > held[site.own - 2]
            assert [neuron.index for neuron in site.strongest] == own.topk(5).indices.tolist()
            for neuron in site.strongest:
                assert math.isclose(neuron.share, float(own[neuron.index] / own.sum()), rel_tol=1e-5)
                assert math.isclose(
                    neuron.activation, float(keys[site.layer][number, neuron.index]), rel_tol=1e-4, abs_tol=1e-6
                )
        best = max(n.score for site in located.sites for n in site.strongest)
        assert located.strongest[0].score == best
    for chosen in explanation.layers:
        torch.testing.assert_close(chosen.scores, scores[chosen.layer].sum(0))


def test_all_neurons_hold_all_of_the_score(tiny_llama: Model, facts: list[Fact]):
    explanation = explain(tiny_llama, facts, recipe(p=1.0))
    assert explanation.fraction == 0.8
    for chosen in explanation.layers:
        assert chosen.neurons == tuple(range(tiny_llama.d_ff))
        assert chosen.share_of_neurons == chosen.share_of_score == 1


@torch.no_grad()
def test_a_neuron_writes_its_signed_column_read_through_norm_and_unembedding(tiny_llama: Model, facts: list[Fact]):
    gain = tiny_llama.network.get_parameter("model.norm.weight")
    unembedding = tiny_llama.network.get_parameter("lm_head.weight")
    neurons = [n for located in explain(tiny_llama, facts, recipe()).facts for s in located.sites for n in s.strongest]
    assert {neuron.activation < 0 for neuron in neurons} == {True, False}
    for neuron in neurons:
        column = tiny_llama.weight(neuron.layer)[:, neuron.index]
        logits = unembedding @ (gain * column * neuron.activation)
        order = logits.argsort(descending=True).tolist()
        assert [token.text for token in neuron.writes.promotes] == [token_text(tiny_llama, i) for i in order[:5]]
        assert [token.text for token in neuron.writes.suppresses] == [
            token_text(tiny_llama, i) for i in order[::-1][:5]
        ]


def test_directions_are_read_without_biases(tiny: Model):
    direction = torch.randn(1, tiny.d_model)
    there, back = logits_of(tiny, direction), logits_of(tiny, -direction)
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there, logits_of(tiny, 7 * direction), atol=1e-4, rtol=1e-4)
    assert abs(float(there.mean())) < 1e-5


def test_a_direction_turned_round_swaps_what_it_promotes_and_suppresses(tiny: Model):
    direction = torch.randn(1, tiny.d_model)
    there, back = read(tiny, torch.cat([direction, -direction]), tokens=3)
    assert [token.text for token in there.promotes] == [token.text for token in back.suppresses]
    assert [token.text for token in there.suppresses] == [token.text for token in back.promotes]
    assert len(there.promotes) == 3


@pytest.mark.parametrize("kind", ["plain", "metaspace"])
def test_tokens_keep_their_spaces_and_show_their_bytes(kind: str):
    model = make.build("llama")
    model.tokenizer = make.tokenizer(kind)
    texts = [token_text(model, token) for token in range(len(model.tokenizer))]
    assert "\ufffd" not in "".join(texts)
    assert any(text.startswith(" ") and text.strip() for text in texts)
    half = texts[model.tokenizer.convert_tokens_to_ids("Ã" if kind == "plain" else "<0xC3>")]  # type: ignore[index]
    assert half == ("\\xc3" if kind == "plain" else "<0xC3>")


def test_clusters_are_those_of_the_search(tiny: Model, more_facts: list[Fact]):
    made = recipe()
    explanation = explain(tiny, more_facts, made)
    expected = cluster(tiny, more_facts, made.targets, *LAYERS)  # type: ignore[arg-type]
    assert [located.cluster for located in explanation.facts] == expected.of_fact.tolist()
    assert [c.anchor for c in explanation.clusters] == expected.anchors.tolist()
    members = sorted(member for c in explanation.clusters for member in c.members)
    assert members == list(range(len(more_facts)))
    assert all(c.anchor in c.members for c in explanation.clusters)
    torch.testing.assert_close(explanation.distances, explanation.distances.T)


def test_there_are_clusters_without_a_two_step_search(tiny_llama: Model, facts: list[Fact]):
    explanation = explain(tiny_llama, facts, recipe(two_step=False))
    assert 1 <= len(explanation.clusters) <= len(facts)


def test_explaining_leaves_the_model_alone(tiny: Model, facts: list[Fact]):
    before = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    explain(tiny, facts, recipe(targets_from="original"))
    assert all(torch.equal(before[name], value) for name, value in tiny.network.state_dict().items())
    assert not any(layer._forward_pre_hooks for layer in tiny.layers)


def test_what_cannot_be_explained_is_said(tiny_llama: Model, facts: list[Fact]):
    with pytest.raises(UserError, match="no facts"):
        explain(tiny_llama, [], recipe())
    with pytest.raises(UserError, match="no edits"):
        from_edits(tiny_llama, [])
    tiny_llama.weight(2)[0, 0] = math.nan
    with pytest.raises(UserError, match="layer 2.*NaN"):
        explain(tiny_llama, facts, recipe())


@pytest.mark.parametrize("score", ["as", "rs", "random"])
def test_edits_explain_what_they_changed(tiny_llama: Model, more_facts: list[Fact], score: str, tmp_path: Path):
    made = edit(tiny_llama, more_facts, recipe(score))
    made.save(tmp_path / "edit")
    explanation = from_edits(tiny_llama, [Edit.load(tmp_path / "edit")])
    assert explanation.method == "ece-rs"
    assert explanation.score == score
    for chosen in explanation.layers:
        assert chosen.neurons == tuple(made.deltas[chosen.layer].neurons.tolist())
    assert [located.cluster for located in explanation.facts] == [entry.cluster for entry in made.manifest.facts]
    assert [c.anchor for c in explanation.clusters] == made.manifest.anchors
    predicted = explain(tiny_llama, more_facts, recipe(score))
    assert explanation.layers[0].neurons == predicted.layers[0].neurons
    assert [f.sites[0].score for f in explanation.facts] == pytest.approx([f.sites[0].score for f in predicted.facts])


def test_several_edits_are_explained_together_whether_applied_or_not(tiny_llama: Model, more_facts: list[Fact]):
    first = edit(tiny_llama, more_facts[:3], recipe())
    first.apply(tiny_llama)
    found = explain(tiny_llama, more_facts[3:], recipe())
    second = edit(tiny_llama, more_facts[3:], recipe())
    second.apply(tiny_llama)
    applied = from_edits(tiny_llama, [first, second])
    second.revert(tiny_llama)
    first.revert(tiny_llama)
    assert applied.as_json() == from_edits(tiny_llama, [first, second]).as_json()

    assert [located.fact for located in applied.facts] == more_facts
    weights_met = [located.sites[0].score for located in found.facts]
    assert [located.sites[0].score for located in applied.facts[3:]] == pytest.approx(weights_met, rel=1e-5)
    for chosen in applied.layers:
        union = {n for e in (first, second) for n in e.deltas[chosen.layer].neurons.tolist()}
        assert set(chosen.neurons) == union
    assert sorted(m for c in applied.clusters for m in c.members) == list(range(5))
    assert [c.anchor for c in applied.clusters] == first.manifest.anchors + [3 + a for a in second.manifest.anchors]


def test_facts_that_an_edit_left_out_are_left_out(tiny_llama: Model, more_facts: list[Fact]):
    made = edit(tiny_llama, more_facts, recipe())
    gone = made.manifest.anchors[0]
    made.manifest.facts[gone].failed = True
    kept = [i for i in range(len(more_facts)) if i != gone]
    smaller = dataclasses.replace(made, keys={layer: key[kept] for layer, key in made.keys.items()})
    explanation = from_edits(tiny_llama, [smaller])
    assert [located.fact for located in explanation.facts] == [more_facts[i] for i in kept]
    anchor, members = explanation.clusters[0].anchor, explanation.clusters[0].members
    assert anchor is None
    assert [kept[member] for member in members] == [i for i in kept if made.manifest.facts[i].cluster == 0]
    assert "(left out of the edit)" in printed(explanation)


def test_edits_of_different_kinds_are_refused(tiny_llama: Model, facts: list[Fact]):
    edits = [edit(tiny_llama, facts, recipe(p=p)) for p in (0.5, 0.8)]
    with pytest.raises(UserError, match="one by one"):
        from_edits(tiny_llama, edits)
    with pytest.raises(UserError, match="made for"):
        from_edits(make.build("llama", seed=1), edits[:1])


@pytest.mark.parametrize("score", ["as", "wi", "rs", "random"])
def test_json_is_plain_and_finite(tiny: Model, more_facts: list[Fact], score: str):
    text = json.dumps(explain(tiny, more_facts, recipe(score)).as_json(), allow_nan=False)
    data = json.loads(text)
    assert [entry["fact"]["subject"] for entry in data["facts"]] == [fact.subject for fact in more_facts]
    assert data["facts"][0]["sites"][0]["strongest"][0]["writes"]["promotes"][0]["text"]
    assert set(data["layers"][0]) == {"layer", "neurons", "share_of_neurons", "share_of_score"}


def test_tables_fit_and_name_every_subject(tiny: Model, more_facts: list[Fact]):
    odd = Fact("{} is [bold]in", "A[/b]\nc\x1b[31m", "x")
    explanation = explain(tiny, [*more_facts, odd], recipe())
    text = printed(explanation)
    assert max(map(len, text.splitlines())) <= 100
    for fact in more_facts:
        assert fact.subject in text
    assert "A[/b]\\nc\\x1b[31m is [bold]in" in text
    assert "\x1b" not in text
    assert "… and 4 more facts" in printed(explanation, facts=2)


def test_what_cannot_be_seen_is_made_visible():
    assert visible(" Rome\n\u200b\xa0[red]é") == "·Rome\\n\\u200b\\xa0[red]é"
    assert visible("a b", space=" ") == "a b"


@pytest.mark.parametrize(
    ("score", "p", "count"), [("rs", 0.8, 5), ("wi", 0.8, 3), ("random", 0.5, 3), ("as", 1.0, 1), ("rs", 1.0, 45)]
)
def test_pictures_are_there_whole(tiny_llama: Model, tmp_path: Path, score: str, p: float, count: int):
    pytest.importorskip("matplotlib")
    from ece.explain.plots import draw

    explanation = explain(tiny_llama, [*make.FACTS, *make.random_facts(40)][:count], recipe(score, p))
    files = draw(explanation, tmp_path / "pictures")
    assert files == [tmp_path / "pictures" / f"{name}.png" for name in ("neurons", "layers", "clusters")]
    assert sorted((tmp_path / "pictures").iterdir()) == sorted(files)
    for file in files:
        data = file.read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 5_000
        assert int.from_bytes(data[16:20]) == 1200
    assert draw(explanation, tmp_path / "pictures") == files


def test_without_matplotlib_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch):
    def without(name: str, *arguments: object, **options: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "ece.explain.plots", raising=False)
    with pytest.raises(UserError, match=r"pip install 'ece-edit\[plots\]'"):
        importlib.import_module("ece.explain.plots")


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_a_share_of_the_neurons_is_what_an_edit_takes(tiny_llama: Model, facts: list[Fact], share: float):
    choice = dataclasses.replace(recipe(), neurons=Neurons(score="rs", p=0.8, share=share))
    explanation = explain(tiny_llama, facts, choice, before=[""])
    made = edit(tiny_llama, facts, choice, before=[""])
    first = LAYERS[0]  # the second layer's keys change as the first is written
    assert explanation.layers[0].neurons == tuple(made.deltas[first].neurons.tolist())
    assert len(explanation.layers[0].neurons) == round(share * tiny_llama.d_ff)


@pytest.mark.parametrize("keys", ["contexts", "mean"])
def test_keys_are_the_mean_that_an_edit_takes(tiny_llama: Model, facts: list[Fact], before: list[str], keys: str):
    choice = recipe(keys=keys, contexts=2)
    explanation = explain(tiny_llama, facts, choice, before=before)
    made = edit(tiny_llama, facts, choice, before=before)
    assert explanation.layers[0].neurons == tuple(made.deltas[LAYERS[0]].neurons.tolist())
    with torch.no_grad():
        own = FORMULAS["rs"](made.keys[LAYERS[0]].float(), tiny_llama.weight(LAYERS[0])).sum(0)
    torch.testing.assert_close(explanation.layers[0].scores, own, rtol=1e-3, atol=1e-5)
