"""Each recipe as a whole, on a tiny model, against its paper's algebra on the whole model; and what defines it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import reference
import tiny as make
import torch
from torch import Tensor

from ece.edits.edit import Edit
from ece.edits.packing import rounded
from ece.facts import Fact
from ece.methods.engine import edit, edit_in_sequence
from ece.methods.history import History
from ece.methods.recipe import PerFact, Recipe
from ece.methods.recipes import RECIPES
from ece.methods.registry import as_recipe
from ece.methods.searching import Sought, search
from ece.methods.subjects import prepared
from ece.methods.writing import statistics
from ece.models import LowRank, Model
from ece.targets.descent import Adam, LogOdds, PairedAdam
from ece.targets.warm import WarmStart
from ece.update.after import Prune, Rect
from ece.update.solve import least_squares
from ece.update.solvers import NullSpace
from ece.update.spread import Rounds, Spread, in_common

BEFORE = make.OPENINGS
LAYERS = (0, 1, 2)
LAST = LAYERS[-1]

NAMES = [recipe.name for recipe in RECIPES]


def quick(name: str, **options: Any) -> Recipe:
    """A method with few steps and little text."""
    recipe = replace(as_recipe(name), layers=LAYERS, tokens=512, contexts=2)
    if isinstance(recipe.targets, PerFact) and not isinstance(recipe.targets.descent, LogOdds):
        recipe = replace(recipe, targets=replace(recipe.targets, descent=replace(recipe.targets.descent, steps=4)))
    return replace(recipe, **options)


def made_with(model: Model, facts: Sequence[Fact], recipe: Recipe, history: History | None = None) -> Edit:
    return edit(model, facts, recipe, history, before=BEFORE)


def mean_key(model: Model, fact: Fact, layer: int) -> Tensor:
    """ROME's: over the bare prompt and all contexts alike."""
    return torch.stack([reference.key(model, fact, layer, text) for text in BEFORE]).mean(0)


def memit_key(model: Model, fact: Fact, layer: int) -> Tensor:
    others = torch.stack([reference.key(model, fact, layer, text) for text in BEFORE[1:]]).mean(0)
    return 0.5 * reference.key(model, fact, layer) + 0.5 * others


def memit_keys(model: Model, facts: Sequence[Fact], layer: int) -> Tensor:
    return torch.stack([memit_key(model, fact, layer) for fact in facts])


def hidden(model: Model, facts: Sequence[Fact], layer: int = LAST) -> Tensor:
    return torch.stack([reference.hidden_state(model, fact, layer) for fact in facts])


def ffn(model: Model, facts: Sequence[Fact], layer: int = LAST) -> Tensor:
    return torch.stack([reference.ffn_output(model, fact, layer) for fact in facts])


def dense(made: Edit, layer: int, model: Model) -> Tensor:
    total = torch.zeros(model.d_model, model.d_ff, dtype=torch.float64)
    made.deltas[layer].add_to(total)
    return total


def moments(model: Model, recipe: Recipe) -> dict[int, Tensor]:
    """E[kk^T] in float64."""
    whole = replace(recipe, layers=LAYERS)
    return {layer: moment.double() for layer, moment in statistics(model, whole).items()}


def agree(found: Tensor, wanted: Any, tolerance: float = 1e-3) -> None:
    assert reference.relative(found, torch.as_tensor(wanted)) < tolerance


# --- what every recipe has in common


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_edits_in_sequence_and_leaves_no_trace(name: str, more_facts: list[Fact]):
    """All are applied and reverted bit for bit, and their edits are values that rebuild the history."""
    model = make.build("llama")
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    recipe = quick(name)
    if isinstance(recipe.solve, NullSpace):
        recipe = replace(recipe, solve=NullSpace(threshold=0.3))
    edits = make.with_keys_in_sequence(model, more_facts, recipe, 3)
    assert [len(made.facts) for made in edits] == [3, 2]
    assert any((value != before[key]).any() for key, value in model.network.state_dict().items())
    assert [sorted(made.keys) for made in edits] == [list(recipe.spread.written(LAYERS))] * 2
    assert all(len(made.keys[layer]) == len(made.facts) for made in edits for layer in made.keys)
    for made in edits:
        made.revert(model)
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())


