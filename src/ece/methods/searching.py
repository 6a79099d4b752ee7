"""Finding the target states: who is searched for together, on which model, from which start (Eq. 9-13)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from tqdm import tqdm

from ece.facts import Fact
from ece.heap import memory_returned
from ece.locate.scores import smallest_set
from ece.methods.recipe import PerFact, Recipe, TwoStep
from ece.methods.subjects import activations
from ece.models import Model
from ece.models.abreast import abreast, side_by_side, workers
from ece.models.replay import evenly, of_device
from ece.models.tails import SharedPrefixes
from ece.models.tokens import locate
from ece.targets.clusters import Clusters, grouped
from ece.targets.descent import Solved
from ece.targets.loss import TargetLoss
from ece.targets.views import Views
from ece.targets.warm import WarmStart, target_embeddings

PASS_TOKENS = {"cpu": 200, "other": 8192}
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

    def task(members: list[int]) -> Callable[[], Solved]:
        learned = growing.copy()

        def run() -> Solved:
            loss = Views(prepare([facts[i] for i in members], before).views(choice.views))
            if not choice.warm:
                return choice.descent(loss, torch.zeros_like(loss.hidden))
            return choice.descent(loss, learned(embeddings[members].to(loss.hidden.device), loss.hidden))

        return run

    def learn(members: list[int], solved: Solved) -> None:
        growing.learn(embeddings[members], solved.delta)

    return _in_passes(model, facts, task, before, budget, choice.views, learn)


def _two_step(
    model: Model,
    facts: Sequence[Fact],
    choice: TwoStep,
    clusters: Clusters,
    before: Sequence[str],
    budget: int,
    prepare: Prepare,
) -> Solved:
    anchors = clusters.anchors.tolist()

    def from_zero(members: list[int]) -> Solved:
        loss = prepare([facts[anchors[i]] for i in members], before)
        return choice.shared(loss, torch.zeros_like(loss.hidden))

    shared = _in_passes(model, [facts[i] for i in anchors], lambda some: partial(from_zero, some), before, budget)
    start = shared.delta if choice.start == "anchor" else torch.zeros_like(shared.delta)

    def from_anchor(members: list[int]) -> Solved:
        return choice.own(prepare([facts[i] for i in members], before), start[clusters.of_fact[members]])

    own = _in_passes(model, facts, lambda some: partial(from_anchor, some), before, budget)
    own.evaluations[anchors] += shared.evaluations
    return own


def _in_passes(
    model: Model,
    facts: Sequence[Fact],
    task: Callable[[list[int]], Callable[[], Solved]],
    before: Sequence[str],
    budget: int,
    views: int = 1,
    learn: Callable[[list[int], Solved], None] = lambda members, solved: None,
) -> Solved:
    """Search in groups of facts with tails of like length, and put the results in the facts' order.

    Args:
        model: the model.
        facts: all of them.
        task: given the numbers of some facts, what searches for them.
        before: contexts: a fact's prompts are one for each, and the essence prompt.
        budget: tokens in one pass, on average at most.
        views: that its prompts are dealt out among.
        learn: told what a group came to, in the groups' order.
    """
    texts = [locate(model, fact.prompt, fact.subject, target=fact.target) for fact in facts]
    rows = math.ceil((len(before) + 1) / views)
    lengths = [rows * (len(text.read) - text.subject_last + ROW_TOKENS) for text in texts]
    groups = _groups(model, lengths, budget)
    found: list[Solved] = []
    with tqdm(total=len(facts), desc="targets", unit="fact", leave=False, disable=None) as bar:
        for group, solved in zip(groups, abreast(map(task, groups), workers(model)), strict=True):
            found.append(solved)
            learn(group, solved)
            bar.update(len(group))
    back = torch.tensor([i for group in groups for i in group]).argsort()
    return Solved.joined(found, back)


def _groups(model: Model, lengths: Sequence[int], budget: int) -> list[list[int]]:
    """The numbers of the facts in even groups of like length, shortest first: no core is idle at the end."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    at_a_time = side_by_side(model)
    rounds = math.ceil(sum(lengths) / (budget * at_a_time))
    return [[order[place] for place in run] for run in evenly([lengths[i] for i in order], rounds * at_a_time)]
