"""Making explanations: from a model and facts, or from edits that were made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ece.edits.edit import Edit
from ece.errors import UserError
from ece.explain.explanation import STRONGEST, Chosen, Cluster, Explanation, Located, Neuron, Site
from ece.explain.vocabulary import read
from ece.facts import Fact, batches
from ece.locate.scores import FORMULAS, activation_score, select, smallest_set
from ece.methods.engine import with_layers, written_contexts
from ece.methods.recall import recalled
from ece.methods.recipe import Neurons, Recipe, TwoStep
from ece.methods.registry import as_recipe
from ece.methods.subjects import keys as bare_keys
from ece.methods.subjects import prepared
from ece.models import Model
from ece.targets.clusters import grouped, jaccard_distances

FACTS_AT_ONCE = 100
"""In one pass through the model."""


@torch.no_grad()
def explain(
    model: Model, facts: Sequence[Fact], recipe: Recipe | str = "ece", *, before: Sequence[str] | None = None
) -> Explanation:
    """Say where facts are in a model, as it is now, and which neurons an edit would choose.

    Neurons are chosen for all facts as one batch. An edit changes its layers in turn and reads the keys of the upper
    ones afterwards, so its sets can differ there by a few neurons; `from_edits` shows those that were changed.
    Facts are clustered as the recipe's two-step search clusters them, or as the paper's does.

    Args:
        model: with earlier edits applied, if there are any.
        facts: one batch.
        recipe: or a method's name.
        before: contexts, for recipes whose keys are means over contexts; written by the model by default.

    Raises:
        UserError: there are no facts, or the model cannot be edited, or computes NaN.
    """
    if not facts:
        raise UserError("no facts to explain; give at least one")
    recipe = as_recipe(recipe)
    recipe = with_layers(model, facts, recipe)
    layers, neurons = recipe.edited, recipe.neurons
    choice = recipe.targets if isinstance(recipe.targets, TwoStep) else TwoStep()
    before = (before or written_contexts(model)) if recipe.keys != "prompt" else [""]

    keys = _keys(facts, lambda some: _read(model, some, recipe, before))
    weights = {layer: model.weight(layer).float() for layer in layers}
    chosen = {layer: select(neurons.score, neurons.p, keys[layer], weights[layer], neurons.share) for layer in layers}
    with model.overlay.suspended(model) if recipe.targets_from == "original" else nullcontext():
        window = range(layers[0], layers[-1] + 1)
        sets = _sets(_keys(facts, lambda some: bare_keys(model, some, window)), choice.p)
    found = grouped(choice.by, facts, sets, min(choice.clusters, len(facts)))
    grouping = _Grouping(found.of_fact.tolist(), found.anchors.tolist(), sets)
    batch = _Batch(facts, keys, weights)
    return _assembled(model, recipe.name, neurons, [batch], chosen, grouping)


@torch.no_grad()
def from_edits(model: Model, edits: Sequence[Edit]) -> Explanation:
    """Say the same of edits that were made, from what they keep; the model may have them applied.

    Scores are of the keys the edits were made with and of the weights as each edit found them, provided that `edits`
    are all there were, in order. The chosen neurons are those that any of them changed. The clusters are the edits'
    own; where an edit has none, all facts are clustered by their keys as the paper's search would.

    Args:
        model: the one they were made for.
        edits: made with the same layers and the same choice of neurons.

    Raises:
        UserError: there are no edits, they are another model's, or they differ in layers or choice of neurons.
    """
    if not edits:
        raise UserError("no edits to explain; give at least one")
    for edit in edits:
        edit.check(model)
    manifests = [edit.manifest for edit in edits]
    first = manifests[0]
    if "neurons" not in first.options:
        raise UserError(f"{first.method} chooses no neurons, so its edits have nothing to explain; explain a recipe's")
    for manifest in manifests[1:]:
        if manifest.layers != first.layers or manifest.options["neurons"] != first.options["neurons"]:
            raise UserError("these edits differ in layers or in their choice of neurons; explain them one by one")
    edits = recalled(model, edits)
    chosen = {layer: torch.cat([edit.deltas[layer].neurons.cpu() for edit in edits]).unique() for layer in first.layers}
    return _assembled(
        model,
        ", ".join(dict.fromkeys(manifest.method for manifest in manifests)),
        Neurons(**first.options["neurons"]),
        _batches(model, edits),
        chosen,
        _Grouping.of(edits),
    )


@dataclass(frozen=True)
class _Batch:
    """Facts with their keys `[facts, d_ff]` and the weights `[d_model, d_ff]` they met, by layer."""

    facts: Sequence[Fact]
    keys: Mapping[int, Tensor]
    weights: Mapping[int, Tensor]

    def scores(self, name: str) -> dict[int, Tensor]:
        """By layer `[facts, d_ff]`."""
        formula = FORMULAS["rs" if name == "random" else name]
        scores = {layer: formula(key, self.weights[layer]) for layer, key in self.keys.items()}
        for layer, score in scores.items():
            if not score.isfinite().all():
                raise UserError(f"layer {layer}: scores are NaN or infinite; is the model sound?")
        return scores


@dataclass(frozen=True)
class _Grouping:
    of_fact: list[int]
    anchors: list[int | None]
    """By the clusters' numbers."""

    sets: Tensor
    """`[facts, neurons]` bool: each fact's own neuron set."""

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> _Grouping:
        options = [edit.manifest.options["targets"] for edit in edits]
        choice = TwoStep(p=options[0].get("p", TwoStep.p))
        layers = edits[0].manifest.layers
        keys = {layer: torch.cat([edit.keys[layer].float().cpu() for edit in edits]) for layer in layers}
        sets = _sets(keys, choice.p)
        if all(edit.manifest.anchors for edit in edits):
            return cls(*_recorded(edits), sets)
        facts = [fact for edit in edits for fact in edit.facts]
        found = grouped(choice.by, facts, sets, min(choice.clusters, len(facts)))
        return cls(found.of_fact.tolist(), found.anchors.tolist(), sets)

    @property
    def chance(self) -> float:
        """1 - q / (2 - q), where sets hold a share q of the neurons: both hold q^2 of them, one or both 2 q - q^2."""
        q = float(self.sets.float().mean())
        return 1 - q / (2 - q)

    def clusters(self, distances: Tensor) -> tuple[Cluster, ...]:
        """The clusters that have members, in the order of their numbers."""
        members: dict[int, list[int]] = {number: [] for number in sorted(set(self.of_fact))}
        for fact, number in enumerate(self.of_fact):
            members[number].append(fact)
        return tuple(
            Cluster(tuple(facts), self.anchors[number], _mean_distance(distances[facts][:, facts]))
            for number, facts in members.items()
        )