@pytest.mark.parametrize("name", ["rome", "nse", "memit-blue", "prune", "rect", "alphaedit"])
def test_edits_are_saved_and_resumed(name: str, more_facts: list[Fact], tmp_path: Any):
    recipe = quick(name)
    if name == "alphaedit":
        recipe = replace(recipe, solve=NullSpace(threshold=0.3))
    whole = make.build("llama")
    edits = list(edit_in_sequence(whole, more_facts, recipe, batch_size=2))
    again = make.build("llama")
    for number, made in enumerate(edits[:2]):
        made.save(tmp_path / str(number))
    earlier = [Edit.load(tmp_path / str(number)) for number in range(2)]
    for made in earlier:
        made.apply(again)
    (resumed,) = edit_in_sequence(again, more_facts[4:], recipe, batch_size=2, earlier=earlier)
    for layer in resumed.deltas:
        assert torch.equal(dense(resumed, layer, again), dense(edits[2], layer, whole))
        assert torch.equal(again.weight(layer), whole.weight(layer))


@pytest.mark.parametrize("name", ["memit", "memit-history", "ece-rs", "ece"])
def test_the_shared_engine_gives_the_bits_it_gave(name: str, more_facts: list[Fact]):
    """The plain loop that the recipes grew out of: shares of the residual, least squares, next layer; no contexts."""
    model = make.build("gpt2")
    recipe = replace(quick(name), write_contexts=0)
    first = made_with(model, more_facts[:3], recipe)
    first.apply(model)
    history = History.of(model, [first])
    made = made_with(model, more_facts[3:], recipe, history)

    statistic = statistics(model, recipe)
    subjects = prepared(model, more_facts[3:], recipe, BEFORE)
    wanted, entering = made.hidden + made.delta, subjects.entering
    with torch.no_grad(), model.overlay.trial(model) as lay:
        for place, layer in enumerate(LAYERS):
            read = subjects.read(entering, layer, LAST, "layer", "prompt")
            residual = wanted - read.now
            residual = (residual - recipe.leave_common * in_common(residual, len(made.hidden))) / (len(LAYERS) - place)
            kept = recipe.regularise * statistic[layer].double()
            if recipe.history:
                kept += history.moments[layer].whole()
            if recipe.keeps_more:
                kept += read.around.double().T @ read.around.double()
            change = rounded(least_squares(kept, read.key, residual, made.deltas[layer].neurons))
            assert torch.equal(change.left, made.deltas[layer].left)
            assert torch.equal(change.right, made.deltas[layer].right)
            lay({layer: change})
            if layer != LAST:
                entering = subjects.run(entering, layer, layer + 1)


# --- ROME and R-ROME


def test_romes_edited_key_maps_to_its_value(tiny: Model, facts: list[Fact]):
    fact, recipe = facts[1], quick("rome")
    value = reference.ffn_output(tiny, fact, LAST)
    key = reference.key(tiny, fact, LAST)
    made = made_with(tiny, [fact], recipe)
    wanted = reference.rank_one(moments(tiny, recipe)[LAST], mean_key(tiny, fact, LAST), key, made.delta[0])
    agree(dense(made, LAST, tiny), wanted)
    assert sorted(made.deltas) == [LAST]
    assert made.deltas[LAST].left.shape[1] == 1
    made.apply(tiny)
    agree(reference.ffn_output(tiny, fact, LAST) - value, made.delta[0], 1e-4)


def test_r_rome_uses_one_key_everywhere(tiny: Model, facts: list[Fact]):
    """`(W + Delta) k* = v*` for the averaged key, where v* was sought after the bare prompt."""
    fact, recipe = facts[1], quick("r-rome")
    weight, key, mean = tiny.weight(LAST).clone(), reference.key(tiny, fact, LAST), mean_key(tiny, fact, LAST)
    made = made_with(tiny, [fact], recipe)
    value = weight @ key + made.delta[0]
    wanted = reference.rank_one(moments(tiny, recipe)[LAST], mean, mean, value - weight @ mean)
    agree(dense(made, LAST, tiny), wanted)
    made.apply(tiny)
    agree(tiny.weight(LAST) @ mean - weight @ mean, value - weight @ mean, 1e-4)


