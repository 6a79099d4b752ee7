"""Writing the target states into the edited layers (Eq. 14, 19)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ece.edits.packing import rounded
from ece.facts import Fact
from ece.locate.scores import select
from ece.methods.history import History
from ece.methods.recipe import Recipe
from ece.methods.subjects import Subjects, prepared
from ece.models import Delta, LowRank, Model
from ece.update.after import combined
from ece.update.solve import reduced, shrunk
from ece.update.solvers import Writing
from ece.update.spread import Rounds, in_common
from ece.update.statistics import key_statistics, name_statistics


def ordinary(model: Model, recipe: Recipe) -> dict[int, Tensor]:
    """E[kk^T] over ordinary text by layer `[d_ff, d_ff]`, of the unedited model."""
    with model.overlay.suspended(model):
        return key_statistics(model, recipe.edited, recipe.corpus, tokens=recipe.tokens)


def statistics(model: Model, recipe: Recipe) -> dict[int, Tensor]:
    """What is kept besides earlier edits, for each token of ordinary text, by layer `[d_ff, d_ff]`, float32.

    E[kk^T] of the unedited model, shrunk as far as the recipe says, and what its names count beside it.
    """
    moments = ordinary(model, recipe)
    if recipe.shrink:
        moments = {layer: shrunk(moment, recipe.shrink).float() for layer, moment in moments.items()}
    if recipe.keep_names:
        with model.overlay.suspended(model):
            of_names = name_statistics(model, recipe.edited)
        moments = {layer: moment + recipe.keep_names * of_names[layer] for layer, moment in moments.items()}
    return moments


def swept(
    model: Model,
    recipe: Recipe,
    facts: Sequence[Fact],
    before: Sequence[str],
    wanted: Tensor,
    moments: dict[int, Tensor],
    history: History,
) -> tuple[Delta, dict[int, Tensor], dict[int, Tensor]]:
    """Write the targets in one sweep over the layers, or in several for those that are not reached (NSE).

    Args and returned values as of `spread`, after several sweeps with the keys of the model as it then is.
    """
    subjects = prepared(model, facts, recipe, before)
    if recipe.rounds == Rounds():
        return spread(model, recipe, subjects, wanted, moments, history)
    first, last = recipe.edited[0], recipe.edited[-1]
    changes: list[Delta] = []
    with model.overlay.undone(model):
        for _ in range(recipe.rounds.at_most):
            now = subjects.read(subjects.entering, first, last, recipe.site, "prompt").now
            left = recipe.rounds.open(wanted.to(now) - now).tolist()
            if not left:
                break
            some = subjects if len(left) == len(facts) else prepared(model, [facts[i] for i in left], recipe, before)
            changes.append(spread(model, recipe, some, wanted[left], moments, history)[0])
            model.overlay.push(model, changes[-1])
        read = dict(subjects.along(recipe.edited))
    nothing = {layer: LowRank.nothing(model.weight(layer)) for layer in recipe.edited}
    deltas = {layer: combined([change[layer] for change in [nothing, *changes]]) for layer in recipe.edited}
    around = {layer: of.others for layer, of in read.items()} if recipe.keeps_more else {}
    return deltas, {layer: of.key for layer, of in read.items()}, around


@torch.no_grad()
def spread(
    model: Model, recipe: Recipe, subjects: Subjects, wanted: Tensor, moments: dict[int, Tensor], history: History
) -> tuple[Delta, dict[int, Tensor], dict[int, Tensor]]:
    """Write the targets into the edited layers in turn, as MEMIT does: each takes its share of what is left.

    Args:
        model: as it is now; it is left so.
        recipe: with its layers chosen.
        subjects: the facts' prompts, run up to the first edited layer.
        wanted: z `[facts + facts x contexts, d_model]`; see `ece.methods.subjects.wanted`.
        moments: by layer, what is kept for each token of ordinary text; see `statistics`.
        history: of earlier batches.

    Returns:
        By layer: the change, the keys `[facts, d_ff]`, and the other keys that were kept `[positions, d_ff]`.
    """
    layers = recipe.edited
    deltas: dict[int, LowRank] = {}
    keys: dict[int, Tensor] = {}
    around: dict[int, Tensor] = {}
    with model.overlay.trial(model) as lay:
        for place, (layer, read) in enumerate(subjects.along(layers, layers[-1], recipe.site, recipe.residual)):
            key = keys[layer] = read.key
            residual = wanted.to(read.now) - read.now
            residual -= recipe.leave_common * in_common(residual, len(key))
            residual /= recipe.spread.divisor(len(layers) - place)
            residual *= subjects.roots.to(residual)
            choice = recipe.neurons
            neurons = select(choice.score, choice.p, key, model.weight(layer), choice.share)
            kept = recipe.regularise * moments[layer].double()
            if recipe.history and layer in history.moments:
                kept += history.moments[layer].whole()
            if recipe.keeps_more:
                around[layer] = read.others
                kept += read.around.double().T @ read.around.double()
            written, bare = torch.cat([key, read.beside]), torch.cat([read.bare, read.beside])
            change = recipe.solve(Writing(written, bare, residual.to(key.device), neurons, kept, moments[layer]))
            change = reduced(change, written, len(key))
            deltas[layer] = rounded(change) if recipe.recallable else change
            lay({layer: deltas[layer]})
    return deltas, keys, around
