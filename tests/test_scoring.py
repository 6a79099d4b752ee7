"""Likelihoods of continuations, and the metrics of CounterFact (Eq. 23-25)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import reference
import tiny as make
import torch
from torch import Tensor, nn

from ece.errors import UserError
from ece.evaluation import counterfact
from ece.evaluation.counterfact import RecordScore, evaluate, summary
from ece.facts import CounterFactRecord
from ece.models import Model, likelihood
from ece.models.likelihood import Likelihood, Question, likelihoods

QUESTIONS = [
    Question("The Eiffel Tower is located in the city of", ("Rome", "Paris", "ice hockey")),
    Question("Victor Hugo", ("grew up speaking French", "grew up speaking Russian", "grew")),  # long common beginnings
    Question("Zoë", ("São Paulo", "São", "東京")),
    Question("The sport of Michael Jordan is", ("basketball",)),
    Question("In the end, the weather is fine. Because of that, the river runs", ("slowly", "through the valley")),
    Question("You", ("and I", "and I")),
]


def assert_naive(model: Model) -> None:
    found = likelihoods(model, QUESTIONS)
    assert [len(answers) for answers in found] == [len(question.candidates) for question in QUESTIONS]
    for question, answers in zip(QUESTIONS, found, strict=True):
        for candidate, answer in zip(question.candidates, answers, strict=True):
            mean, exact = reference.likelihood(model, question.prompt, candidate)
            assert answer.log_probability == pytest.approx(mean, rel=1e-4, abs=1e-5)
            assert answer.exact == exact


def test_likelihoods_equal_the_naive_ones(tiny: Model):
    assert_naive(tiny)


@pytest.mark.parametrize("kind", make.OTHERS)
def test_likelihoods_for_the_other_types(kind: str):
    assert_naive(make.build(kind))


def test_small_passes_give_the_same(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(likelihood, "PASS_TOKENS", 1)
    assert_naive(tiny_llama)


@pytest.mark.parametrize("kind", ["gptj", "llama"])
def test_exact_answers_are_recognised(kind: str):
    """The model is made to write two tokens; another beginning, or a longer text, is not what it writes."""
    model = make.build(kind)
    prompt = "The Eiffel Tower is located in"
    start = reference.token_ids(model, prompt)
    wanted = reference.token_ids(model, f"{prompt} the city")[len(start) :]
    unembedding = cast(Tensor, cast(nn.Module, model.network.get_output_embeddings()).weight)
    with torch.no_grad():
        for i, token in enumerate(wanted):
            state = model.network.base_model(torch.tensor([start + wanted[:i]])).last_hidden_state[0, -1]
            unembedding[token] = 50 * state / state.norm()
    ((right, wrong, longer),) = likelihoods(model, [Question(prompt, ("the city", "a city", "the city of Rome"))])
    assert right.exact
    assert right.log_probability > -1
    assert not wrong.exact
    assert not longer.exact


# --- metrics


def record(paraphrases: int, neighbours: int) -> CounterFactRecord:
    return CounterFactRecord.model_validate(
        {
            "requested_rewrite": {
                "prompt": "{} is in",
                "subject": "The Louvre",
                "target_new": {"str": "Rome"},
                "target_true": {"str": "Paris"},
            },
            "paraphrase_prompts": [f"Paraphrase {i}" for i in range(paraphrases)],
            "neighborhood_prompts": [f"Neighbour {i}" for i in range(neighbours)],
        }
    )


def answer(new: float, true: float, new_exact: bool = False, true_exact: bool = False) -> list[Likelihood]:
    return [Likelihood(new, (new_exact,), (0,)), Likelihood(true, (true_exact,), (0,))]


def part(difference: float) -> float:
    """Of two probabilities' sum, that of the one whose logarithm is so much larger."""
    return 1 / (1 + math.exp(-difference))


def test_metrics_by_hand(monkeypatch: pytest.MonkeyPatch, tiny_llama: Model):
    asked: list[Question] = []
    answers = [
        answer(-1, -2, True),  # record 0: edited; then paraphrases; then neighbours
        answer(-1, -3, True),
        answer(-3, -1),
        answer(-5, -1, True, True),
        answer(-1, -5),
        answer(-2, -1),
        answer(-2, -2),
        answer(-3, -2),  # record 1
        answer(-1, -2),
    ]

    def answered(_: Model, questions: list[Question]) -> list[list[Likelihood]]:
        asked.extend(questions)
        return answers

    monkeypatch.setattr(counterfact, "likelihoods", answered)
    first, second = evaluate(tiny_llama, [record(2, 4), record(1, 0)])
    assert [question.prompt for question in asked[:4]] == [
        "The Louvre is in",
        "Paraphrase 0",
        "Paraphrase 1",
        "Neighbour 0",
    ]
    assert all(question.candidates == ("Rome", "Paris") for question in asked)
    right = (True, False, True, False)
    soft = {"efficacy_soft": part(1), "generalization_soft": (part(2) + part(-2)) / 2}
    soft["specificity_soft"] = (part(4) + part(-4) + part(1) + part(0)) / 4
    assert {name: getattr(first, name) for name in soft} == pytest.approx(soft)
    assert replace(first, **dict.fromkeys(soft, 0.0)) == RecordScore(1, 0.5, 0.5, 1, 0.5, 0.25, right, 0, 0, 0)
    assert (second.efficacy, second.generalization, second.efficacy_exact) == (0, 1, 0)
    assert math.isnan(second.specificity)
    assert second.neighbours == ()