@pytest.mark.parametrize("name", ["rome", "r-rome"])
def test_facts_of_a_batch_are_edited_one_by_one(name: str, facts: list[Fact]):
    """A batch is the same as its facts in sequence."""
    together, alone = make.build("llama"), make.build("llama")
    made = made_with(together, facts, quick(name))
    total = torch.zeros(alone.d_model, alone.d_ff, dtype=torch.float64)
    for number, fact in enumerate(facts):
        single = made_with(alone, [fact], quick(name))
        single.apply(alone)
        single.deltas[LAST].add_to(total)
        assert torch.equal(single.delta[0], made.delta[number])
        assert torch.equal(single.keys[LAST][0], made.keys[LAST][number])
    agree(dense(made, LAST, together), total, 1e-6)
    assert made.deltas[LAST].left.shape[1] == len(facts)


@pytest.mark.parametrize("spread", [Spread(layers="last"), Spread(layers="ends", own_targets=True)])
def test_targets_from_the_original_weights_are_sought_for_all_facts_of_a_batch_together(
    facts: list[Fact], spread: Spread
):
    """One search for each layer that has targets; what is written is what facts in turn write."""
    asked = []

    def counted(model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]) -> Sought:
        asked.append(list(facts))
        return search(model, facts, recipe, warm, before)

    together, alone = make.build("llama"), make.build("llama")
    recipe = quick("rome", spread=spread, targets_from="original")
    made = edit(together, facts, recipe, before=BEFORE, search=counted)
    assert asked == [facts] * len(recipe.spread.written(LAYERS))
    singles = []
    for fact in facts:
        singles.append(made_with(alone, [fact], recipe))
        singles[-1].apply(alone)
    for layer in recipe.spread.written(LAYERS):
        agree(dense(made, layer, together), sum(dense(single, layer, alone) for single in singles), 1e-3)


def test_history_grows_within_a_batch_that_is_edited_one_by_one(facts: list[Fact]):
    """The second fact keeps the first one's key, as it would in a batch of its own."""
    together, alone = make.build("llama"), make.build("llama")
    recipe = quick("memit-history", at_once=1)
    made = made_with(together, facts, recipe)
    history, edits = History(), []
    for fact in facts:
        edits.append(made_with(alone, [fact], quick("memit-history"), history))
        edits[-1].apply(alone)
        history.add(alone, edits[-1])
    for layer in LAYERS:
        agree(
            dense(made, layer, together), sum(dense(single, layer, alone) for single in edits), 1e-3
        )  # single edits are rounded
        agree(History.of(together, [made]).moments[layer].whole(), history.moments[layer].whole())


def test_a_fact_that_fails_is_left_out_of_a_batch_edited_one_by_one(facts: list[Fact], tmp_path: Any):
    model = make.build("llama")
    bad = Fact("Paris is near {} and", "Kelva", "Rome")
    fine = "\n".join(f"{text}{fact} {fact.subject} is a" for text in BEFORE for fact in facts) + "\n"
    own = set(reference.token_ids(model, bad.question)) - set(reference.token_ids(model, fine))
    model.network.get_input_embeddings().weight.data[list(own)] = torch.nan  # pyright: ignore
    (tmp_path / "corpus.txt").write_text(20 * fine, encoding="utf-8")
    recipe = quick("rome", corpus=str(tmp_path / "corpus.txt"))
    made = made_with(model, [facts[0], bad, *facts[1:]], recipe)
    assert [entry.failed for entry in made.manifest.facts] == [False, True, False, False]
    assert made.facts == facts
    agree(dense(made, LAST, model), dense(made_with(model, facts, recipe), LAST, model), 1e-6)


@pytest.mark.parametrize("name", ["rome", "pmet"])
def test_targets_at_the_ffns_output(tiny: Model, facts: list[Fact], name: str):
    """Clamp and decay are relative to the FFN's output there."""
    recipe = quick(name, spread=Spread(layers="last"), targets=PerFact(Adam(steps=5)), at_once=None)
    made = made_with(tiny, facts, recipe)
    weights = recipe.weights
    for number, fact in enumerate(facts):
        loss = reference.PlainLoss(tiny, fact, LAST, BEFORE, weights.kl, weights.decay, weights.clamp, site="ffn")
        agree(made.hidden[number], loss.around, 1e-4)
        agree(made.delta[number], reference.adam_search(loss, 5, 0.5)[0], 1e-3)


# --- MEMIT and EMMET


