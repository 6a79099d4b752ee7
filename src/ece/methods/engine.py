"""The one engine behind every recipe: facts -> keys -> neurons -> clusters -> targets -> weight changes -> Edit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from ece.edits.edit import Edit, FactEntry, Manifest
from ece.errors import UserError
from ece.facts import Fact, batches, check_consistent
from ece.heap import memory_returned
from ece.locate.layers import choose_layers, window_of
from ece.locate.tracing import traced_layers
from ece.methods import registry
from ece.methods.history import History
from ece.methods.memory import check as check_memory
from ece.methods.method import Method, known
from ece.methods.phases import Phases
from ece.methods.recall import recalled_history
from ece.methods.recipe import PerFact, Recipe
from ece.methods.searching import InAdvance, Search, search, searched_on, tokens_at_a_time
from ece.methods.subjects import states, wanted
from ece.methods.writing import statistics, swept
from ece.models import Delta, LowRank, Model
from ece.targets.clusters import Clusters
from ece.targets.contexts import contexts
from ece.targets.descent import Solved
from ece.targets.warm import WarmStart
from ece.update.after import combined
from ece.update.spread import Rounds
from ece.update.statistics import statistics_key

log = logging.getLogger(__name__)


def edit(
    model: Model,
    facts: Sequence[Fact],
    method: Method | str = "ece",
    history: History | None = None,
    *,
    before: Sequence[str] | None = None,
    search: Search = search,
) -> Edit:
    """Find the change of weights that makes the model say these facts. The model itself stays as it is.

    Args:
        model: with earlier edits applied, if there are any.
        facts: one batch.
        method: a recipe or another method, or a method's name.
        history: of earlier batches, whose layers are kept to where the recipe leaves them to us; None for the first.
        before: contexts; written by the model by default.
        search: what finds the targets.

    Raises:
        UserError: facts contradict each other, or the model cannot be edited.
    """
    phases = Phases(model.device)
    if not facts:
        raise UserError("no facts to edit")
    check_consistent(facts)
    recipe = registry.method(method) if isinstance(method, str) else method
    history = history or History()
    if not isinstance(recipe, Recipe):
        return recipe.edit(model, facts, history, before or ())
    before = before or written_contexts(model)
    recipe = with_layers(model, facts, recipe, history.moments)
    layers = recipe.edited
    check_memory(model, recipe, tokens_at_a_time(model, facts, recipe, before))
    statistics(model, recipe)  # made if they are not on disk; they are read once the targets are found
    said = known(model, facts)
    phases.end("preparation")

    reached = in_turn(Bench(model, recipe, before, phases, search), facts, recipe, history)
    phases.end("update")
    solved, clusters = reached.solved, reached.clusters
    if solved.failed.all():
        raise UserError("the loss of every fact is NaN or infinite; is the model sound, and its dtype wide enough?")
    entries = [
        FactEntry(
            **dataclasses.asdict(fact),
            cluster=int(clusters.of_fact[i]) if clusters else None,
            evaluations=int(solved.evaluations[i]),
            nll=float(solved.nll[i]) if solved.nll[i].isfinite() else 0.0,
            failed=bool(solved.failed[i]),
            already_known=said[i],
        )
        for i, fact in enumerate(facts)
    ]
    manifest = Manifest(
        method=recipe.name,
        options=recipe.options(),
        model=model.name,
        fingerprint=model.fingerprint,
        layers=list(layers),
        neurons={layer: len(change.neurons) for layer, change in reached.deltas.items()},
        facts=entries,
        contexts=list(before),
        anchors=clusters.anchors.tolist() if clusters else [],
        statistics=statistics_key(model, recipe.corpus, tokens=recipe.tokens, names=bool(recipe.keep_names)),
        derived_keys=recipe.recallable,
        seconds=sum(phases.seconds.values()),
        phases=phases.seconds,
    )
    return Edit(reached.deltas, reached.keys, reached.around, reached.hidden.cpu(), reached.delta.cpu(), manifest)


@dataclass(frozen=True)
class Bench:
    """What all steps of a batch have in common."""

    model: Model
    recipe: Recipe
    """With all its layers."""

    before: Sequence[str]
    """Contexts."""

    phases: Phases
    search: Search

    @cached_property
    def moments(self) -> dict[int, Tensor]:
        """By layer, what is kept for each token of ordinary text: a search before that has their memory."""
        return statistics(self.model, self.recipe)


@dataclass(frozen=True)
class Reached:
    """What a search for some facts' targets, and the writing of them, came to."""

    deltas: Delta
    keys: dict[int, Tensor]
    """By layer `[facts found, d_ff]`; as are `around`, `hidden` and `delta` as in `Edit`."""

    around: dict[int, Tensor]
    hidden: Tensor
    delta: Tensor
    solved: Solved
    """Of all facts, those that failed included."""

    clusters: Clusters | None


