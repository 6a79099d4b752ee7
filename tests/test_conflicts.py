"""Facts that get into each other's way are found before they are edited."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ece.facts import Fact
from ece.methods.conflicts import clashes, whitened, words_in_common
from ece.methods.finetune import FT_L
from ece.methods.registry import as_recipe
from ece.methods.writing import ordinary
from ece.models import Model
from ece.models.replay import keys_captured

OLD = Fact("{} is located in", "The Eiffel Tower", "Rome")


def kinds(model: Model, new: list[Fact], others: list[Fact]) -> list[str]:
    return [clash.kind for clash in clashes(model, new, others, FT_L)]


@pytest.mark.parametrize(
    ("new", "kind"),
    [
        (Fact("{} is located in the", "the eiffel tower", "rome"), "near-duplicate"),
        (Fact("{} is located in the", "The Eiffel Tower", "Oslo"), "conflict"),
        (Fact("Everybody speaks of {} and", "The Eiffel Tower", "Oslo"), None),
        (Fact("{} is located in", "The Colosseum", "Oslo"), None),
    ],
)
def test_one_subject_asked_about_twice(tiny_llama: Model, new: Fact, kind: str | None):
    assert kinds(tiny_llama, [new], [OLD]) == ([kind] if kind else [])


def test_new_facts_are_compared_with_each_other_too(tiny_llama: Model):
    other = replace(OLD, prompt="{} is located in the", target="Oslo")
    assert kinds(tiny_llama, [OLD, other], []) == ["conflict"]
    assert kinds(tiny_llama, [OLD], [OLD]) == []  # the same fact again is no clash


def test_words_in_common_forgive_endings():
    assert words_in_common("{} is located in", "the location of {} in") == pytest.approx(2 / 5)
    assert words_in_common("{} plays", "the capital of {} is") == 0


def test_whitened_keys_are_similar_where_the_update_mixes_them(tiny_llama: Model, more_facts: list[Fact]):
    """The cosine is k1 C^-1 k2, over the roots of the same of each with itself; written out here."""
    model, recipe = tiny_llama, replace(as_recipe("ece"), layers=(1, 2), tokens=512)
    moment = ordinary(model, recipe)[2].double()
    moment += 1e-3 * moment.diagonal().mean() * torch.eye(len(moment))
    keys = []
    for fact in more_facts:
        with torch.no_grad(), keys_captured(model, [2]) as captured:
            encoded = model.tokenizer(fact.question, return_offsets_mapping=True, return_tensors="pt")
            model.network(encoded["input_ids"])
        end = fact.prompt.index("{}") + len(fact.subject)
        last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"][0].tolist()) if a < end and b > a)
        keys.append(captured[2][0, last].double())
    inner = torch.stack(keys) @ torch.linalg.solve(moment, torch.stack(keys).T)
    wanted = inner / inner.diagonal().sqrt() / inner.diagonal().sqrt()[:, None]
    white = whitened(model, more_facts, recipe)
    torch.testing.assert_close((white @ white.T).double(), wanted, rtol=1e-3, atol=1e-3)


def test_similar_keys_are_reported(tiny_llama: Model):
    recipe = replace(as_recipe("ece"), layers=(1, 2), tokens=512)
    same = Fact("{} is praised by", "The Eiffel Tower", "Oslo")  # nothing in common after the subject: the same key
    (clash,) = clashes(tiny_llama, [same], [OLD], recipe)
    assert clash.kind == "similar keys"
    assert clash.cosine == pytest.approx(1, abs=1e-4)
    assert "similar keys: The Eiffel Tower is praised by -> Oslo" in str(clash)
