"""Taking facts out of a journal, and putting right what came behind them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

from tqdm import tqdm

from ece.edits.edit import Edit
from ece.edits.journal import Held, Journal, Key, key
from ece.errors import UserError
from ece.methods.engine import edit_in_sequence
from ece.methods.history import History
from ece.methods.recall import recalled, recipe_of, with_keys
from ece.methods.searching import searched_on
from ece.methods.subjects import prepared, wanted
from ece.methods.writing import spread, statistics
from ece.models import Model


def undo(
    journal: Journal,
    gone: Collection[Key],
    model: Model,
    *,
    recompute: bool = False,
    superseded: Mapping[Key, str] | None = None,
) -> Journal:
    """Take facts out. Only under the journal's lock.

    Args:
        journal: as it is.
        gone: what the facts are about.
        model: with or without edits; it is left so.
        recompute: search for the later targets again instead of solving with the stored ones.
        superseded: the targets that take the old ones' place.

    Raises:
        UserError: a fact is not in force, or a later edit cannot be solved again.
    """
    keep, others = journal.behind(gone)
    if not others:
        return journal.undo(gone, superseded=superseded)
    make = searched_again if recompute else solved_again
    before = [held.load(model.device) for held in journal.in_force[:keep]]
    for edit in before:
        edit.check(model)
    with model.overlay.rewound(model):
        new = make(model, before, journal.in_force[keep:], gone)
    return journal.undo(gone, new, how="recomputed" if recompute else "replayed", superseded=superseded)


def replayed(model: Model, edits: Sequence[Edit], gone: Collection[Key] = ()) -> list[Edit]:
    """Solve edits again with their stored targets, without some facts.

    Args:
        model: unedited; the new edits are left on it.
        edits: in order, from the first.
        gone: what the facts to leave out are about.
    """
    return _replayed(model, [], edits, gone)


def solved_again(model: Model, before: Sequence[Edit], tail: Sequence[Held], gone: Collection[Key]) -> list[Edit]:
    """The edits behind `before`, with the targets that are stored: z = h + delta.

    Args:
        model: unedited; all edits are left on it.
        before: edits that stay.
        tail: what came behind them.
        gone: what the facts to leave out are about.
    """
    return _replayed(model, before, [held.load(model.device) for held in tail], gone)


def _replayed(model: Model, before: Sequence[Edit], tail: Sequence[Edit], gone: Collection[Key]) -> list[Edit]:
    history = History()
    for edit in before:
        history.add(model, with_keys(model, edit))
        edit.apply(model)
    found = []
    for edit in tqdm(tail, desc="solving again", unit="batch", leave=False, disable=None):
        edit.check(model)
        if any(key(fact) not in gone for fact in edit.facts):
            found.append(_solved(model, edit, gone, history))
            found[-1].apply(model)
            history.add(model, found[-1])
    return found


def _solved(model: Model, edit: Edit, gone: Collection[Key], history: History) -> Edit:
    manifest = edit.manifest
    recipe = recipe_of(manifest)
    stays = [i for i, fact in enumerate(edit.facts) if key(fact) not in gone]
    if len(edit.hidden) != len(edit.facts):
        raise UserError(f"{manifest.method} keeps no targets to solve with again; use --recompute")
    facts, hidden, delta = [edit.facts[i] for i in stays], edit.hidden[stays], edit.delta[stays]
    with searched_on(model, recipe):
        targets = wanted(model, facts, recipe, manifest.contexts, hidden.to(model.device), delta)
    subjects = prepared(model, facts, recipe, manifest.contexts)
    deltas, keys, around = spread(model, recipe, subjects, targets, statistics(model, recipe), history)
    rows = [i for i, entry in enumerate(manifest.facts) if key(entry.fact) not in gone]
    about = {
        "facts": [manifest.facts[i] for i in rows],
        "anchors": [rows.index(i) if i in rows else -1 for i in manifest.anchors],
        "neurons": {layer: len(change.neurons) for layer, change in deltas.items()},
        "derived_keys": True,
    }
    return Edit(deltas, keys, around, hidden, delta, manifest.model_copy(update=about))


def searched_again(model: Model, before: Sequence[Edit], tail: Sequence[Held], gone: Collection[Key]) -> list[Edit]:
    """The edits behind `before` as the same commands make them without some facts, in batches of the same size.

    Args:
        model: unedited; all edits are left on it.
        before: edits that stay.
        tail: what came behind them.
        gone: what the facts to leave out are about.
    """
    edits = recalled(model, before)
    for edit in edits:
        edit.apply(model)
    found: list[Edit] = []
    for _, group in groupby(tail, key=lambda held: held.manifest.run.id if held.manifest.run else held.seal):
        part = list(group)
        first = part[0].manifest
        recipe = recipe_of(first, first.run.options if first.run else None)
        facts = [fact for held in part for fact in held.facts if key(fact) not in gone]
        size = first.run.batch_size if first.run else len(first.facts)
        for made in edit_in_sequence(model, facts, recipe, size, [*edits, *found]) if facts else ():
            manifest = made.manifest.model_copy(update={"run": first.run})
            found.append(dataclasses.replace(made, manifest=manifest))
    return found
