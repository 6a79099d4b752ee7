"""What the model writes by itself: greedy and drawn texts, fluency (Eq. 26), consistency, and named answers."""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Any, cast

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from ece.errors import UserError
from ece.evaluation.answers import LEAST_TOKENS, ROOM, says, written
from ece.evaluation.generation import Consistency, Writing, entropy, fluency, words
from ece.models import Model
from ece.models.generate import Sampling, continuations, texts
from ece.models.likelihood import Question

PROMPTS = ["The Eiffel Tower is", "You", "In the end, the weather is fine. Because of that, the river runs", "Zoë"]


def test_greedy_texts_equal_the_naive_ones(tiny: Model):
    assert continuations(tiny, PROMPTS, 8, rows=3) == [reference.greedy(tiny, prompt, 8) for prompt in PROMPTS]


def test_drawn_texts_depend_on_prompt_and_seed_only(tiny_llama: Model):
    together = texts(tiny_llama, PROMPTS, 30, sampling=Sampling(5, seed=1))
    alone = [texts(tiny_llama, [prompt], 30, sampling=Sampling(5, seed=1))[0] for prompt in reversed(PROMPTS)]
    assert together == alone[::-1]
    assert together != texts(tiny_llama, PROMPTS, 30, sampling=Sampling(5, seed=2))
    assert texts(tiny_llama, PROMPTS, 30, sampling=Sampling(1)) == texts(tiny_llama, PROMPTS, 30)
    for prompt, text in zip(PROMPTS, together, strict=True):
        assert text.startswith(prompt)


def test_texts_have_the_length_and_are_not_let_end(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch):
    """The model is made to end every text at once."""
    end = tiny_llama.tokenizer.eos_token_id
    tiny_llama.network.get_output_embeddings().register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: output.index_fill(-1, torch.tensor([end]), 1e4)
    )
    decoded: list[list[int]] = []
    monkeypatch.setattr(
        type(tiny_llama.tokenizer), "batch_decode", lambda self, ids, **_: decoded.extend(ids) or ["" for _ in ids]
    )
    texts(tiny_llama, PROMPTS, 25)
    texts(tiny_llama, PROMPTS, 25, sampling=Sampling(5))
    assert [len(ids) for ids in decoded] == [25] * 8
    assert all(end not in ids for ids in decoded)
    decoded.clear()
    continuations(tiny_llama, PROMPTS, 5)
    fillers = [end, tiny_llama.tokenizer.pad_token_id]
    assert all(token in fillers for ids in decoded for token in ids)


def test_draws_follow_the_softmax_of_the_largest_logits(tiny_llama: Model):
    prompt = PROMPTS[0]
    ids = reference.token_ids(tiny_llama, prompt)
    logits = tiny_llama.network(torch.tensor([ids])).logits[0, -1]
    top = logits.topk(3)
    drawn = Counter(texts(tiny_llama, [prompt], len(ids) + 1, sampling=Sampling(3, seed))[0] for seed in range(400))
    for token, probability in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        share = drawn[str(tiny_llama.tokenizer.decode([*ids, token], skip_special_tokens=True))] / 400
        assert share == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / 400) + 1e-3)
    assert len(drawn) <= 3


# --- fluency


WORDS = st.lists(st.sampled_from(["the", "river", "runs", "don't", "1,868", ".", "São", "?"]), max_size=40)


@given(WORDS)
def test_fluency_equals_the_formula(some: list[str]):
    text = " ".join(some)
    assert words(text) == some
    halves = (2 / 3 * reference.ngram_entropy(some, 2), 4 / 3 * reference.ngram_entropy(some, 3))
    assert fluency(text) == pytest.approx(sum(halves) / 2, abs=1e-9)
    assert 0 <= fluency(text) <= math.log2(max(len(some), 2))


def test_fluency_by_hand():
    assert fluency("a b c d") == pytest.approx((2 / 3 * math.log2(3) + 4 / 3 * 1) / 2)
    assert fluency("na na na na na na") == 0
    assert fluency("") == fluency("word") == 0
    assert entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1)


@given(st.text(alphabet="ab .,'-é1\n", max_size=60))
def test_words_keep_every_letter(text: str):
    assert "".join(words(text)) == "".join(text.split())


# --- consistency


