"""The engine: from facts to an edit, checked against dense algebra on the whole model."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import tiny as make
import torch
from torch import Tensor

from ece.edits.edit import Edit
from ece.errors import UserError
from ece.facts import Fact
from ece.locate.scores import select
from ece.methods import engine, searching, subjects
from ece.methods.engine import edit, edit_in_sequence
from ece.methods.history import History
from ece.methods.recall import recipe_of
from ece.methods.recipe import Neurons, PerFact, Recipe, TwoStep
from ece.methods.subjects import activations
from ece.methods.writing import statistics
from ece.models import Model
from ece.models.replay import keys_captured
from ece.models.tokens import locate
from ece.targets.descent import Adam, LogOdds
from ece.update.spread import Rounds, Spread

QUICK = Recipe("quick", "", "", PerFact(Adam(steps=4)), layers=(1, 2), tokens=512, contexts=1)
ONE_LAYER = replace(QUICK, layers=(2,), regularise=1e-4)
BEFORE = make.OPENINGS


def bits(model: Model) -> dict[str, Tensor]:
    return {name: p.detach().clone().view(torch.uint8) for name, p in model.network.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def hidden(model: Model, facts: Sequence[Fact], layer: int = 2) -> Tensor:
    return torch.stack([reference.hidden_state(model, fact, layer) for fact in facts])


def keys(model: Model, facts: Sequence[Fact], layer: int) -> Tensor:
    return torch.stack([reference.key(model, fact, layer) for fact in facts])


def dense(made: Edit, layer: int, model: Model) -> Tensor:
    total = torch.zeros(model.d_model, model.d_ff, dtype=torch.float64)
    made.deltas[layer].add_to(total)
    return total


def quickly(model: Model, facts: Sequence[Fact], recipe: Recipe = QUICK, history: History | None = None) -> Edit:
    return edit(model, facts, recipe, history, before=BEFORE)


# --- making an edit


def test_a_search_has_the_memory_of_the_moments(
    tiny_llama: Model, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made before, and read again afterwards."""
    read: list[weakref.ref[Tensor]] = []

    def watched(*arguments: Any) -> dict[int, Tensor]:
        moments = statistics(*arguments)
        read.extend(weakref.ref(moment) for moment in moments.values())
        return moments

    def searched(*arguments: Any, **named: Any) -> searching.Sought:
        gc.collect()
        assert len(read) == 2
        assert not any(moment() is not None for moment in read)
        return searching.search(*arguments, **named)

    monkeypatch.setattr(engine, "statistics", watched)
    edit(tiny_llama, facts, QUICK, before=BEFORE, search=searched)
    assert len(read) == 4


@pytest.mark.parametrize(
    "recipe",
    [
        QUICK,
        replace(QUICK, neurons=Neurons("as", 0.6), keys="contexts", targets=TwoStep(by="relation", shared=Adam(2))),
        replace(QUICK, targets=PerFact(LogOdds(evaluations=4), views=2, warm=True), targets_from="original"),
    ],
    ids=["per fact", "two steps", "views"],
)
def test_making_an_edit_leaves_the_model_as_it_is(tiny: Model, facts: list[Fact], recipe: Recipe):
    before = bits(tiny)
    made = quickly(tiny, facts, recipe)
    assert same(bits(tiny), before)
    made.apply(tiny)
    edited = bits(tiny)
    assert not same(edited, before)
    quickly(tiny, facts, recipe)
    assert same(bits(tiny), edited)
    made.revert(tiny)
    assert same(bits(tiny), before)
    assert all(parameter.grad is None for parameter in tiny.network.parameters())
    assert not any("forward" in layer.__dict__ for layer in tiny.layers)


