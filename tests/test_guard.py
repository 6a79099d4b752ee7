"""The guard on facts: what it reads, what it counts as lost, and which bounds are broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny as make
import torch

from ece.errors import UserError
from ece.evaluation.guard import Guard
from ece.facts import Fact
from ece.methods.engine import edit
from ece.methods.grace import GRACE
from ece.models import Model
from ece.models.likelihood import Question, likelihoods

PROMPTS = ["Paris is a", "The Colosseum is in", "You and I live there", "Rome is", "Because of that, the river"]


def saying(model: Model, answer: str) -> list[Question]:
    """Makes the model say `answer` after every prompt, and asks for it."""
    asked = [Question(prompt, (answer,)) for prompt in PROMPTS]
    (token,) = model.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        read = [model.tokenizer(prompt, return_tensors="pt") for prompt in PROMPTS]
        states = [model.network.base_model(**ids).last_hidden_state[0, -1] for ids in read]
        model.network.get_parameter("lm_head.weight")[token] = 5 * torch.stack(states).mean(0)
    return asked


def test_specificity_counts_what_was_right_and_is_no_more(tiny_llama: Model) -> None:
    model, asked = tiny_llama, saying(tiny_llama, "Paris")
    assert all(found[0].exact for found in likelihoods(model, asked))
    wrong = Question("Paris is a", ("Oslo",))
    watching = Guard((*asked, wrong), (), specificity=10.0)
    assert watching.measure(model) == {"specificity": 100.0}
    assert watching.broken(watching.measure(model)) == ""
    model.weight(2).add_(torch.randn_like(model.weight(2)))
    still = sum(found[0].exact for found in likelihoods(model, asked))
    found = watching.measure(model)
    assert found["specificity"] == pytest.approx(100 * still / len(asked))
    assert still < len(asked)
    lost = 100 * (1 - still / len(asked))
    assert watching.broken(found) == f"guard: {lost:.1f} points of specificity are lost, and 10 may be"


@pytest.mark.parametrize(("lost", "broken"), [(0.0, False), (5.0, False), (5.1, True)])
def test_a_bound_is_the_most_that_may_be_lost(lost: float, broken: bool) -> None:
    watching = Guard((Question("a", ("b",)),), (), specificity=5.0)
    assert bool(watching.broken({"specificity": 100 - lost})) == broken


def test_what_nothing_can_be_lost_of_is_refused(tiny_llama: Model) -> None:
    watching = Guard((Question("Paris is a", ("Oslo river that",)),), (), specificity=5.0)
    with pytest.raises(UserError, match="gets none of these facts right"):
        watching.measure(tiny_llama)


def test_records_of_three_kinds(tmp_path: Path) -> None:
    file = tmp_path / "guard.json"
    neighbours = ["The Louvre is in", "The Seine runs through"]
    rewrite = {
        "prompt": "{} is in",
        "subject": "Eiffel Tower",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    }
    record = {"requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": neighbours}
    file.write_text(
        json.dumps([record, {"prompt": "{} is a", "subject": "Paris", "target": "city"}, {"text": make.TEXT}])
    )
    watching = Guard.read(file, specificity=1, perplexity=2)
    assert watching.questions == (*(Question(p, ("Paris",)) for p in neighbours), Question("Paris is a", ("city",)))
    assert watching.texts == (make.TEXT,)
    assert watching.identity != Guard.read(file, specificity=1).identity


@pytest.mark.parametrize(
    ("records", "bounds", "message"),
    [
        ([{"text": "A river."}], {"specificity": 1.0}, "no facts in it"),
        ([{"prompt": "{} is a", "subject": "Paris", "target": "city"}], {"perplexity": 1.0}, "no texts in it"),
        ([{"text": "A river."}], {}, "give a bound"),
        ([{"text": " "}], {"perplexity": 1.0}, "must not be empty"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, records: list[object], bounds: dict[str, float], message: str):
    file = tmp_path / "guard.json"
    file.write_text(json.dumps(records))
    with pytest.raises(UserError, match=message):
        Guard.read(file, bounds.get("specificity"), bounds.get("perplexity"))


def test_the_unedited_model_has_no_memories(tiny_llama: Model, tmp_path: Path) -> None:
    asked = saying(tiny_llama, "Paris")
    watching = Guard(tuple(asked), (), specificity=0.0)
    fact = Fact("{} is a", "Paris", "Oslo")
    made = edit(tiny_llama, [fact], GRACE.with_options({"descent.steps": 15, "descent.rate": 2.0}))
    made.apply(tiny_llama)
    assert not likelihoods(tiny_llama, asked[:1])[0][0].exact
    assert watching.measure(tiny_llama)["specificity"] == pytest.approx(100 * (len(asked) - 1) / len(asked))
    assert len(tiny_llama.memories) == 1