def test_memits_normal_equations_hold(tiny: Model, facts: list[Fact]):
    recipe = quick("memit", regularise=20.0)
    made = made_with(tiny, facts, recipe)
    wanted = hidden(tiny, facts) + made.delta
    for place, layer in enumerate(LAYERS):
        keys = memit_keys(tiny, facts, layer).double()
        residual = (wanted - hidden(tiny, facts)) / (len(LAYERS) - place)
        system = 20 * moments(tiny, recipe)[layer] + keys.T @ keys
        agree(dense(made, layer, tiny) @ system, residual.double().T @ keys)
        tiny.weight(layer).add_(dense(made, layer, tiny).float())


def test_emmets_constraint_holds_with_equality(tiny: Model, facts: list[Fact]):
    recipe = quick("emmet")
    keys, before = memit_keys(tiny, facts, LAST), tiny.weight(LAST).clone()
    made = made_with(tiny, facts, recipe)
    wanted = reference.equality(moments(tiny, recipe)[LAST], keys.T, made.delta.T)
    agree(dense(made, LAST, tiny), wanted)
    made.apply(tiny)
    agree((tiny.weight(LAST) - before) @ keys.T, made.delta.T, 1e-3)


def test_emmet_after_bare_prompts_reaches_every_target(tiny: Model, facts: list[Fact]):
    made = made_with(tiny, facts, quick("emmet", keys="prompt"))
    before = hidden(tiny, facts)
    made.apply(tiny)
    agree(hidden(tiny, facts) - before, made.delta)


# --- PMET


def test_pmet_spreads_by_roots(tiny: Model, facts: list[Fact]):
    recipe = quick("pmet", regularise=20.0)
    made = made_with(tiny, facts, recipe)
    wanted = ffn(tiny, facts) + made.delta
    for place, layer in enumerate(LAYERS):
        keys = memit_keys(tiny, facts, layer)
        residual = (wanted - ffn(tiny, facts)) / (len(LAYERS) - place) ** 0.5
        solved = reference.least_squares(20 * moments(tiny, recipe)[layer], keys.T, residual.T)
        agree(dense(made, layer, tiny), solved)
        tiny.weight(layer).add_(torch.from_numpy(solved).float())


@pytest.mark.parametrize("clamp", [0.75, 0.1])
def test_pmet_seeks_attention_and_ffn_together(clamp: float, facts: list[Fact]):
    model = make.build("gptj")
    recipe = quick("pmet", targets=PerFact(PairedAdam(steps=5)))
    recipe = recipe.with_options({"weights.clamp": clamp, "weights.decay": 0})
    made = made_with(model, facts, recipe)
    for number, fact in enumerate(facts):
        loss = reference.PlainLoss(model, fact, LAST, BEFORE, kl=1.0, decay=0, clamp=clamp, site="ffn")
        entering = reference.hidden_state(model, fact, LAST - 1)
        attention = loss.hidden - entering - loss.around
        agree(made.delta[number], reference.paired_search(loss, attention, 5, 0.2))


# --- PRUNE and RECT


def test_prunes_accumulated_change_is_bounded(more_facts: list[Fact]):
    model = make.build("llama")
    base = {layer: model.weight(layer).double().clone() for layer in LAYERS}
    recipe = quick("prune", regularise=1e-6, after=Prune(base=3.0)).with_options({"weights.clamp": 50})
    recipe = recipe.with_options({"targets.descent.rate": 20})
    restrained = 0
    for number, made in enumerate(edit_in_sequence(model, more_facts, recipe, batch_size=2)):
        for layer in LAYERS:
            accumulated = model.weight(layer).double() - base[layer]
            most = float(torch.linalg.matrix_norm(base[layer], 2))
            largest = float(torch.linalg.matrix_norm(accumulated, 2))
            rank = made.deltas[layer].left.shape[1]
            restrained += rank > len(made.facts)
            if rank == len(made.facts):
                assert largest <= most * (1 + 1e-5)
            elif number == 0:  # what the change was before is left in its first ranks
                change = made.deltas[layer]
                solved = LowRank(change.left[:, :2], change.right[:2], change.neurons)
                total = torch.zeros_like(base[layer])
                solved.add_to(total)
                agree(accumulated, reference.pruned(base[layer], total, 3.0))
                assert most < largest < float(torch.linalg.matrix_norm(total, 2))
    assert restrained > 0


