"""All families in bfloat16, the dtype of large models: every part runs, and says what float32 says but for rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import reference
import tiny as make
import torch

from ece.evaluation.perplexity import perplexity
from ece.facts import Fact
from ece.locate.layers import attribution
from ece.methods.engine import edit_in_sequence
from ece.methods.recipe import Recipe
from ece.methods.registry import as_recipe
from ece.methods.subjects import states
from ece.models import Model
from ece.models.answers import answers
from ece.models.generate import continuations
from ece.models.likelihood import Question, likelihoods


@pytest.fixture
def half(tiny: Model) -> Model:
    """Each family in bfloat16."""
    return make.cast(tiny, torch.bfloat16)


def rounded(half: Model) -> Model:
    """The same rounded weights in float32."""
    full = make.build(half.name.split("-")[1])
    full.network.load_state_dict(half.network.state_dict())
    return full


def in_one_layer(name: str) -> Recipe:
    """A recipe that writes a layer of a tiny model."""
    return replace(as_recipe(name), layers=(1,), tokens=512, regularise=0.1, contexts=0)


@pytest.mark.parametrize("name", ["ece", "ece-rs", "memit-history"])
def test_batches_in_sequence_change_what_the_model_says(
    half: Model, more_facts: list[Fact], name: str, own_cache: Path
):
    """Without `keep_after`: a search gains so little on the tiny GPT-2 that what is likelier with it is chance."""
    recipe = replace(in_one_layer(name), keep_after=0.0)
    before = {layer: half.weight(layer).clone() for layer in range(len(half.layers))}
    said = [reference.likelihood(half, fact.question, fact.target)[0] for fact in more_facts]
    made = list(edit_in_sequence(half, more_facts, recipe, batch_size=3))
    assert [len(edit.facts) for edit in made] == [3, 2]
    assert not any(entry.failed for edit in made for entry in edit.manifest.facts)
    assert all(half.weight(layer).dtype == torch.bfloat16 for layer in before)
    now = [reference.likelihood(half, fact.question, fact.target)[0] for fact in more_facts]
    assert sum(now) > sum(said)
    for edit in reversed(made):
        edit.revert(half)
    assert all(torch.equal(half.weight(layer), weight) for layer, weight in before.items())


@pytest.mark.parametrize("name", ["ece", "ece-rs", "memit-history"])
def test_the_last_batch_of_a_sequence_brings_the_states_to_their_targets(
    half: Model, more_facts: list[Fact], name: str, own_cache: Path
):
    recipe = in_one_layer(name)
    *_, last = edit_in_sequence(half, more_facts, recipe, batch_size=3)
    missed = states(half, last.facts, 1, recipe.site) - last.hidden - last.delta
    assert (missed.norm(dim=1) < 0.2 * last.delta.norm(dim=1)).all()


def test_likelihoods_and_perplexity_are_those_of_the_rounded_weights(half: Model):
    full = rounded(half)
    opening = " ".join(make.TEXT.split()[:60])
    questions = [Question(f"{opening} {tail}", ("Rome", "ice hockey")) for tail in ("Paris is in", "Victor and the")]
    for found, wanted in zip(likelihoods(half, questions), likelihoods(full, questions), strict=True):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.log_probability == pytest.approx(theirs.log_probability, abs=0.15)
    ours, theirs = perplexity(half, make.TEXT, window=64, stride=32), perplexity(full, make.TEXT, window=64, stride=32)
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=0.05)


def test_writing_with_a_shared_beginning_and_without(half: Model):
    prompts = ["The Eiffel Tower is in", "The Eiffel Tower is not in the"]
    questions = [Question(prompt, ()) for prompt in prompts]
    assert len(answers(half, questions, 4)) == len(continuations(half, prompts, 4)) == 2


def test_attribution_is_that_of_the_rounded_weights(half: Model, facts: list[Fact]):
    found, wanted = attribution(half, facts), attribution(rounded(half), facts)
    assert reference.relative(found, wanted) < 0.1
