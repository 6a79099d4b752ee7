"""What an edit was made with, back from what was kept of it: its recipe, its keys, the history of many."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ece.edits.edit import Edit, Manifest
from ece.errors import UserError
from ece.methods.history import History
from ece.methods.recipe import PerFact, Recipe, restored
from ece.methods.registry import METHODS
from ece.methods.subjects import prepared
from ece.models import Model


def recipe_of(manifest: Manifest, options: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that an edit was made with, its layers chosen.

    Args:
        manifest: of the edit.
        options: others than the manifest's: as they were asked for.

    Raises:
        UserError: the method is not a recipe, or has options that this version does not know.
    """
    bare = Recipe(manifest.method, "", "", PerFact())
    known = METHODS.get(manifest.method, bare)
    options = options or manifest.options | {"layers": manifest.layers}
    if not isinstance(known, Recipe):
        raise UserError(f"{manifest.method}: its edits cannot be solved again; take out the batches that came last")
    try:
        # what is younger than the edit has the value that changes nothing; what is gone may be missing where it had it
        options = bare.options() | {name: value for name, value in options.items() if value or name in bare.options()}
        recipe = restored(known, options)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{manifest.method}: its options cannot be read back by this version of ece ({error}); take this batch out"
            " as a whole (--batch or --last), or use the version that made it"
        ) from error
    if not recipe.recallable or plain(recipe.options()) != plain(options):
        raise UserError(f"{manifest.method}: an edit of this method cannot be solved again from what the journal keeps")
    return recipe


def plain(value: Any) -> Any:
    """The same data as JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


@torch.no_grad()
def with_keys(model: Model, edit: Edit) -> Edit:
    """The edit with the keys it was made with, derived again where they were not kept.

    Args:
        model: as the edit found it.
        edit: as it was loaded.
    """
    if not edit.manifest.derived_keys or edit.keys:
        return edit
    recipe, keys, around = recipe_of(edit.manifest), {}, {}
    subjects = prepared(model, edit.facts, recipe, edit.manifest.contexts)
    with model.overlay.trial(model) as lay:
        for layer, read in subjects.along(edit.manifest.layers):
            keys[layer] = read.key
            if recipe.keeps_more:
                around[layer] = read.others
            lay({layer: edit.deltas[layer]})
    return dataclasses.replace(edit, keys=keys, around=around)


def recalled(model: Model, edits: Sequence[Edit]) -> list[Edit]:
    """The edits with their keys.

    Args:
        model: with or without these edits; it is left so.
        edits: in order, from the first that was ever made to this model.
    """
    if all(edit.keys or not edit.manifest.derived_keys for edit in edits):
        return list(edits)
    found = []
    with model.overlay.rewound(model):
        for edit in tqdm(edits, desc="keys of earlier batches", unit="batch", leave=False, disable=None):
            found.append(with_keys(model, edit))
            edit.apply(model)
    return found


def recalled_history(model: Model, edits: Sequence[Edit]) -> History:
    """What earlier edits leave to later ones."""
    return History.of(model, recalled(model, edits))
