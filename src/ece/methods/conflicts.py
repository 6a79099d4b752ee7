"""Facts that may get into each other's way: found before they are edited."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ece.facts import Fact, batches
from ece.methods.engine import with_layers
from ece.methods.method import Method
from ece.methods.recipe import Recipe
from ece.methods.subjects import keys
from ece.methods.writing import ordinary
from ece.models import Model

SAME_RELATION = 0.5
"""Jaccard overlap of two prompts' words from which they are taken to ask the same."""

SIMILAR_KEYS = 0.7
"""Cosine of whitened keys from which the edit of one fact moves another subject's (docs/journal.md: how often)."""

SIMILAR_KEYS_OF_ONE_SUBJECT = 0.5
"""The same for two facts about one subject, where it finds most paraphrases."""

FACTS_AT_ONCE = 100

Kind = Literal["near-duplicate", "conflict", "similar keys"]


@dataclass(frozen=True)
class Clash:
    """Two facts, and how they clash."""

    kind: Kind
    """`near-duplicate`: one subject, prompts that ask the same, one target; `conflict`: the same with two targets;
    `similar keys`: the model reads both subjects alike, so that editing one moves the other. Paraphrases of one prompt
    are found as one or the other."""

    new: Fact
    other: Fact
    overlap: float
    """Jaccard overlap of the prompts' words."""

    cosine: float
    """Of the whitened keys; 0 for a method that has none."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.new} | {self.other} (words {self.overlap:.2f}, keys {self.cosine:.2f})"


def clashes(model: Model, new: Sequence[Fact], others: Sequence[Fact], method: Method) -> list[Clash]:
    """Every new fact against the others and against the new ones before it.

    Args:
        model: as it is now.
        new: facts to be edited.
        others: facts in force.
        method: a recipe's keys in its last layer are compared too, whitened by its statistics.
    """
    every = [*others, *new]
    if isinstance(method, Recipe):
        white = whitened(model, every, with_layers(model, new[:FACTS_AT_ONCE], method))
    else:
        white = torch.zeros(len(every), 1)
    names = [_name(fact.subject) for fact in every]
    found = [
        _clash(fact, every[j], names[j] == names[i], cosine)
        for i, fact in enumerate(new, len(others))
        for j, cosine in enumerate((white[:i] @ white[i]).tolist())
    ]
    return [clash for clash in found if clash]


def _clash(new: Fact, other: Fact, one_subject: bool, cosine: float) -> Clash | None:
    near = cosine >= (SIMILAR_KEYS_OF_ONE_SUBJECT if one_subject else SIMILAR_KEYS)
    if not (one_subject or near):
        return None
    overlap = words_in_common(new.prompt, other.prompt)
    if one_subject and overlap >= SAME_RELATION:
        kind: Kind = "near-duplicate" if _name(new.target) == _name(other.target) else "conflict"
        return Clash(kind, new, other, overlap, cosine) if new != other else None
    return Clash("similar keys", new, other, overlap, cosine) if near else None


def words_in_common(a: str, b: str) -> float:
    """Jaccard overlap of two prompts' words, the subject left out."""
    x, y = ({_stem(word) for word in re.findall(r"\w+", text.casefold())} for text in (a, b))
    return len(x & y) / len(x | y) if x | y else 1.0


@torch.no_grad()
def whitened(model: Model, facts: Sequence[Fact], recipe: Recipe) -> Tensor:
    """Unit keys `[facts, d_ff]` of the last edited layer, whitened by (E[kk^T] + a little)^-1/2, from bare prompts.

    The update moves an output by R K1^T C^-1 k: this cosine tells how much of one fact's change the other gets.
    """
    layer = recipe.edited[-1]
    found = torch.cat([keys(model, some, [layer])[layer] for some in batches(facts, FACTS_AT_ONCE)])
    moment = ordinary(model, recipe)[layer].double()
    moment.diagonal().add_(1e-3 * moment.diagonal().mean())
    factor = torch.linalg.cholesky(moment)
    white = torch.linalg.solve_triangular(factor, found.double().T, upper=False).T
    return torch.nn.functional.normalize(white, dim=1).float()


def _name(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _stem(word: str) -> str:
    """Without the commonest endings: `located` and `location`, `speaks` and `speak` share most of their letters."""
    return re.sub(r"(ing|ed|es|s|ion)$", "", word) if len(word) > 4 else word
