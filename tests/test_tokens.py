"""Positions of subjects and targets, whatever the tokenizer adds, trims or splits."""

from __future__ import annotations

import pytest
import tiny as make
from hypothesis import given, settings
from hypothesis import strategies as st

from ece.errors import UserError
from ece.models import Model
from ece.models.tokens import Tokens, encode, locate

KINDS = ("plain", "bos", "eos", "metaspace")
LLAMA = make.build("llama")

CASES = [
    pytest.param("{} is located in", "Eiffel Tower", id="start"),
    pytest.param("The {} is located in", "Eiffel Tower", id="middle"),
    pytest.param("Tell me about {}", "Eiffel Tower", id="end"),
    pytest.param("{}", "Rome", id="alone"),
    pytest.param("Where is {}?", "Mount Kelva", id="before punctuation"),
    pytest.param("In {}'s time,", "Victor Hugo", id="before an apostrophe"),
    pytest.param("The  {}  is", "Eiffel  Tower", id="double spaces"),
    pytest.param("  {} is", "Ada Lovelace", id="leading spaces"),
    pytest.param("({}) is", "Ada", id="in brackets"),
    pytest.param("{} was born in", "Zoë Müller", id="not ASCII"),
    pytest.param("The city of {} is", "São", id="last letter not ASCII"),
    pytest.param("The city of {} is", "東京", id="several tokens per letter"),
    pytest.param("A {} B", "🙂", id="emoji"),
    pytest.param("Rome, the {} of Italy", "Rome", id="subject's text earlier too"),
    pytest.param("The {} is", "antidisestablishmentarianism", id="many tokens"),
]


def with_tokenizer(kind: str) -> Model:
    return Model(LLAMA.network, make.tokenizer(kind), f"tiny-{kind}")


def decoded(model: Model, ids: list[int]) -> str:
    text = model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).lstrip()  # SentencePiece does not tell its own leading space from the text's


def assert_right(model: Model, tokens: Tokens, upto: str, target: str) -> None:
    """The ids up to the subject's last token spell the text up to the subject's end; one fewer do not.

    Args:
        model: whose tokenizer is asked.
        tokens: what was located.
        upto: the text from its beginning to the subject's end.
        target: wanted behind it.
    """
    last = tokens.subject_last
    assert decoded(model, tokens.ids[: last + 1]).startswith(upto.lstrip())
    assert not decoded(model, tokens.ids[:last]).startswith(upto.lstrip())
    assert decoded(model, tokens.target).strip() == target
    assert last < tokens.target_start


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", ["", "The weather is fine. "])
@pytest.mark.parametrize("target", ["ice hockey", "São Paulo", "東京"])
@pytest.mark.parametrize(("template", "subject"), CASES)
def test_subject_and_target(kind: str, before: str, target: str, template: str, subject: str):
    model = with_tokenizer(kind)
    tokens = locate(model, template, subject, before=before, target=target)
    upto = before + template.split("{}")[0] + subject
    assert_right(model, tokens, upto, target)
    assert decoded(model, tokens.ids) == f"{before}{template.replace('{}', subject)} {target}".lstrip()
    assert tokens.read == tokens.ids[:-1]


WORDS = st.sampled_from(["Rome", "Zoë", "Eiffel", "it's", "東京", "a", "chess,", "(B)", "über"])
PHRASES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.sampled_from(KINDS), PHRASES | st.just(""), PHRASES, PHRASES | st.just(""), PHRASES)
def test_any_phrases(kind: str, head: str, subject: str, tail: str, target: str):
    model = with_tokenizer(kind)
    template = " ".join(part for part in (head, "{}", tail) if part)
    tokens = locate(model, template, subject, target=target)
    assert_right(model, tokens, template.split("{}")[0] + subject, target)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens(kind: str):
    tokens = locate(with_tokenizer(kind), "The {} is", "Eiffel Tower", target="Rome")
    assert (tokens.ids[0] == 1) is (kind != "plain")
    assert 2 not in tokens.ids  # what a tokenizer appends is no part of the text


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_target_everything_is_read(kind: str):
    tokens = locate(with_tokenizer(kind), "The {} is", "Eiffel Tower")
    assert tokens.target == []
    assert tokens.target_start == len(tokens.ids)
    assert tokens.read == tokens.ids


def test_plain_positions_by_hand():
    model = with_tokenizer("plain")
    words = model.tokenizer.convert_ids_to_tokens(locate(model, "The {} is", "Eiffel Tower", target="Rome").ids)
    assert words == ["The", "ĠEi", "ff", "el", "ĠTow", "er", "Ġis", "ĠRome"]
    tokens = locate(model, "The {} is", "Eiffel Tower", target="Rome")
    assert (tokens.subject_last, tokens.target_start) == (5, 7)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_starts_the_target_right(kind: str):
    model = with_tokenizer(kind)
    ids, spans, start = encode(model, "In the end, Zoë", "ice hockey")
    assert len(ids) == len(spans)
    assert decoded(model, ids[:start]) == "In the end, Zoë"
    assert decoded(model, ids[start:]).strip() == "ice hockey"


def test_a_subject_without_tokens_is_refused():
    with pytest.raises(UserError, match="no tokens for the subject"):
        locate(with_tokenizer("plain"), "The {} is", "")


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="character offsets"):
        Model(LLAMA.network, Slow(), "slow")  # pyright: ignore[reportArgumentType]