def test_rect_keeps_exactly_its_share(tiny: Model, facts: list[Fact]):
    whole, sparse = (made_with(tiny, facts, quick("rect", after=Rect(share=share))) for share in (1.0, 0.4))
    for layer in LAYERS:
        kept = dense(sparse, layer, tiny)
        assert int((kept != 0).sum()) == round(0.4 * kept.numel())
        wanted = reference.rectified(tiny.weight(layer), dense(whole, layer, tiny), 0.4)
        agree(kept, wanted, 1e-5)


# --- AlphaEdit


def test_alphaedit_leaves_preserved_keys_outputs_unchanged(tiny: Model, more_facts: list[Fact]):
    recipe = quick("alphaedit", solve=NullSpace(threshold=0.1, ridge=0.5))
    first = made_with(tiny, more_facts[:2], recipe)
    first.apply(tiny)
    history = History.of(tiny, [first])
    made = made_with(tiny, more_facts[2:], recipe, history)
    wanted = hidden(tiny, more_facts[2:]) + made.delta
    statistic = moments(tiny, recipe)
    for place, layer in enumerate(LAYERS):
        ordinary = statistic[layer]
        p = reference.projector(ordinary, 0.1)
        keys = memit_keys(tiny, more_facts[2:], layer)
        residual = (wanted - hidden(tiny, more_facts[2:])) / (len(LAYERS) - place)
        earlier = first.keys[layer].double()
        solved = reference.null_space(p, earlier.T @ earlier, keys.T, residual.T, 0.5)
        found = dense(made, layer, tiny)
        agree(found, solved)
        values, vectors = torch.linalg.eigh(ordinary)
        preserved = vectors[:, values >= 0.1]
        assert 0 < preserved.shape[1] < tiny.d_ff
        assert (found @ preserved).norm() < 1e-5 * found.norm()
        tiny.weight(layer).add_(found.float())


# --- NSE


def test_nse_sweeps_until_targets_are_reached(facts: list[Fact]):
    """Two sweeps by dense algebra; the second one for the facts that are still further off than alpha."""
    model = make.build("llama")
    probe = quick("nse", rounds=Rounds())
    wanted = hidden(model, facts) + made_with(model, facts, probe).delta
    once = made_with(model, facts, probe)
    once.apply(model)
    left = (wanted - hidden(model, facts)).norm(dim=1).sort().values
    once.revert(model)
    alpha = float(left[0] + left[1]) / 2
    recipe = quick("nse", rounds=Rounds(at_most=2, above=alpha))
    made = made_with(model, facts, recipe)
    total = {layer: torch.zeros(model.d_model, model.d_ff, dtype=torch.float64) for layer in LAYERS}
    swept = []
    for _ in range(2):
        some = [f for f, w in zip(facts, wanted, strict=True) if (w - hidden(model, [f])[0]).norm() > alpha]
        swept.append(len(some))
        targets = torch.stack([w for f, w in zip(facts, wanted, strict=True) if f in some])
        for place, layer in enumerate(LAYERS):
            keys = memit_keys(model, some, layer)
            chosen = torch.tensor(sorted(reference.top_p(keys.abs().sum(0).tolist(), 0.8)))
            residual = (targets - hidden(model, some)) / (len(LAYERS) - place)
            kept = recipe.regularise * moments(model, recipe)[layer][chosen][:, chosen]
            solved = torch.from_numpy(reference.least_squares(kept, keys[:, chosen].T, residual.T))
            total[layer][:, chosen] += solved
            model.weight(layer)[:, chosen] += solved.float()
    assert swept == [3, 2]
    for layer in LAYERS:
        found = torch.zeros_like(total[layer])
        made.deltas[layer].add_to(found)
        agree(found, total[layer])
        agree(made.keys[layer], memit_keys(model, facts, layer), 1e-3)


def test_facts_beyond_the_upper_bound_are_not_written(tiny_llama: Model, facts: list[Fact]):
    made = made_with(tiny_llama, facts, quick("nse", rounds=Rounds(at_most=2, below=1e-6)))
    assert all(dense(made, layer, tiny_llama).abs().sum() == 0 for layer in LAYERS)
    assert made.facts == facts
    made.apply(tiny_llama)


def test_nse_seeks_targets_on_the_original_weights(tiny_llama: Model, facts: list[Fact]):
    fresh = made_with(tiny_llama, facts[1:], quick("nse"))
    made_with(tiny_llama, facts[:1], quick("memit", regularise=1.0)).apply(tiny_llama)
    later = made_with(tiny_llama, facts[1:], quick("nse"))
    torch.testing.assert_close(later.delta, fresh.delta, rtol=1e-4, atol=1e-5)