def _mean_distance(distances: Tensor) -> float:
    """Mean over all pairs of different facts of `distances` `[facts, facts]`; 0 where there is no pair."""
    facts = len(distances)
    return float((distances.sum() - distances.trace()) / max(facts * (facts - 1), 1))


def _keys(facts: Sequence[Fact], reading: Callable[[Sequence[Fact]], dict[int, Tensor]]) -> dict[int, Tensor]:
    """Keys by layer `[facts, d_ff]`, signed, read from a few facts at a time."""
    parts = [reading(some) for some in batches(facts, FACTS_AT_ONCE)]
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def _read(model: Model, facts: Sequence[Fact], recipe: Recipe, before: Sequence[str]) -> dict[int, Tensor]:
    """K1 by layer, as an edit of this recipe takes it."""
    subjects = prepared(model, facts, replace(recipe, write_contexts=0, keep_prompts=0.0, keep_after=0.0), before)
    return {layer: read.key for layer, read in subjects.along(recipe.edited)}


def _sets(keys: Mapping[int, Tensor], p: float) -> Tensor:
    """The facts' own neuron sets over all layers, by Activation Score (Eq. 5) `[facts, neurons]`."""
    return torch.cat([smallest_set(activation_score(key, key), p).cpu() for key in keys.values()], dim=1)


def _batches(model: Model, edits: Sequence[Edit]) -> Iterator[_Batch]:
    """One batch of each edit. Its weights are changed in place when the next one is asked for."""
    layers = edits[0].manifest.layers
    weights = {
        layer: model.overlay.base.get(layer, model.weight(layer)).to(torch.float32, copy=True) for layer in layers
    }
    for edit in edits:
        keys = {layer: edit.keys[layer].float().to(weights[layer].device) for layer in layers}
        yield _Batch(edit.facts, keys, weights)
        for layer, change in edit.deltas.items():
            change.add_to(weights[layer])