def test_evaluate_with_a_model(tiny_llama: Model):
    item = record(1, 1)
    (score,) = evaluate(tiny_llama, [item])

    def likelier(prompt: str) -> bool:
        new, true = (reference.likelihood(tiny_llama, prompt, candidate)[0] for candidate in ("Rome", "Paris"))
        return new > true

    assert score.efficacy == likelier("The Louvre is in")
    assert score.generalization == likelier("Paraphrase 0")
    assert score.specificity == (not likelier("Neighbour 0"))


def test_a_record_without_the_true_object_is_refused(tiny_llama: Model):
    item = record(1, 1)
    item.requested_rewrite.target_true = None
    with pytest.raises(UserError, match="target_true"):
        evaluate(tiny_llama, [item])


def score(e: float, g: float, s: float, neighbours: tuple[bool, ...] = ()) -> RecordScore:
    return RecordScore(e, g, s, e / 2, g / 2, s / 2, neighbours)


def test_summary_by_hand():
    found = summary([score(1, 0.5, 0.25), score(1, 1, 0.75), score(0, 0, 0.5), score(1, 0.5, 0.5)])
    assert found["efficacy"].mean == 75
    assert found["efficacy"].se == pytest.approx(25)  # sd 50 over sqrt(4)
    assert found["generalization"].mean == 50
    assert found["specificity"].mean == 50
    assert found["score"].mean == pytest.approx(3 / (1 / 75 + 1 / 50 + 1 / 50))
    assert found["score_exact"].mean == pytest.approx(found["score"].mean / 2)
    assert found["specificity_exact"].mean == 25
    assert "specificity_kept" not in found
    assert str(found["efficacy"]) == "75.0 ± 25.0"


def test_soft_metrics_are_left_out_where_a_file_is_older_than_they_are():
    soft = {f"{metric}_soft": 0.25 for metric in ("efficacy", "generalization", "specificity")}
    found = summary([score(1, 1, 1), replace(score(1, 1, 1), **soft)])
    assert found["score_soft"].mean == pytest.approx(25)
    assert not any("_soft" in name for name in summary([score(1, 1, 1)]))


def test_score_is_zero_where_a_metric_is():
    assert summary([score(1, 0, 1), score(1, 0, 0.5)])["score"].mean == 0


def test_records_without_prompts_of_a_kind_do_not_count_for_it():
    nan = float("nan")
    found = summary([score(1, nan, 0.5), score(0, 0.5, nan), score(1, 1, 1)])
    assert found["efficacy"].mean == pytest.approx(200 / 3)
    assert found["generalization"].mean == 75
    assert found["specificity"].mean == 75
    assert found["score"].mean == pytest.approx(3 / (3 / 200 + 1 / 75 + 1 / 75))
    assert math.isnan(summary([score(1, nan, 1)])["generalization"].mean)


def test_one_record_has_no_error():
    found = summary([score(1, 0.5, 0.5)])
    assert found["score"].mean == pytest.approx(60)
    assert math.isnan(found["score"].se)
    assert math.isnan(found["efficacy"].se)


def test_specificity_kept():
    before = [score(0, 0, 0, (True, True, False)), score(0, 0, 0, (False, False)), score(0, 0, 0, (True,))]
    after = [score(0, 0, 0, (True, False, True)), score(0, 0, 0, (True, True)), score(0, 0, 0, (True,))]
    assert summary(after, before)["specificity_kept"].mean == pytest.approx(75)  # of 1/2 and 1/1


def test_standard_errors_against_a_bootstrap():
    generator = np.random.default_rng(1)
    rows = np.stack(
        [generator.random(300) < 0.9, generator.integers(0, 3, 300) / 2, generator.integers(0, 11, 300) / 10], axis=1
    ).astype(float)
    rows[:, 1] = (rows[:, 1] + rows[:, 0]) / 2  # metrics of a record go together
    found = summary([score(e, g, s) for e, g, s in rows.tolist()])

    def harmonic(some: np.ndarray) -> float:
        return float(3 / (1 / (100 * some.mean(0))).sum())

    assert found["score"].mean == pytest.approx(harmonic(rows))
    assert found["score"].se == pytest.approx(reference.bootstrap(harmonic, rows), rel=0.08)
    wanted = reference.bootstrap(lambda some: 100 * float(some[:, 2].mean()), rows)
    assert found["specificity"].se == pytest.approx(wanted, rel=0.08)