def test_an_edit_that_fails_leaves_the_model_as_it_is(
    tiny_llama: Model, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the first layer has been written by then
            raise KeyboardInterrupt
        return original(*arguments)

    from ece.update import solve, solvers

    original = solve.least_squares
    monkeypatch.setattr(solvers, "least_squares", failing)
    before = bits(tiny_llama)
    with pytest.raises(KeyboardInterrupt):
        quickly(tiny_llama, facts)
    assert same(bits(tiny_llama), before)
    assert not tiny_llama.overlay.stack


def test_the_same_call_twice_gives_the_same_bits(tiny: Model, facts: list[Fact]):
    recipe = replace(QUICK, targets=PerFact(LogOdds(evaluations=5), warm=True), neurons=Neurons("random", 0.5))
    first, again = edit(tiny, facts, recipe), edit(tiny, facts, recipe)
    for layer in recipe.edited:
        for part in ("left", "right", "neurons"):
            assert torch.equal(getattr(first.deltas[layer], part), getattr(again.deltas[layer], part))
        assert torch.equal(first.keys[layer], again.keys[layer])
    assert torch.equal(first.delta, again.delta)
    assert torch.equal(first.hidden, again.hidden)
    assert first.manifest.contexts == again.manifest.contexts
    assert len(first.manifest.contexts) == 6


def test_the_random_state_is_left_alone(tiny_llama: Model, facts: list[Fact]):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    edit(tiny_llama, facts, replace(QUICK, neurons=Neurons("random", 0.5), targets=TwoStep(by="random")))
    assert torch.equal(torch.rand(3), wanted)


def test_manifest(tiny_llama: Model, facts: list[Fact]):
    made = quickly(tiny_llama, facts, replace(QUICK, targets=TwoStep(by="relation"), neurons=Neurons("rs", 0.5)))
    manifest = made.manifest
    assert manifest.method == "quick"
    assert manifest.layers == [1, 2]
    assert manifest.fingerprint == tiny_llama.fingerprint
    assert [entry.fact for entry in manifest.facts] == facts == made.facts
    assert [entry.cluster for entry in manifest.facts] == [0, 1, 2]
    assert manifest.anchors == [0, 1, 2]
    assert [entry.evaluations for entry in manifest.facts] == [25] * 3  # each is its own anchor: 20 + 5
    assert manifest.neurons == {layer: len(change.neurons) for layer, change in made.deltas.items()}
    assert manifest.contexts == BEFORE
    assert manifest.options["neurons"] == {"score": "rs", "p": 0.5, "share": None}


def test_known_facts_are_noted(tiny_llama: Model, facts: list[Fact]):
    best = Fact("I know {}", "Ada Lovelace", "Rome")
    assert not quickly(tiny_llama, [best]).manifest.facts[0].already_known
    made = quickly(tiny_llama, [best], replace(ONE_LAYER, targets=PerFact(Adam(25, 0.5)), weights=WIDE))
    made.apply(tiny_llama)
    assert reference.likelihood(tiny_llama, best.question, best.target)[1]
    found = quickly(tiny_llama, [best, facts[0]]).manifest.facts
    assert [entry.already_known for entry in found] == [True, False]


WIDE = replace(QUICK.weights, clamp=3.0)


# --- the update


@pytest.mark.parametrize("p", [1.0, 0.5])
@pytest.mark.parametrize("averaged", [False, True], ids=["prompt", "contexts"])
def test_update_equals_dense_algebra_layer_by_layer(tiny: Model, facts: list[Fact], p: float, averaged: bool):
    """The whole chain on the whole model: keys, shares of the residual, Eq. 14, next layer."""
    which = "contexts" if averaged else "prompt"
    recipe = replace(QUICK, neurons=Neurons("rs", p), regularise=20.0, keys=which, contexts=len(BEFORE) - 1)
    made = quickly(tiny, facts, recipe)
    moments = {layer: 20 * moment.double() for layer, moment in statistics(tiny, recipe).items()}
    torch.testing.assert_close(made.hidden, hidden(tiny, facts), rtol=1e-4, atol=1e-5)
    wanted = hidden(tiny, facts) + made.delta
    for place, layer in enumerate(recipe.edited):
        key = keys(tiny, facts, layer)
        if averaged:
            others = [torch.stack([reference.key(tiny, f, layer, text) for f in facts]) for text in BEFORE[1:]]
            key = 0.5 * key + 0.5 * torch.stack(others).mean(0)
        torch.testing.assert_close(made.keys[layer], key, rtol=1e-4, atol=1e-5)
        residual = (wanted - hidden(tiny, facts)) / (2 - place)
        chosen = select("rs", p, key, tiny.weight(layer))
        assert torch.equal(made.deltas[layer].neurons, chosen)
        assert (len(chosen) == tiny.d_ff) is (p == 1)
        total = torch.zeros(tiny.d_model, tiny.d_ff, dtype=torch.float64)
        total[:, chosen] = torch.from_numpy(
            reference.least_squares(moments[layer][chosen][:, chosen], key[:, chosen].T, residual.T)
        )
        assert reference.relative(dense(made, layer, tiny), total) < 1e-3
        tiny.weight(layer).add_(dense(made, layer, tiny).float())  # rounded, as a file keeps it


def test_states_move_toward_their_targets(tiny: Model, facts: list[Fact]):
    made = quickly(tiny, facts, replace(QUICK, regularise=20.0))
    before = hidden(tiny, facts)
    made.apply(tiny)
    after = hidden(tiny, facts)
    left = (before + made.delta - after).norm(dim=1) / made.delta.norm(dim=1)
    assert (left < 0.9).all()
    assert (torch.nn.functional.cosine_similarity(after - before, made.delta) > 0.5).all()


def assert_the_targets_are_reached(model: Model, facts: list[Fact]) -> None:
    made = quickly(model, facts, ONE_LAYER)
    wanted = hidden(model, facts) + made.delta
    made.apply(model)
    assert reference.relative(hidden(model, facts) - made.hidden, made.delta) < 1e-2
    torch.testing.assert_close(hidden(model, facts), wanted, rtol=0, atol=1e-2 * float(made.delta.norm(dim=1).max()))


def test_one_layer_and_a_tiny_regulariser_reach_the_targets(tiny: Model, more_facts: list[Fact]):
    assert_the_targets_are_reached(tiny, more_facts)


@pytest.mark.parametrize("kind", make.OTHERS)
def test_the_targets_are_reached_in_the_other_types(kind: str, more_facts: list[Fact]):
    """What W adds arrives in h as it is: no norm and no scale behind it."""
    assert_the_targets_are_reached(make.build(kind), more_facts)


@pytest.mark.parametrize("score", ["as", "wi", "rs", "random"])
def test_other_neurons_do_not_change(tiny: Model, facts: list[Fact], score: Any):
    base = {layer: tiny.weight(layer).clone() for layer in range(len(tiny.layers))}
    made = quickly(tiny, facts, replace(QUICK, neurons=Neurons(score, 0.4)))
    made.apply(tiny)
    for layer, before in base.items():
        inside = made.deltas[layer].neurons if layer in made.deltas else torch.tensor([], dtype=torch.long)
        outside = torch.ones(tiny.d_ff, dtype=torch.bool).index_fill(0, inside, False)
        assert torch.equal(tiny.weight(layer)[:, outside], before[:, outside])
        if layer in made.deltas:
            assert 0 < len(inside) < tiny.d_ff
            assert (tiny.weight(layer)[:, inside] != before[:, inside]).any(dim=0).all()


def test_an_edit_makes_the_target_likelier(tiny: Model):
    facts = [Fact("I know {}", "Ada Lovelace", "Rome"), Fact("{}", "Victor Hugo", "Paris")]
    before = [reference.likelihood(tiny, fact.question, fact.target)[0] for fact in facts]
    quickly(tiny, facts, replace(ONE_LAYER, targets=PerFact(Adam(15, 0.3)), weights=WIDE)).apply(tiny)
    after = [reference.likelihood(tiny, fact.question, fact.target)[0] for fact in facts]
    assert all(new > old + 1 for old, new in zip(before, after, strict=True))


def test_activations_are_the_sizes_of_keys(tiny: Model, facts: list[Fact]):
    found = activations(tiny, facts, 1, 2)
    assert sorted(found) == [1, 2]
    for layer, score in found.items():
        torch.testing.assert_close(score, keys(tiny, facts, layer).abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models(tiny: Model, facts: list[Fact], dtype: torch.dtype):
    make.cast(tiny, dtype)
    before = bits(tiny)
    made = quickly(tiny, facts, ONE_LAYER)
    assert made.facts == facts
    assert same(bits(tiny), before)
    made.apply(tiny)
    assert reference.relative(hidden(tiny, facts).float() - made.hidden, made.delta) < 0.2
    made.revert(tiny)
    assert same(bits(tiny), before)


# --- sequences of batches


def test_original_and_current_targets(tiny_llama: Model, facts: list[Fact]):
    original = replace(ONE_LAYER, targets_from="original", neurons=Neurons("rs", 1.0))
    current = replace(original, targets_from="current")
    fresh = quickly(tiny_llama, facts[1:], original)
    quickly(tiny_llama, facts[:1]).apply(tiny_llama)
    edited = bits(tiny_llama)
    later, now = quickly(tiny_llama, facts[1:], original), quickly(tiny_llama, facts[1:], current)
    torch.testing.assert_close(later.delta, fresh.delta, rtol=1e-5, atol=1e-6)
    assert reference.relative(now.delta, fresh.delta) > 1e-3
    assert same(bits(tiny_llama), edited)


def test_original_targets_are_states_of_the_original_model(tiny_llama: Model, facts: list[Fact]):
    """z = h + delta, with both from the original weights (the paper's appendix C.4)."""
    recipe = replace(ONE_LAYER, targets_from="original")
    z = hidden(tiny_llama, facts[1:]) + quickly(tiny_llama, facts[1:], recipe).delta
    quickly(tiny_llama, facts[:1]).apply(tiny_llama)
    quickly(tiny_llama, facts[1:], recipe).apply(tiny_llama)
    assert reference.relative(hidden(tiny_llama, facts[1:]), z) < 1e-2


def test_sequence_applies_each_edit_and_keeps_history(tiny_llama: Model, more_facts: list[Fact]):
    recipe = replace(ONE_LAYER, targets=PerFact(Adam(3)))
    moment = recipe.regularise * statistics(tiny_llama, recipe)[2].double()
    seen = torch.zeros_like(moment)
    number = -1
    for number, made in enumerate(edit_in_sequence(tiny_llama, more_facts, recipe, batch_size=2)):
        assert len(tiny_llama.overlay.stack) == number + 1
        assert made.facts == more_facts[2 * number : 2 * number + 2]
        with tiny_llama.overlay.suspended(tiny_llama):
            key = keys(tiny_llama, made.facts, 2)  # the only edited layer's keys do not depend on it
        wanted = reference.least_squares(moment + seen, key.T, made.deltas[2].left)
        assert reference.relative(dense(made, 2, tiny_llama), torch.from_numpy(wanted)) < 1e-3
        seen += key.double().T @ key.double()
    assert number == 2


@pytest.mark.parametrize("kept", [True, False])
def test_history_keeps_earlier_keys(tiny: Model, more_facts: list[Fact], kept: bool):
    recipe = replace(ONE_LAYER, history=kept)
    first, second = make.with_keys_in_sequence(tiny, more_facts, recipe, 3)
    written = (dense(first, 2, tiny) @ first.keys[2].double().T).norm()
    disturbed = (dense(second, 2, tiny) @ first.keys[2].double().T).norm()
    assert bool(disturbed < 1e-2 * written) is kept


def test_history_can_be_rebuilt_from_the_edits(tiny_llama: Model, more_facts: list[Fact]):
    recipe = replace(QUICK, targets=PerFact(LogOdds(evaluations=3), warm=True))
    whole = list(edit_in_sequence(tiny_llama, more_facts, recipe, batch_size=2))
    assert not any(made.keys or made.around for made in whole)
    again = make.build("llama")
    for made in whole[:2]:
        made.apply(again)
    (resumed,) = edit_in_sequence(again, more_facts[4:], recipe, batch_size=2, earlier=whole[:2])
    assert torch.equal(resumed.delta, whole[2].delta)
    assert all(torch.equal(resumed.deltas[layer].right, whole[2].deltas[layer].right) for layer in (1, 2))
    assert same(bits(again), bits(tiny_llama))


def test_history_sums_the_keys_of_all_neurons(tiny_llama: Model, facts: list[Fact]):
    recipe = replace(QUICK, neurons=Neurons("rs", 0.5))
    edits = [quickly(tiny_llama, facts[:2], recipe), quickly(tiny_llama, facts[2:], recipe)]
    history = History.of(tiny_llama, edits)
    for layer in (1, 2):
        wanted = sum(made.keys[layer].double().T @ made.keys[layer].double() for made in edits)
        torch.testing.assert_close(history.moments[layer].whole(), wanted)


# --- what is refused, and what is left out


BAD = Fact("Paris is near {} and", "Kelva", "Rome")


def poisoned(model: Model, spared: str) -> Model:
    """A model in which `BAD` gives NaN, and the spared text does not."""
    own = set(reference.token_ids(model, BAD.question)) - set(reference.token_ids(model, spared))
    model.network.get_input_embeddings().weight.data[list(own)] = math.nan  # pyright: ignore
    return model


def test_facts_with_nan_are_left_out(
    tiny_llama: Model, facts: list[Fact], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    spared = "\n".join(f"{text}{fact} {fact.subject} is a" for text in BEFORE for fact in facts) + "\n"
    (tmp_path / "corpus.txt").write_text(20 * spared, encoding="utf-8")
    model, recipe = poisoned(tiny_llama, spared), replace(QUICK, corpus=str(tmp_path / "corpus.txt"))
    alone, mixed = quickly(model, facts, recipe), quickly(model, [facts[0], BAD, *facts[1:]], recipe)
    assert [entry.failed for entry in mixed.manifest.facts] == [False, True, False, False]
    assert mixed.facts == facts
    assert "Kelva" in caplog.text
    assert reference.relative(dense(mixed, 2, model), dense(alone, 2, model)) < 1e-4
    assert mixed.keys[1].shape[0] == len(mixed.delta) == 3


def test_only_facts_with_nan(tiny_llama: Model):
    with pytest.raises(UserError, match="NaN"):
        quickly(poisoned(tiny_llama, " ".join(BEFORE)), [BAD])


@pytest.mark.parametrize("layers", [(1, 3), (-1, 1), (9,), ()])
def test_layers_that_cannot_be_edited(tiny_llama: Model, facts: list[Fact], layers: tuple[int, ...]):
    with pytest.raises(UserError, match="layers"):
        quickly(tiny_llama, facts, replace(QUICK, layers=layers))


def test_contradictions_are_refused(tiny_llama: Model, facts: list[Fact]):
    other = replace(facts[0], target="Oslo")
    with pytest.raises(UserError, match="contradict"):
        quickly(tiny_llama, [*facts, other])
    with pytest.raises(UserError, match="contradict"):
        next(edit_in_sequence(tiny_llama, [*facts, other], QUICK, batch_size=1))


def test_no_facts_are_refused(tiny_llama: Model):
    with pytest.raises(UserError):
        quickly(tiny_llama, [])


def test_unknown_methods_are_refused(tiny_llama: Model, facts: list[Fact]):
    with pytest.raises(UserError, match="no method"):
        edit(tiny_llama, facts, "magic")


@pytest.mark.parametrize(("earlier", "after"), [(0.3, 0.0), (0.0, 0.2), (0.3, 0.2)])
def test_whole_prompts_are_kept(tiny: Model, more_facts: list[Fact], earlier: float, after: float):
    """The keys of all tokens but the subjects' last count as much as is said, as often as they occur, for good."""
    recipe = replace(ONE_LAYER, keep_prompts=earlier, keep_after=after)
    made = quickly(tiny, more_facts, recipe)
    (layer,) = made.manifest.layers
    moment = torch.zeros(tiny.d_ff, tiny.d_ff, dtype=torch.float64)
    for fact in more_facts:
        text = locate(tiny, fact.prompt, fact.subject)
        with torch.no_grad(), keys_captured(tiny, [layer]) as captured:
            tiny.network(torch.tensor([text.ids]))
        every = captured[layer][0].double()
        before, behind = every[: text.subject_last], every[text.subject_last + 1 :]
        moment += earlier * before.T @ before + after * behind.T @ behind
    around = made.around[layer].double()
    torch.testing.assert_close(around.T @ around, moment, rtol=1e-4, atol=1e-5)

    kept = recipe.regularise * statistics(tiny, recipe)[layer].double() + moment
    wanted = reference.least_squares(kept, made.keys[layer].double().T, made.deltas[layer].left)
    assert reference.relative(dense(made, layer, tiny), torch.from_numpy(wanted)) < 1e-3
    own = made.keys[layer].double()
    torch.testing.assert_close(History.of(tiny, [made]).moments[layer].whole(), own.T @ own + around.T @ around)


@pytest.mark.parametrize("left_out", [0.0, 0.7])
def test_contexts_are_written_each_towards_its_own_target(tiny: Model, more_facts: list[Fact], left_out: float):
    """The second batch finds every context's state moved by the first, each by another amount."""
    before, count, history = ["", *make.OPENINGS[1:4]], 0.6, History()
    recipe = replace(ONE_LAYER, write_contexts=2, contexts_weight=count, targets_from="original", leave_common=left_out)
    system = recipe.regularise * statistics(tiny, recipe)[2].double()

    def read(facts: list[Fact], what: Callable[..., Tensor]) -> Tensor:
        """Bare prompts first, then the contexts of each fact."""
        rows = [what(tiny, fact, 2, "") for fact in facts]
        rows += [what(tiny, fact, 2, text) for fact in facts for text in before[1:3]]
        return torch.stack(rows).double()

    for facts in (more_facts[:3], more_facts[3:]):
        made = edit(tiny, facts, recipe, history, before=before)
        root = torch.tensor([1.0] * len(facts) + [count / 2] * 2 * len(facts)).double().sqrt()[:, None]
        with tiny.overlay.suspended(tiny):
            keys, goal = read(facts, reference.key) * root, read(facts, reference.hidden_state)
        goal += torch.cat([made.delta, made.delta.repeat_interleave(2, 0)]).double()
        residuals = goal - read(facts, reference.hidden_state)
        common = residuals.new_zeros(len(facts), tiny.d_model)
        for fact in range(len(facts)):
            for other in set(range(len(facts))) - {fact}:
                common[fact] += residuals[other] / (len(facts) - 1 + 10)
        residuals = (residuals - left_out * torch.cat([common, common.repeat_interleave(2, 0)])) * root
        best = torch.from_numpy(reference.least_squares(system, keys.T, residuals.T))
        system += keys.T @ keys
        assert made.deltas[2].left.shape[1] == len(facts)
        assert reference.relative(dense(made, 2, tiny), reference.of_rank(best, system, len(facts))) < 2e-3
        made.apply(tiny)
        history.add(tiny, made)
        moment = recipe.regularise * statistics(tiny, recipe)[2].double() + history.moments[2].whole()
        torch.testing.assert_close(moment, system, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"keys": "contexts"}, {"rounds": Rounds(at_most=2)}])
def test_contexts_are_written_with_the_bare_prompts_key_in_one_sweep(
    tiny_llama: Model, facts: list[Fact], options: dict[str, Any]
):
    with pytest.raises(UserError, match="write_contexts goes with keys=prompt and one sweep"):
        quickly(tiny_llama, facts, replace(ONE_LAYER, write_contexts=1, **options))


def test_an_edit_from_before_an_option_is_read_as_made_without_it(tiny_llama: Model, facts: list[Fact]):
    made = edit(tiny_llama, facts, replace(ONE_LAYER, name="memit", history=False), before=BEFORE)
    older = made.manifest.model_copy(update={"options": made.manifest.options | {"gone": 0.0}})
    del older.options["write_contexts"], older.options["keep_after"]
    assert recipe_of(older) == recipe_of(made.manifest)
    assert recipe_of(older).write_contexts == recipe_of(older).keep_after == 0
    older.options["gone"] = 1.0
    with pytest.raises(UserError, match="gone"):
        recipe_of(older)


@pytest.mark.parametrize("residual", ["prompt", "key"])
@pytest.mark.parametrize("weights", [{}, {"evenly": True}, {"beside": 0.5}])
def test_many_passes_read_what_one_reads(
    tiny: Model, more_facts: list[Fact], monkeypatch: pytest.MonkeyPatch, residual: Any, weights: dict[str, Any]
):
    """Rows of like length are read together; how they are dealt out does not matter."""
    before = ["", "The day was fine and long. ", "I see. "]

    def read(budget: int) -> tuple[int, dict[int, subjects.Read]]:
        monkeypatch.setitem(subjects.PASS_TOKENS, "cpu", budget)
        found = subjects.Subjects.prepare(tiny, more_facts, 1, before, **weights, earlier=1.0, after=0.5)
        return len(found.passes), dict(found.along([1, 2], 2, "layer", residual))

    (few, whole), (many, parts) = read(100_000), read(1)
    assert few == len(before)  # bare prompts, and those after each context
    assert many == len(more_facts) * len(before)
    for layer, one in whole.items():
        for name in ("key", "bare", "beside", "now", "around"):
            assert torch.allclose(getattr(parts[layer], name), getattr(one, name), atol=1e-5), name
        assert len(one.around) > 0


# --- layers that are left to us


@pytest.fixture
def changing_layers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Another window each time layers are chosen; those that are still to come."""
    to_come = [(0, 1), (1, 2), (0, 1), (1, 2)]
    monkeypatch.setattr(engine, "choose_layers", lambda *_: to_come.pop(0))
    return to_come


def test_a_sequence_keeps_to_its_first_batch_s_layers(
    tiny: Model, facts: list[Fact], changing_layers: list[tuple[int, ...]]
):
    """What the first batch's facts read in other layers is not known, and so could not be kept."""
    auto, history = replace(QUICK, layers="auto"), History()
    for some in (facts[:2], facts[2:4]):
        made = quickly(tiny, some, auto, history)
        history.add(tiny, made)
        assert made.manifest.layers == [0, 1]
    assert [made.manifest.layers for made in edit_in_sequence(tiny, facts, auto, 2)] == [[1, 2]] * 2


def test_layers_are_chosen_again_where_earlier_ones_are_too_few(
    tiny: Model, facts: list[Fact], changing_layers: list[tuple[int, ...]]
):
    history = History()
    history.add(tiny, quickly(tiny, facts[:2], replace(QUICK, layers="auto", spread=Spread(layers="last")), history))
    assert quickly(tiny, facts[2:4], replace(QUICK, layers="auto"), history).manifest.layers == [1, 2]
    once_more = replace(QUICK, layers="auto", spread=Spread(layers="last"))
    assert quickly(tiny, facts[2:4], once_more, history).manifest.layers == [1]