def _recorded(edits: Sequence[Edit]) -> tuple[list[int], list[int | None]]:
    """The cluster of each fact and the anchor of each cluster, as the manifests say, numbered through all edits."""
    of_fact: list[int] = []
    anchors: list[int | None] = []
    for edit in edits:
        entries = edit.manifest.facts
        kept = [number for number, entry in enumerate(entries) if not entry.failed]
        place = {number: len(of_fact) + rank for rank, number in enumerate(kept)}
        of_fact += [len(anchors) + (entries[number].cluster or 0) for number in kept]
        anchors += [place.get(number) for number in edit.manifest.anchors]
    return of_fact, anchors


def _assembled(
    model: Model,
    name: str,
    neurons: Neurons,
    parts: Iterable[_Batch],
    chosen: Mapping[int, Tensor],
    grouping: _Grouping,
) -> Explanation:
    fraction = neurons.p if neurons.p < 1 else TwoStep.p
    distances = jaccard_distances(grouping.sets, grouping.sets)
    clusters = grouping.clusters(distances)
    of_fact = {fact: number for number, cluster in enumerate(clusters) for fact in cluster.members}
    totals = {layer: torch.zeros(model.d_ff) for layer in chosen}
    located: list[Located] = []
    for batch in parts:
        scores = batch.scores(neurons.score)
        for layer, score in scores.items():
            totals[layer] += score.sum(0).cpu()
        sites = zip(*_sites(model, batch, scores, fraction), strict=True)
        for fact, of_layers in zip(batch.facts, sites, strict=True):
            located.append(Located(fact, of_fact[len(located)], of_layers))
    return Explanation(
        model=model.name,
        method=name,
        score=neurons.score,
        p=neurons.p,
        fraction=fraction,
        layers=tuple(_chosen(layer, indices, totals[layer]) for layer, indices in chosen.items()),
        facts=tuple(located),
        clusters=clusters,
        distances=distances,
        chance=grouping.chance,
    )


def _chosen(layer: int, neurons: Tensor, scores: Tensor) -> Chosen:
    held = scores[neurons.cpu()].double().sum() / scores.double().sum().clamp_min(1e-30)
    return Chosen(layer, tuple(neurons.tolist()), len(neurons) / len(scores), float(held), scores)


def _sites(model: Model, batch: _Batch, scores: Mapping[int, Tensor], fraction: float) -> list[list[Site]]:
    """Of each layer, each fact's site."""
    sums = {layer: score.double().sum(1).cpu() for layer, score in scores.items()}
    everywhere = torch.stack(list(sums.values())).sum(0).clamp_min(1e-30)
    found = []
    for layer, score in scores.items():
        shares = (sums[layer] / everywhere).tolist()
        own = smallest_set(score, fraction).sum(1).tolist()
        strongest = _strongest(model, layer, score, batch.keys[layer], batch.weights[layer])
        rows = zip(sums[layer].tolist(), shares, own, strongest, strict=True)
        found.append([Site(layer, *row) for row in rows])
    return found


def _strongest(model: Model, layer: int, score: Tensor, key: Tensor, weight: Tensor) -> list[tuple[Neuron, ...]]:
    """Of each fact, its strongest neurons in a layer; each signed column of W is read once."""
    top = score.topk(min(STRONGEST, score.shape[1]), dim=1)
    activation = key.gather(1, top.indices)
    share = top.values / score.sum(1, keepdim=True).clamp_min(1e-30)
    sign = torch.where(activation < 0, -1, 1)
    signed, which = torch.stack([top.indices, sign], dim=-1).flatten(0, 1).unique(dim=0, return_inverse=True)
    readings = read(model, weight[:, signed[:, 0]].T * signed[:, 1:])
    columns = (top.indices, activation, top.values, share, which)
    numbers = zip(*(column.flatten().tolist() for column in columns), strict=True)
    found = [Neuron(layer, index, a, value, part, readings[r]) for index, a, value, part, r in numbers]
    width = top.indices.shape[1]
    return [tuple(found[i : i + width]) for i in range(0, len(found), width)]
