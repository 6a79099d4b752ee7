"""Finding the target states: who is searched for together, on which model, from which start (Eq. 9-13)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from ece.facts import Fact
from ece.heap import memory_returned
from ece.locate.scores import smallest_set
from ece.methods.recipe import PerFact, Recipe, TwoStep
from ece.methods.subjects import activations
from ece.models import Model
from ece.models.abreast import side_by_side, workers
from ece.models.replay import evenly, of_device
from ece.models.tails import SharedPrefixes
from ece.models.tokens import locate
from ece.targets.clusters import Clusters, grouped
from ece.targets.descent import Descent, Solved
from ece.targets.loss import TargetLoss
from ece.targets.stream import Deltas, Start, Stream
from ece.targets.warm import WarmStart, target_embeddings

PASS_TOKENS = {"cpu": 300, "other": 8192}
"""Tail tokens in one pass where a recipe leaves that to us: enough to keep the processor busy, and little memory."""

ROW_TOKENS = 2
"""What a row counts besides its tail's tokens: its past, which attention takes in, and its predictions."""

Prepare = Callable[[Sequence[Fact], Sequence[str]], TargetLoss]
"""Prepares the loss of some facts with some contexts."""


@dataclass(frozen=True)
class Sought:
    """What a search for a batch's targets came to."""

    solved: Solved
    clusters: Clusters | None
    """Where the search made some."""

    seconds: float
    """That it took."""


class Search(Protocol):
    """`search`, or what may stand for it: something that remembers what was found before."""

    def __call__(
        self, model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]
    ) -> Sought:
        """Find delta = z - h for every fact."""
        ...


class InAdvance:
    """Stands for a search where facts are edited in turn: on the original weights none waits for those before it.

    All facts of the batch are sought together, and each turn is given its own.
    """

    def __init__(self, search: Search, facts: Sequence[Fact]):
        """Nothing is sought yet.

        Args:
            search: what finds the targets.
            facts: the whole batch; a turn is a run of them.
        """
        self.search = search
        self.facts = list(facts)
        self.found: dict[tuple[int, ...], Sought] = {}
        """By the layers of the recipe: BLUE's have targets of their own."""

    def __call__(
        self, model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]
    ) -> Sought:
        """The part of what was found for the batch that is these facts'."""
        if recipe.edited not in self.found:
            self.found[recipe.edited] = self.search(model, self.facts, recipe, warm, before)
        whole, first = self.found[recipe.edited], self.facts.index(facts[0])
        part = slice(first, first + len(facts))
        return Sought(Solved.joined([whole.solved], part), None, whole.seconds * len(facts) / len(self.facts))


def pass_tokens(model: Model, recipe: Recipe) -> int:
    """Tail tokens in one pass, on average at most: the recipe's, or what suits the model's device."""
    return recipe.pass_tokens or of_device(model, PASS_TOKENS)


def tokens_at_a_time(model: Model, facts: Sequence[Fact], recipe: Recipe, before: Sequence[str]) -> int:
    """Tail tokens in the passes that run at a time: what these may hold, or all of the facts' where that is less."""
    views = recipe.targets.views if isinstance(recipe.targets, PerFact) else 1
    of_all = sum(lengths[0] for lengths in _lengths(model, facts, before[: 1 + recipe.contexts], views))
    return min(workers(model) * pass_tokens(model, recipe), of_all)


def searched_on(model: Model, recipe: Recipe) -> AbstractContextManager[None]:
    """While this lasts, the model is the one that targets are sought on: the original, or the one edited so far."""
    return model.overlay.suspended(model) if recipe.targets_from == "original" else nullcontext()


def search(model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]) -> Sought:
    """Find delta = z - h for every fact (Eq. 11-13)."""
    began = time.monotonic()
    last = recipe.edited[-1]
    before, budget = before[: 1 + recipe.contexts], pass_tokens(model, recipe)
    with memory_returned(), searched_on(model, recipe):
        prefixes = SharedPrefixes.compute(model, [model.tokenizer(text.rstrip())["input_ids"] for text in before])

        def prepare(some: Sequence[Fact], seen: Sequence[str]) -> TargetLoss:
            return TargetLoss.prepare(model, some, last, seen, prefixes, recipe.weights, recipe.site)

        match recipe.targets:
            case PerFact() as per_fact:
                solved, clusters = _per_fact(model, facts, per_fact, warm, before, budget, prepare), None
            case TwoStep() as two_step:
                clusters = cluster(model, facts, two_step, recipe.edited[0], last)
                solved = _two_step(model, facts, two_step, clusters, before, budget, prepare)
    return Sought(solved, clusters, time.monotonic() - began)