def test_consistency_equals_a_slow_one():
    pytest.importorskip("sklearn")
    corpus = ["The river runs slowly.", "Rome is a city; the city is old.", "A river in Rome", "Old towns"]
    compare = Consistency(corpus)
    for some in (["Rome is old", "a river"], ["Nothing of it"], ["the the the city"], ["unknown words"]):
        for about in (["Rome is a city"], corpus):
            wanted = reference.tfidf_cosine(" ".join(some), " ".join(about), corpus)
            assert compare(some, about) == pytest.approx(wanted, abs=1e-9)
    assert compare(corpus, corpus) == pytest.approx(1)
    assert math.isnan(compare(["Rome"], ["quite unknown words"]))
    with pytest.raises(UserError, match="no words"):
        Consistency(["", "?"])


def test_without_scikit_learn_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", cast(Any, None))
    with pytest.raises(UserError, match=r"pip install 'ece-edit\[eval\]'"):
        Consistency(["a text"])


def test_writing_can_be_greedy(tiny_llama: Model):
    assert Writing(12, None).write(tiny_llama, PROMPTS) == texts(tiny_llama, PROMPTS, 12)
    assert Writing(12, 5, 3).write(tiny_llama, PROMPTS) == texts(tiny_llama, PROMPTS, 12, sampling=Sampling(5, 3))


# --- answers


@pytest.mark.parametrize(
    ("text", "answers", "rivals", "right"),
    [
        (" Rome, Italy.", ["Rome"], ["Paris"], True),
        (" the city of ROME", ["Rome"], [], True),
        ("\n\n Rome", ["Rome"], [], True),
        (" Paris.\nRome", ["Rome"], [], False),  # the first line only
        (" Paris, not Rome", ["Rome"], ["Paris"], False),
        (" Rome, not Paris", ["Rome"], ["Paris"], True),
        (" Romeo", ["Rome"], [], False),  # whole words
        (" New York City", ["New York"], ["New York City"], False),  # the longer name is meant
        (" New York City", ["New York City"], ["New York"], True),
        (" Washington D.C.", ["Washington, D.C."], [], True),  # punctuation does not count
        (" Sa\u0303o Paulo", ["São Paulo"], [], True),
        (" the writer Hugo", ["Victor Hugo", "Hugo"], [], True),
        (" 東京", ["東京"], [], True),
        ("", ["Rome"], [], False),
        (" ???", ["?"], [], False),
        (" ???", ["???"], [], True),
        (" anything", [], [], False),
    ],
)
def test_says(text: str, answers: list[str], rivals: list[str], right: bool):
    assert says(text, answers, rivals) == right


NAMES = st.lists(st.sampled_from(["Rome", "new", "York", "city", "of"]), min_size=1, max_size=3).map(" ".join)


@given(NAMES, NAMES, NAMES)
def test_one_of_two_names_is_first(before: str, a: str, b: str):
    line = f"{before} {a}"
    assert says(line, [a])
    assert says(line, [a], [b]) or says(line, [b], [a])
    assert (says(line, [a], [b]) and says(line, [b], [a])) == (a == b)


def test_room_for_an_answer_depends_on_its_question_only(tiny_llama: Model):
    long = "through the valley, and the town is quiet and the others live there, therefore"
    questions = [Question(PROMPTS[0], ("Rome",)), Question(PROMPTS[1], (long, "in")), Question(PROMPTS[2], ("Rome",))]
    tokens = len(reference.token_ids(tiny_llama, f"{PROMPTS[1]} {long}")) - len(
        reference.token_ids(tiny_llama, PROMPTS[1])
    )
    lengths = [LEAST_TOKENS, tokens + ROOM, LEAST_TOKENS]
    assert tokens + ROOM > LEAST_TOKENS
    wanted = [reference.greedy(tiny_llama, q.prompt, n) for q, n in zip(questions, lengths, strict=True)]
    assert written(tiny_llama, questions) == wanted


def test_nothing_that_a_checkpoint_asks_for_comes_between(tiny_llama: Model):
    plain = continuations(tiny_llama, PROMPTS, 12)
    own = GenerationConfig(
        repetition_penalty=5.0, no_repeat_ngram_size=1, num_beams=3, eos_token_id=tiny_llama.tokenizer.eos_token_id
    )
    tiny_llama.network.generation_config = own  # type: ignore[assignment]
    assert continuations(tiny_llama, PROMPTS, 12) == plain
    assert tiny_llama.network.generation_config is own