def in_turn(bench: Bench, facts: Sequence[Fact], recipe: Recipe, history: History) -> Reached:
    """Edit the facts of a batch `recipe.at_once` at a time, each on the model that those before it left."""
    model = bench.model
    groups = batches(facts, recipe.at_once or len(facts))
    if len(groups) == 1:
        return at_once(bench, facts, recipe, history)
    if recipe.targets_from == "original" and isinstance(recipe.targets, PerFact):
        bench = dataclasses.replace(bench, search=InAdvance(bench.search, facts))
    history, found = history.copy(), []
    with model.overlay.undone(model):
        for group in tqdm(groups, desc="edits at once", leave=False, disable=None):
            reached = at_once(bench, group, recipe, history)
            model.overlay.push(model, reached.deltas)
            kept = [fact for fact, failed in zip(group, reached.solved.failed.tolist(), strict=True) if not failed]
            history.take(model, kept, reached.keys, reached.around, reached.delta)
            found.append(reached)
    return joined(found)


def joined(found: Sequence[Reached]) -> Reached:
    """One value for groups of facts that were edited in turn, in the same layers."""

    def stacked(name: str) -> dict[int, Tensor]:
        return {layer: torch.cat([getattr(r, name)[layer] for r in found]) for layer in getattr(found[0], name)}

    return Reached(
        deltas={layer: combined([r.deltas[layer] for r in found]) for layer in found[0].deltas},
        keys=stacked("keys"),
        around=stacked("around"),
        hidden=torch.cat([r.hidden for r in found]),
        delta=torch.cat([r.delta for r in found]),
        solved=Solved.joined([r.solved for r in found]),
        clusters=None,
    )


def at_once(bench: Bench, facts: Sequence[Fact], recipe: Recipe, history: History) -> Reached:
    """Search and write for facts together; layer by layer, where each layer has targets of its own (BLUE)."""
    model = bench.model
    if not recipe.spread.own_targets or len(recipe.edited) == 1:
        return _restrained(model, recipe, _reached(bench, facts, recipe, history))
    found: list[Reached] = []
    with model.overlay.undone(model):
        for layer in recipe.edited:
            one = dataclasses.replace(recipe, layers=(layer,))
            last = layer == recipe.edited[-1]
            seen = history if last else dataclasses.replace(history, warm=WarmStart())
            found.append(_reached(bench, facts, one, seen))
            model.overlay.push(model, found[-1].deltas)
    upper = found[-1]
    if any((r.solved.failed != upper.solved.failed).any() for r in found):
        raise UserError("the loss of some facts became NaN or infinite once the lower layer was written")
    upper.solved.evaluations = torch.stack([r.solved.evaluations for r in found]).sum(0)
    together = {name: {k: v for r in found for k, v in getattr(r, name).items()} for name in ("keys", "around")}
    deltas = {layer: change for r in found for layer, change in r.deltas.items()}
    return _restrained(model, recipe, dataclasses.replace(upper, deltas=deltas, **together))


def _reached(bench: Bench, facts: Sequence[Fact], recipe: Recipe, history: History) -> Reached:
    model = bench.model
    sought = bench.search(model, facts, recipe, history.warm, bench.before)
    solved, clusters = sought.solved, sought.clusters
    bench.phases.end("targets", sought.seconds)
    for fact in (fact for fact, failed in zip(facts, solved.failed.tolist(), strict=True) if failed):
        log.warning("left out, its loss is not finite: %s", fact)
    good = (~solved.failed).nonzero()[:, 0].tolist()
    if not good:
        nothing = {layer: LowRank.nothing(model.weight(layer)) for layer in recipe.edited}
        keys = {layer: model.weight(layer).new_zeros(0, model.d_ff) for layer in recipe.edited}
        none = solved.delta[good]
        return Reached(nothing, keys, dict(keys) if recipe.keeps_more else {}, none, none, solved, clusters)

    edited, delta = [facts[i] for i in good], solved.delta[good]
    with searched_on(model, recipe):
        hidden = states(model, edited, recipe.edited[-1], recipe.site)
        targets = wanted(model, edited, recipe, bench.before, hidden, delta)
    with memory_returned():
        deltas, keys, around = swept(model, recipe, edited, bench.before, targets, bench.moments, history)
    bench.phases.end("update")
    return Reached(deltas, keys, around, hidden, delta, solved, clusters)


