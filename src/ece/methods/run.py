"""A run of edits into a journal: it goes on where it stopped, and replaces earlier versions of its facts."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ece.edits.edit import Edit, Manifest, Run
from ece.edits.folder import Applied
from ece.edits.journal import Journal, key
from ece.facts import Fact, check_consistent
from ece.methods.engine import edit_in_sequence, with_layers
from ece.methods.memory import check as check_memory
from ece.methods.method import Method
from ece.methods.recall import plain
from ece.methods.recipe import Recipe
from ece.methods.searching import pass_tokens
from ece.methods.undo import undo
from ece.models import Model

log = logging.getLogger(__name__)


class Guard(Protocol):
    """What must not change."""

    @property
    def identity(self) -> str:
        """The same for the same guard and bounds."""
        ...

    @property
    def stop(self) -> bool:
        """Whether a batch that breaks a bound ends the run; else it is left out."""
        ...

    def measure(self, model: Model) -> dict[str, float]:
        """What is kept on the model as it is now."""
        ...

    def broken(self, metrics: dict[str, float]) -> str:
        """Which bound is broken, and by how much; empty where none is."""
        ...


class Stopped(Exception):
    """The guard ended the run. What was finished is in the journal."""


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    new: list[Fact]
    """Facts that are to be edited, in order."""

    there: list[Fact]
    """Facts that are in force already, or that the guard left out of this very run."""

    replaced: list[tuple[Fact, Fact]]
    """Earlier versions in force, and what takes their place."""


def run_of(facts: Sequence[Fact], recipe: Method, batch_size: int, guard: Guard | None = None) -> Run:
    """What tells a run from another: its facts, method, options, batch size and guard."""
    options = plain(recipe.options())
    parts = [[[f.prompt, f.subject, f.target] for f in facts], recipe.name, options, batch_size]
    text = json.dumps([*parts, guard.identity if guard else ""])
    return Run(id=hashlib.sha256(text.encode()).hexdigest()[:16], options=options, batch_size=batch_size)


def plan(journal: Journal, facts: Sequence[Fact], run: Run) -> Plan:
    """Sort the facts into new ones, those that are there, and new versions.

    Raises:
        UserError: two of the facts contradict each other.
    """
    check_consistent(facts)
    facts = list(dict.fromkeys(facts))
    active = {about: fact for about, (fact, _) in journal.active.items()}
    left_out = set(journal.left_out(run.id))
    there = {fact for fact in facts if active.get(key(fact)) == fact or fact in left_out}
    new = [fact for fact in facts if fact not in there]
    replaced = [(active[key(fact)], fact) for fact in new if key(fact) in active]
    return Plan(new, [fact for fact in facts if fact in there], replaced)


def edit_journal(
    applied: Applied,
    journal: Journal,
    facts: Sequence[Fact],
    recipe: Method,
    batch_size: int = 100,
    guard: Guard | None = None,
) -> Iterator[tuple[Journal, Edit]]:
    """Edit what is new, batch after batch, each saved before it is yielded. Only under the journal's lock.

    Earlier versions of the facts are taken out first, and what came behind them is solved again.

    Args:
        applied: the journal's edits on the model.
        journal: as it is.
        facts: all of the run's.
        recipe: or another method; its layers may be `auto`.
        batch_size: facts in a batch.
        guard: asked after each batch.

    Raises:
        UserError: the facts contradict each other, or the model cannot be edited.
        Stopped: the guard ended the run; the batch that broke its bounds is not in the journal.
    """
    model = applied.model
    run = run_of(facts, recipe, batch_size, guard)
    todo = plan(journal, facts, run)
    if not todo.new:
        return
    recipe = _with_layers_of(run, journal, recipe)
    if isinstance(recipe, Recipe) and not isinstance(recipe.layers, str):
        check_memory(model, with_layers(model, todo.new[:1], recipe), pass_tokens(model, recipe))
    if todo.replaced:
        for old, new in todo.replaced:
            log.warning("%s: superseded by %s", old, new.target)
        journal = undo(journal, {key(old) for old, _ in todo.replaced}, model,
                       superseded={key(old): new.target for old, new in todo.replaced})  # fmt: skip
    applied.follow(journal)
    now = journal

    def accept(made: Edit) -> bool:
        """Save the batch, or refuse it; what is not in the journal then is taken off the model."""
        nonlocal now
        metrics = guard.measure(model) if guard else {}
        broken = guard.broken(metrics) if guard else ""
        if broken and guard and guard.stop:
            raise Stopped(f"{broken}; the batch that did it is not saved: {made.facts[0]} ({len(made.facts)} facts)")
        if broken:
            log.warning("a batch is left out: %s", broken)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        now = now.batch(made, run=run, metrics=finite, left_out=broken)
        if not broken:
            applied.made(made.without_keys(), now)
        return not broken

    for made in edit_in_sequence(model, todo.new, recipe, batch_size, list(applied.edits), accept):
        yield now, made


def _with_layers_of(run: Run, journal: Journal, recipe: Method) -> Method:
    """The recipe with the layers that the run chose when it began, if it has begun."""
    if not isinstance(recipe, Recipe) or not isinstance(recipe.layers, str):
        return recipe
    begun = [e.manifest for e in journal.entries if isinstance(e.manifest, Manifest) and e.manifest.run == run]
    return replace(recipe, layers=tuple(begun[0].layers)) if begun else recipe