# --- ENCORE


def test_encore_penalises_the_changes_norm(tiny: Model, facts: list[Fact]):
    recipe = quick("encore", layers=(LAST,), regularise=5.0)
    made = made_with(tiny, facts, recipe)
    kept = 5 * moments(tiny, recipe)[LAST] + 10 * torch.eye(tiny.d_ff)
    agree(dense(made, LAST, tiny), reference.least_squares(kept, memit_keys(tiny, facts, LAST).T, made.delta.T))


@pytest.mark.parametrize("times", [1, 3])
def test_encore_stops_when_the_target_is_most_probable(times: int, tiny_llama: Model):
    facts = [Fact("I know {}", "Ada Lovelace", "Rome"), Fact("{} grew up in", "Victor Hugo", "ice hockey")]
    recipe = quick("encore", targets=PerFact(Adam(steps=30, rate=1.0, stop_when_first=times)))
    recipe = recipe.with_options({"weights.clamp": 3})
    made = made_with(tiny_llama, facts, recipe)
    evaluations = [entry.evaluations for entry in made.manifest.facts]
    for number, fact in enumerate(facts):
        loss = reference.PlainLoss(tiny_llama, fact, LAST, BEFORE, clamp=3.0)
        delta, steps = reference.first_search(loss, 30, 1.0, times)
        assert evaluations[number] == steps
        agree(made.delta[number], delta, 2e-2)
    assert min(evaluations) < 30


def test_any_search_can_stop_when_the_target_comes_first(tiny_llama: Model):
    facts = [Fact("I know {}", "Ada Lovelace", "Rome")]
    plain = quick("ece").with_options({"targets.descent.aim": 9, "targets.descent.last_below": 0, "weights.clamp": 3})
    early = plain.with_options({"targets.descent.stop_when_first": 1})
    late, soon = (made_with(tiny_llama, facts, recipe).manifest.facts[0].evaluations for recipe in (plain, early))
    assert soon < late


# --- BLUE


@pytest.mark.parametrize("name", ["memit-blue", "alphaedit-blue"])
def test_blue_changes_the_ends_each_toward_its_own_target(name: str, facts: list[Fact]):
    """The same as editing the first layer alone, and then the last one alone."""
    solve = {"solve": NullSpace(threshold=0.3)} if name == "alphaedit-blue" else {}
    model, alone = make.build("gpt2"), make.build("gpt2")
    made = made_with(model, facts, quick(name, **solve))
    assert sorted(made.deltas) == [0, 2]
    for layer in (0, 2):
        single = made_with(alone, facts, quick(name, layers=(layer,), **solve))
        assert torch.equal(dense(single, layer, alone), dense(made, layer, model))
        assert torch.equal(single.keys[layer], made.keys[layer])
        single.apply(alone)
    assert torch.equal(single.delta, made.delta)
    before = {layer: model.weight(layer).clone() for layer in range(len(model.layers))}
    made.apply(model)
    changed = [layer for layer, weight in before.items() if (model.weight(layer) != weight).any()]
    assert changed == [0, 2]


@pytest.mark.parametrize("name", NAMES)
def test_blue_and_early_stop_are_options_of_any_recipe(name: str, facts: list[Fact], tiny_llama: Model):
    options: dict[str, Any] = {"spread": "blue"}
    if isinstance(as_recipe(name).targets, PerFact):
        options["targets.descent.stop_when_first"] = "2"
    recipe = quick(name).with_options(options)
    if isinstance(recipe.solve, NullSpace):
        recipe = recipe.with_options({"solve.threshold": "0.3"})
    made = made_with(tiny_llama, facts[:2], recipe)
    assert sorted(made.deltas) == [0, 2]


def test_two_layers_with_one_target_are_a_choice_too(tiny_llama: Model, facts: list[Fact]):
    recipe = quick("memit").with_options({"spread.layers": "ends"})
    made = made_with(tiny_llama, facts, recipe)
    wanted = made_with(tiny_llama, facts, quick("memit", layers=(0, 2)))
    assert all(torch.equal(dense(made, layer, tiny_llama), dense(wanted, layer, tiny_llama)) for layer in (0, 2))
    assert sorted(made.deltas) == sorted(wanted.deltas)