def _restrained(model: Model, recipe: Recipe, reached: Reached) -> Reached:
    """With what the recipe does to a batch's changes once they are solved."""
    deltas: dict[int, LowRank] = {}
    for layer, change in reached.deltas.items():
        base = model.overlay.base.get(layer, model.weight(layer))
        deltas[layer] = recipe.after(change, base, model.overlay.change(layer))
    return dataclasses.replace(reached, deltas=deltas)


def edit_in_sequence(
    model: Model,
    facts: Sequence[Fact],
    method: Method | str = "ece",
    batch_size: int = 100,
    earlier: Sequence[Edit] = (),
    accept: Callable[[Edit], bool] = lambda made: True,
    search: Search = search,
) -> Iterator[Edit]:
    """Edit batch after batch; each edit is applied to the model before it is yielded, without its keys.

    Args:
        model: with `earlier` applied.
        facts: all of them, in order.
        method: a recipe or another method, or a method's name.
        batch_size: facts in a batch.
        earlier: edits made before.
        accept: asked while a new edit is applied, its keys with it; where it says no or raises, the edit is taken off
            and not yielded.
        search: what finds the targets.

    Raises:
        UserError: facts contradict each other, or the model cannot be edited.
    """
    check_consistent(facts)
    recipe = registry.method(method) if isinstance(method, str) else method
    history = recalled_history(model, earlier)
    before = earlier[0].manifest.contexts if earlier else []
    before = before or (written_contexts(model) if isinstance(recipe, Recipe) else [])
    for batch in batches(facts, batch_size):
        recipe = with_layers(model, batch, recipe, history.moments) if isinstance(recipe, Recipe) else recipe
        made = edit(model, batch, recipe, history, before=before, search=search)
        made.apply(model)
        with ExitStack() as refused:
            refused.callback(made.revert, model)
            if not accept(made):
                continue
            refused.pop_all()
        history.add(model, made)
        made = made.without_keys()  # nor are they held here while the next batch is searched for
        yield made


def written_contexts(model: Model) -> list[str]:
    """Contexts that the unedited model writes."""
    with model.overlay.suspended(model):
        return contexts(model)


def with_layers(model: Model, facts: Sequence[Fact], recipe: Recipe, earlier: Iterable[int] = ()) -> Recipe:
    """The recipe with the layers that it writes chosen and checked.

    Args:
        model: the model.
        facts: by which they are chosen, where that is left to us.
        recipe: any.
        earlier: the layers that earlier batches have keys in. What is left to us is chosen already where they are
            enough for the recipe: it keeps to layers whose earlier facts it knows.

    Raises:
        UserError: the model has no such layers, or options do not go together.
    """
    if recipe.write_contexts and (recipe.keys != "prompt" or recipe.rounds != Rounds()):
        raise UserError("write_contexts goes with keys=prompt and one sweep over the layers (rounds.at_most=1)")
    kept = tuple(sorted(earlier))
    enough = len(recipe.spread.written(tuple(range(window_of(len(model.layers))))))
    if isinstance(recipe.layers, str) and len(kept) >= enough:
        recipe = dataclasses.replace(recipe, layers=kept)
    if isinstance(recipe.layers, str):
        choose = traced_layers if recipe.layers == "tracing" else choose_layers
        with model.overlay.suspended(model):
            recipe = dataclasses.replace(recipe, layers=recipe.spread.written(choose(model, facts)))
        log.info("edited layers: %s", recipe.layers)
    elif recipe.layers:
        recipe = dataclasses.replace(recipe, layers=recipe.spread.written(recipe.layers))
    last = len(model.layers) - 1
    if not recipe.edited or min(recipe.edited) < 0 or max(recipe.edited) >= last:
        raise UserError(
            f"layers {list(recipe.edited)}: {model.name} has layers 0 to {last}, and the last cannot be edited"
        )
    for layer in recipe.edited:
        model.weight(layer)
    return recipe