def cluster(model: Model, facts: Sequence[Fact], choice: TwoStep, first: int, last: int) -> Clusters:
    """Group the facts by their neuron sets over all edited layers (Eq. 9-10), or by a control."""
    sets = torch.cat(
        [smallest_set(score, choice.p) for score in activations(model, facts, first, last).values()], dim=1
    )
    return grouped(choice.by, facts, sets, choice.clusters)


def _per_fact(
    model: Model,
    facts: Sequence[Fact],
    choice: PerFact,
    warm: WarmStart,
    before: Sequence[str],
    budget: int,
    prepare: Prepare,
) -> Solved:
    embeddings = target_embeddings(model, [fact.target for fact in facts])
    growing = warm.copy()

    def start(members: Tensor, hidden: Tensor, so_far: Deltas) -> Tensor:
        known = growing.copy()
        known.learn(embeddings[so_far[0]], so_far[1])
        return known(embeddings[members].to(hidden.device), hidden)

    def learn(solved: Deltas) -> None:
        growing.learn(embeddings[solved[0]], solved[1])

    begin = start if choice.warm else from_zero
    return _streamed(model, facts, choice.descent, before, budget, prepare, begin, learn, choice.views)


def _two_step(
    model: Model,
    facts: Sequence[Fact],
    choice: TwoStep,
    clusters: Clusters,
    before: Sequence[str],
    budget: int,
    prepare: Prepare,
) -> Solved:
    def from_anchor(members: Tensor, hidden: Tensor, so_far: Deltas) -> Tensor:
        return shared.delta[clusters.of_fact[members]]

    anchors = clusters.anchors.tolist()
    of_anchors = [facts[i] for i in anchors]
    shared = _streamed(model, of_anchors, choice.shared, before, budget, prepare, from_zero)
    start = from_anchor if choice.start == "anchor" else from_zero
    own = _streamed(model, facts, choice.own, before, budget, prepare, start)
    own.evaluations[anchors] += shared.evaluations
    return own


def from_zero(members: Tensor, hidden: Tensor, so_far: Deltas) -> Tensor:
    """A start of no change."""
    return torch.zeros_like(hidden)


def _streamed(
    model: Model,
    facts: Sequence[Fact],
    descent: Descent,
    before: Sequence[str],
    budget: int,
    prepare: Prepare,
    start: Start,
    learn: Callable[[Deltas], None] = lambda solved: None,
    views: int = 1,
) -> Solved:
    """Search for facts in passes of full size, those with short tails first, and give what is found in their order.

    Args:
        model: the model.
        facts: all of them.
        descent: how each is searched for.
        before: contexts: a fact's prompts are one for each, and the essence prompt.
        budget: tokens in one pass, on average at most.
        prepare: computes once what the search needs again and again.
        start: says where.
        learn: told of those that are done.
        views: that its prompts are dealt out among.
    """
    lengths = _lengths(model, facts, before, views)
    order = sorted(range(len(facts)), key=lengths.__getitem__)
    first = [lengths[fact][0] for fact in order]
    budget = min(budget, math.ceil(sum(first) / side_by_side(model)))
    groups = evenly(first, math.ceil(sum(first) / budget))
    with tqdm(total=len(facts), desc="targets", unit="fact", leave=False, disable=None) as bar:

        def done(solved: Deltas) -> None:
            learn(solved)
            bar.update(len(solved[0]))

        def prepared(members: Sequence[int]) -> TargetLoss:
            return prepare([facts[i] for i in members], before)

        stream = Stream(descent, prepared, lengths, budget, start, done)
        return stream.run([order[group.start : group.stop] for group in groups], workers(model))


def _lengths(model: Model, facts: Sequence[Fact], before: Sequence[str], views: int) -> list[list[int]]:
    """By fact and view, what its rows count in a pass: their tails' tokens, and `ROW_TOKENS` for each."""
    texts = [locate(model, fact.prompt, fact.subject, target=fact.target) for fact in facts]
    rows = [len(range(view, len(before) + 1, views)) for view in range(min(views, len(before)))]
    return [[many * (len(text.read) - text.subject_last + ROW_TOKENS) for many in rows] for text in texts]
