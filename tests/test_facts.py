"""Facts and the files they come from; what is wrong with a record is said with its place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ece.errors import UserError
from ece.facts import Fact, batches, check_consistent, read_counterfact, read_facts, shipped_file

PLAIN = {"prompt": "{} is in", "subject": "The Louvre", "target": "Rome"}
COUNTERFACT: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} is in",
        "subject": "The Louvre",
        "target_new": {"str": "Rome", "id": "Q220"},
        "target_true": {"str": "Paris", "id": "Q90"},
        "relation_id": "P131",
    },
    "paraphrase_prompts": ["The Louvre lies in"],
    "neighborhood_prompts": ["The Eiffel Tower is in"],
    "something_else": 1,
}
ZSRE = {"subject": "The Louvre", "src": "Where is The Louvre?", "answers": ["Rome", "Roma"], "rephrase": "x"}


def written(folder: Path, content: Any, name: str = "facts.json") -> Path:
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return file


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != field}


# --- what is read


@pytest.mark.parametrize("record", [PLAIN, COUNTERFACT], ids=["plain", "counterfact"])
@pytest.mark.parametrize("form", ["list", "single", "jsonl"])
def test_formats(tmp_path: Path, record: dict[str, Any], form: str):
    if form == "jsonl":
        file = written(tmp_path, json.dumps(record) + "\n\n", "facts.jsonl")
    else:
        file = written(tmp_path, record if form == "single" else [record])
    assert read_facts(file) == [Fact("{} is in", "The Louvre", "Rome")]


def test_zsre(tmp_path: Path):
    assert read_facts(written(tmp_path, [ZSRE])) == [Fact("Where is {}?", "The Louvre", "Rome")]


def test_mixed_records_and_relations(tmp_path: Path):
    other = PLAIN | {"subject": "The Tower", "relation": "city"}
    facts = read_facts(written(tmp_path, [COUNTERFACT, other]))
    assert [fact.relation for fact in facts] == ["P131", "city"]


def test_byte_order_mark_and_other_letters(tmp_path: Path):
    text = json.dumps([PLAIN | {"subject": "Zoë 東京"}], ensure_ascii=False)
    assert read_facts(written(tmp_path, text.encode("utf-8-sig")))[0].subject == "Zoë 東京"


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"], ids=["line separator", "next line"])
def test_json_lines_end_at_newlines_only(tmp_path: Path, separator: str):
    """These are valid inside a JSON string, yet `str.splitlines` breaks there."""
    record = PLAIN | {"target": f"Rome{separator}Italy"}
    text = "\n".join([json.dumps(record, ensure_ascii=False), json.dumps(PLAIN | {"subject": "The Tower"})])
    facts = read_facts(written(tmp_path, text, "facts.jsonl"))
    assert facts[0].target == f"Rome{separator}Italy"
    assert len(facts) == 2


def test_spaces_are_trimmed():
    fact = Fact("{} is in ", "  The Louvre ", " Rome ")
    assert (fact.prompt, fact.subject, fact.target) == ("{} is in", "The Louvre", "Rome")
    assert fact.question == "The Louvre is in"


def test_relation_does_not_make_another_fact():
    assert Fact("{} is in", "a", "b", "x") == Fact("{} is in", "a", "b")


def test_same_fact_twice_is_no_contradiction():
    check_consistent([Fact("{} is in", "a", "Rome"), Fact("{} is in", "a", "Rome", "city")])


def test_batches():
    facts = [Fact("{} is in", str(i), "Rome") for i in range(5)]
    assert [len(batch) for batch in batches(facts, 2)] == [2, 2, 1]
    assert [fact for batch in batches(facts, 2) for fact in batch] == facts


# --- what is refused

BAD = {
    "malformed": ("[\n" + json.dumps(PLAIN) + "\n{", "facts.json", ["line 3", "not valid JSON"]),
    "empty file": ("", "facts.json", ["line 1", "not valid JSON"]),
    "no records": ("[]", "facts.json", ["no records"]),
    "no lines": ("\n\n", "facts.jsonl", ["no records"]),
    "malformed line": (json.dumps(PLAIN) + "\n\n{oops}\n", "facts.jsonl", ["line 3", "not valid JSON"]),
    "nested too deeply": ("[" * 100_000, "facts.json", ["line 1", "nested"]),
    "huge number": ('[{"case_id": 1' + "0" * 5000 + "}]", "facts.json", ["facts.json"]),
    "missing subject": ([PLAIN, without(PLAIN, "subject")], "facts.json", ["record 1", "field subject"]),
    "missing prompt": ([without(PLAIN, "prompt")], "facts.json", ["record 0", "field prompt"]),
    "missing target": ([PLAIN, PLAIN, without(PLAIN, "target")], "facts.json", ["record 2", "field target"]),
    "no place": ([PLAIN | {"prompt": "It is in"}], "facts.json", ["record 0", "field prompt", "0 times"]),
    "two places": ([PLAIN | {"prompt": "{} and {}"}], "facts.json", ["record 0", "field prompt", "2 times"]),
    "empty subject": ([PLAIN | {"subject": " "}], "facts.json", ["record 0", "field subject", "empty"]),
    "empty target": ([PLAIN, PLAIN | {"target": ""}], "facts.json", ["record 1", "field target", "empty"]),
    "number as subject": ([PLAIN | {"subject": 5}], "facts.json", ["record 0", "field subject", "string"]),
    "null target": ([PLAIN | {"target": None}], "facts.json", ["record 0", "field target", "string"]),
    "list in list": ([PLAIN, [PLAIN]], "facts.json", ["record 1", "list"]),
    "text record": (["Rome"], "facts.json", ["record 0", "str"]),
    "number": ("5", "facts.json", ["record 0", "int"]),
    "lone surrogate": ('[{"prompt": "{} is", "subject": "\\ud800", "target": "x"}]', "facts.json", ["record 0"]),
    "not UTF-8": (b'[{"subject": "Zo\xeb"}]', "facts.json", ["not UTF-8", "byte 16"]),
    "contradiction": (
        [PLAIN, PLAIN | {"subject": "x"}, PLAIN | {"target": "Oslo"}],
        "facts.json",
        ["0 and 2", "Rome", "Oslo", "The Louvre is in"],
    ),
    "counterfact without target": (
        [COUNTERFACT | {"requested_rewrite": without(COUNTERFACT["requested_rewrite"], "target_new")}],
        "facts.json",
        ["record 0", "field requested_rewrite.target_new"],
    ),
    "counterfact with empty target": (
        [COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"target_new": {"str": ""}}}],
        "facts.json",
        ["record 0", "field requested_rewrite.target_new.str", "empty"],
    ),
    "zsre without answers": ([ZSRE | {"answers": []}], "facts.json", ["record 0", "field answers"]),
    "zsre without its subject": ([ZSRE | {"src": "Where is it?"}], "facts.json", ["record 0", "0 times"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, case: str):
    content, name, wanted = BAD[case]
    with pytest.raises(UserError) as caught:
        read_facts(written(tmp_path, content, name))
    message = str(caught.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message
    if case != "contradiction":
        assert str(tmp_path / name) in message


def test_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere.json: cannot be read"):
        read_facts(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        (("It is in", "a", "b"), "prompt"),
        (("{}{}", "a", "b"), "prompt"),
        (("{}", " ", "b"), "subject"),
        (("{}", "a", ""), "target"),
    ],
)
def test_bad_facts(fields: tuple[str, str, str], wanted: str):
    with pytest.raises(UserError, match=f"^{wanted} "):
        Fact(*fields)


def test_counterfact_records_need_their_schema(tmp_path: Path):
    with pytest.raises(UserError, match="record 0: field requested_rewrite"):
        read_counterfact(written(tmp_path, [PLAIN]))


def test_counterfact_record(tmp_path: Path):
    (record,) = read_counterfact(written(tmp_path, [COUNTERFACT]))
    assert record.requested_rewrite.target_true is not None
    assert record.requested_rewrite.target_true.text == "Paris"
    assert record.neighborhood_prompts == ["The Eiffel Tower is in"]
    assert record.fact().question == "The Louvre is in"


# --- the facts that come with the package


def test_shipped_facts():
    records = read_counterfact(shipped_file())
    facts = read_facts(shipped_file())
    assert len(records) == len(facts) >= 60
    assert len({record.relation for record in records}) >= 8
    assert len({fact.question for fact in facts}) == len(facts)
    for record in records:
        rewrite = record.requested_rewrite
        assert record.relation
        assert rewrite.target_true is not None
        assert rewrite.target_true.text != rewrite.target_new.text
        assert len(record.paraphrase_prompts) == 2
        assert len(record.neighborhood_prompts) >= 3
        assert record.generation_prompts
        assert record.reference_texts
        assert all(rewrite.subject not in prompt for prompt in record.neighborhood_prompts)
        assert all(rewrite.subject in prompt for prompt in record.paraphrase_prompts)
        assert all(rewrite.target_new.text in text for text in record.reference_texts)


def test_shipped_relations_have_several_facts_and_targets():
    records = read_counterfact(shipped_file())
    assert min(Counter(record.relation for record in records).values()) >= 2
    assert len({record.requested_rewrite.target_new.text for record in records}) >= 30


def test_public_extracts_are_read(ece_data: Path):
    assert len(read_facts(ece_data / "counterfact.json")) > 100
    assert len(read_facts(ece_data / "zsre.json")) > 100
