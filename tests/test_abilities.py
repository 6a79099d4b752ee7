"""General abilities: prompts, answers and metrics of the six tasks, perplexity, and the harness."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import tiny as make
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shell import Ece
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ece.errors import UserError
from ece.evaluation.abilities import (
    POOL,
    TASKS,
    WRITTEN,
    Answers,
    Example,
    Task,
    chosen_tasks,
    evaluate,
    prompted,
    read_examples,
    summary,
)
from ece.evaluation.harness import harness, load_tasks
from ece.evaluation.perplexity import perplexity, read_text
from ece.models import Model
from ece.models.answers import Answer, answers
from ece.models.likelihood import Question, likelihoods
from ece.models.tokens import encode

RECORDS: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": "a fine river , quiet ", "label": 1, "idx": 0},
    "mrpc": {"sentence1": "Paris is a city.", "sentence2": "The city is Paris.", "label": 1},
    "mmlu": {"question": "Where is Rome?", "choices": ["Norway", "Paris", "You", "Italy"], "answer": 3},
    "cola": {"sentence": "You and I lives.", "label": 0},
    "rte": {"sentence1": "Rome is a city.", "sentence2": "Rome is not a city.", "label": 1},
    "nli": {"sentence1": "Rome is a city.", "sentence2": "Rome is there.", "label": "entailment"},
}
LABELS = {"sst2": "positive", "mrpc": "Yes", "mmlu": "D", "cola": "No", "rte": "False", "nli": "True"}


def write(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


# --- records


@pytest.mark.parametrize("name", TASKS)
def test_a_record_becomes_a_question_with_all_its_fields(name: str, tmp_path: Path):
    record = RECORDS[name]
    write(tmp_path, name, [record] * (POOL + 1))
    example = read_examples(TASKS[name], tmp_path)[0]
    assert example.label == LABELS[name]
    for field in ("sentence", "sentence1", "sentence2", "question"):
        assert str(record.get(field, "")).strip() in example.question
    assert all(choice in example.question for choice in record.get("choices", []))
    assert example.question.endswith(":")
    assert not any(mark in example.question for mark in "{}")
    assert example.shown == f"{example.question} {example.label}\n\n"


def test_braces_in_a_record_are_text(tmp_path: Path):
    write(tmp_path, "sst2", [{"sentence": "{label} {0} }{", "label": 1}] * (POOL + 1))
    assert read_examples(TASKS["sst2"], tmp_path)[0].question == "Review: {label} {0} }{\nSentiment:"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sst2", {"sentence": None}, "record 7: field sentence must be a text"),
        ("sst2", {"sentence": "  "}, "record 7: field sentence must be a text"),
        ("sst2", {"label": 2}, r"record 7: field label is 2; sst2 has the labels 0, 1"),
        ("sst2", {"label": True}, "record 7: field label is True"),
        ("nli", {"label": "neutral"}, "record 7: field label is 'neutral'.*'entailment', 'not_entailment'"),
        ("mmlu", {"choices": ["a", "b", "c"]}, r"record 7: field choices\[3\] is missing"),
        ("mmlu", {"choices": None}, r"record 7: field choices\[0\] is missing"),
        ("mmlu", {"answer": [1]}, "record 7: field answer is"),
    ],
)
def test_a_wrong_record_is_named(name: str, change: dict[str, Any], message: str, tmp_path: Path):
    records = [dict(RECORDS[name]) for _ in range(POOL + 1)]
    records[7] |= change
    write(tmp_path, name, records)
    with pytest.raises(UserError, match=message) as caught:
        read_examples(TASKS[name], tmp_path)
    assert f"{name}.jsonl" in str(caught.value)


def test_a_missing_field_file_or_rest_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"sst2\.jsonl: cannot be read"):
        read_examples(TASKS["sst2"], tmp_path)
    write(tmp_path, "sst2", [RECORDS["cola"]] * POOL)
    with pytest.raises(UserError, match="10 records; the first 10 serve as examples"):
        read_examples(TASKS["sst2"], tmp_path)
    write(tmp_path, "mrpc", [RECORDS["cola"]] * (POOL + 1))
    with pytest.raises(UserError, match="record 0: field sentence1 is missing"):
        read_examples(TASKS["mrpc"], tmp_path)


def test_tasks_by_name():
    assert [task.name for task in chosen_tasks(None)] == ["sst2", "mrpc", "mmlu", "cola", "rte", "nli"]
    assert [task.name for task in chosen_tasks(["rte", "sst2"])] == ["rte", "sst2"]
    with pytest.raises(UserError, match="no task 'sst'; there are: sst2"):
        chosen_tasks(["sst"])


def test_the_public_files_are_in_order(ece_data: Path):
    sizes = {name: len(read_examples(task, ece_data)) for name, task in TASKS.items()}
    assert sizes == {"sst2": 856, "mrpc": 258, "mmlu": 1516, "cola": 644, "rte": 262, "nli": 2489}


# --- prompts


def examples(count: int) -> list[Example]:
    words = ("the river", "Paris", "ice hockey", "Victor Hugo and I", "Norway", "chess")
    return [Example(f"Review: {words[i % 6]}\nSentiment:", ("negative", "positive")[i % 2]) for i in range(count)]


def test_a_prompt_is_examples_and_a_question(tiny_llama: Model):
    items = examples(4)
    (prompt,) = prompted(tiny_llama, items[:2], items[3:])
    assert prompt == (
        "Review: the river\nSentiment: negative\n\nReview: Paris\nSentiment: positive\n\n"
        "Review: Victor Hugo and I\nSentiment:"
    )
    assert prompted(tiny_llama, [], items[3:]) == [items[3].question]


def test_the_last_examples_give_way_where_the_context_is_short(tiny_llama: Model):
    items = examples(9)
    tokens = len(tiny_llama.tokenizer(prompted(tiny_llama, items[:8], items[8:])[0])["input_ids"])
    tiny_llama.network.config.max_position_embeddings = tokens - 5
    (prompt,) = prompted(tiny_llama, items[:8], items[8:])
    shown = [item for item in items[:8] if item.shown in prompt]
    assert prompt == "".join(item.shown for item in items[: prompt.count("\n\n")]) + items[8].question
    assert 0 < prompt.count("\n\n") < 8
    assert shown
    assert len(tiny_llama.tokenizer(prompt)["input_ids"]) + WRITTEN <= tokens - 5
    tiny_llama.network.config.max_position_embeddings = 12
    with pytest.raises(UserError, match=r"record 10 has \d+ tokens; tiny-llama-0 reads 12 at most"):
        prompted(tiny_llama, [], items[8:])


def test_examples_are_never_asked(tiny_llama: Model, monkeypatch: pytest.MonkeyPatch):
    items = [Example(f"Number {i}:", "negative") for i in range(POOL + 5)]
    found = evaluate(tiny_llama, TASKS["sst2"], items, shots=2, limit=3)
    assert len(found.right) == len(found.likeliest) == len(found.texts) == 3
    asked: list[str] = []

    def noted(_: Model, questions: list[Question], tokens: int, label: str) -> list[Answer]:
        asked.extend(question.prompt for question in questions)
        return answers(tiny_llama, questions, tokens, label)

    monkeypatch.setattr("ece.evaluation.abilities.answers", noted)
    evaluate(tiny_llama, TASKS["sst2"], items, shots=2)
    assert asked == [f"Number 0: negative\n\nNumber 1: negative\n\nNumber {i}:" for i in range(POOL, POOL + 5)]
    with pytest.raises(UserError, match="11 shots; between 0 and 10"):
        evaluate(tiny_llama, TASKS["sst2"], items, shots=11)


# --- answers, against one prompt at a time through the whole model


def written_slowly(model: Model, prompt: str, tokens: int) -> str:
    ids = list(model.tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(tokens):
        with torch.no_grad():
            best = int(model.network(torch.tensor([ids])).logits[0, -1].argmax())
        if best == model.tokenizer.eos_token_id:
            break
        ids.append(best)
    return str(model.tokenizer.decode(ids[start:]))


@pytest.mark.parametrize("shots", [0, 3])
def test_answers_equal_the_slow_ones(tiny: Model, shots: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ece.models.answers.PASS_TOKENS", 40)
    items = examples(POOL + 6)
    found = evaluate(tiny, TASKS["sst2"], items, shots=shots)
    assert found.right == [item.label for item in items[POOL:]]
    for prompt, likeliest, text in zip(
        prompted(tiny, items[:shots], items[POOL:]), found.likeliest, found.texts, strict=True
    ):
        wanted = max(TASKS["sst2"].words, key=lambda word: reference.likelihood(tiny, prompt, word)[0])
        assert likeliest == wanted
        assert text == written_slowly(tiny, prompt, WRITTEN)


def test_likelihoods_after_a_long_common_beginning_equal_the_naive_ones(tiny: Model):
    opening = make.TEXT.strip().replace("\n", " ")[:250].rsplit(" ", 1)[0]
    questions = [
        Question(f"{opening} {tail}", candidates)
        for tail, candidates in (
            ("Rome is", ("a city", "a river")),
            ("Rome and Paris and the others live there, because of that", ("opera", "ice hockey", "chess")),
            ("Victor", ("Hugo",)),
        )
    ]
    for question, found in zip(questions, likelihoods(tiny, questions), strict=True):
        for candidate, likelihood in zip(question.candidates, found, strict=True):
            mean, exact = reference.likelihood(tiny, question.prompt, candidate)
            assert likelihood.log_probability == pytest.approx(mean, rel=1e-4, abs=1e-5)
            assert likelihood.exact == exact


def test_candidates_of_any_length_are_compared_as_by_the_naive_way(tiny: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ece.models.answers.PASS_TOKENS", 40)
    questions = [
        Question("Victor Hugo wrote about Paris. Rome is", ("a city", "Paris", "a very old river and a small place")),
        Question("Victor Hugo wrote about Paris. Because of that, chess is played in", ("Rome", "an opera house")),
        Question("Victor Hugo wrote about Paris. He", ()),
        Question("Victor Hugo wrote about Paris. ", ("Rome",)),  # its last space belongs to the candidate's first token
    ]
    lengths = {
        len(encode(tiny, question.prompt, word)[0]) for question in questions[:2] for word in question.candidates
    }
    assert len(lengths) > 2
    found = answers(tiny, questions, 2)
    for question, answer in zip(questions, found, strict=True):
        if not question.prompt.endswith(" "):  # some tokenizers have a token for it, some do not
            assert answer.text == written_slowly(tiny, question.prompt, 2)
        for candidate, likelihood in zip(question.candidates, answer.candidates, strict=True):
            mean, exact = reference.likelihood(tiny, question.prompt, candidate)
            assert likelihood.log_probability == pytest.approx(mean, rel=1e-4, abs=1e-5)
            assert likelihood.exact == exact
    (plain,) = likelihoods(tiny, questions[:1])
    assert [each.predicted for each in found[0].candidates] == [each.predicted for each in plain]


def test_writing_stops_at_the_end_of_text(tiny_llama: Model):
    prompt = "The Eiffel Tower is in"
    first = int(tiny_llama.tokenizer(prompt + written_slowly(tiny_llama, prompt, 1))["input_ids"][-1])
    question = Question(prompt, ())
    assert answers(tiny_llama, [question], 3)[0].text
    tiny_llama.network.generation_config.eos_token_id = [first, 2]  # pyright: ignore
    assert answers(tiny_llama, [question, question], 3) == [Answer([], ""), Answer([], "")]
    assert answers(tiny_llama, [], 3) == []


# --- labels in a text


@pytest.mark.parametrize(
    ("name", "text", "label"),
    [
        ("sst2", " Positive\n\nReview: negative", "positive"),
        ("sst2", " not negative", "negative"),
        ("sst2", " positively", None),
        ("cola", " I know", None),
        ("cola", " NO.", "No"),
        ("rte", " false or True", "False"),
        ("mmlu", " (B) a", "B"),
        ("mmlu", " a thing", None),
        ("mmlu", "", None),
    ],
)
def test_the_first_whole_word_counts(name: str, text: str, label: str | None):
    assert TASKS[name].found(text) == label


# --- metrics


def answered(task: Task, right: list[str], said: list[str], texts: list[str] | None = None) -> Answers:
    return Answers(task, right, said, texts if texts is not None else said)


def test_metrics_equal_scikit_learn_s():
    right = ["No", "Yes", "Yes", "No", "Yes", "No"]
    said = ["No", "Yes", "No", "Yes", "Yes", "No"]
    texts = ["No", " yes", "maybe", "Yes", "", " No No"]
    read = ["No", "Yes", "", "Yes", "", "No"]
    found = summary(answered(TASKS["cola"], right, said, texts))
    assert set(found) == {
        *("mcc", "f1", "accuracy"),
        *("mcc_generated", "f1_generated", "accuracy_generated"),
        "unparsable",
    }
    for suffix, answer in (("", said), ("_generated", read)):
        assert found["mcc" + suffix].mean == pytest.approx(100 * matthews_corrcoef(right, answer))
        weighted: Any = {"average": "weighted", "zero_division": 0}
        assert found["f1" + suffix].mean == pytest.approx(100 * f1_score(right, answer, **weighted))
        assert found["accuracy" + suffix].mean == pytest.approx(100 * accuracy_score(right, answer))
    assert found["unparsable"].mean == pytest.approx(100 / 3)
    assert {mean.records for mean in found.values()} == {6}


labels = st.sampled_from(["No", "Yes"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(labels, labels), min_size=2, max_size=25))
def test_the_error_is_the_jackknife_s(pairs: list[tuple[str, str]]):
    right, said = map(list, zip(*pairs, strict=True))
    found = summary(answered(TASKS["cola"], right, said))
    weighted: Any = {"average": "weighted", "zero_division": 0}
    scores = {"mcc": matthews_corrcoef, "f1": lambda r, s: f1_score(r, s, **weighted)}
    n = len(pairs)
    for name, score in scores.items():
        without = np.array([100 * score(right[:i] + right[i + 1 :], said[:i] + said[i + 1 :]) for i in range(n)])
        spread = np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
        assert found[name].se == pytest.approx(spread, abs=1e-6)


def test_errors_against_a_bootstrap():
    generator = np.random.default_rng(3)
    right = generator.integers(0, 2, 300)
    said = np.where(generator.random(300) < 0.7, right, 1 - right)
    word = {0: "No", 1: "Yes"}
    found = summary(answered(TASKS["cola"], [word[i] for i in right.tolist()], [word[i] for i in said.tolist()]))
    rows = np.stack([right, said], axis=1).astype(float)
    wanted = reference.bootstrap(lambda some: 100 * float(matthews_corrcoef(some[:, 0], some[:, 1])), rows, 400)
    assert found["mcc"].se == pytest.approx(wanted, rel=0.15)


def test_one_record_has_no_error():
    found = summary(answered(TASKS["sst2"], ["positive"], ["positive"]))
    assert found["f1"].mean == 100
    assert math.isnan(found["f1"].se)


# --- perplexity


def surprises(model: Model, ids: list[int], window: int, stride: int) -> list[list[float]]:
    """By window: each scored token's negative log-likelihood, after what the window holds before it."""
    found = []
    for first in range(1, len(ids), stride):
        end = min(first + stride, len(ids))
        read = ids[max(0, end - window) : end]
        with torch.no_grad():
            likely = model.network(torch.tensor([read])).logits[0].double().log_softmax(-1)
        found.append([-float(likely[i - 1, read[i]]) for i in range(len(read) - (end - first), len(read))])
    return found


@pytest.mark.parametrize(("window", "stride"), [(16, 8), (32, 31), (400, 100), (20, 1)])
def test_perplexity_equals_the_slow_one(tiny: Model, window: int, stride: int):
    ids = list(tiny.tokenizer(make.TEXT)["input_ids"])[:120]
    found = perplexity(tiny, make.TEXT, window=window, stride=stride, limit=120)
    wanted = surprises(tiny, ids, window, stride)
    flat = [value for part in wanted for value in part]
    assert found.perplexity == pytest.approx(math.exp(np.mean(flat)), rel=1e-4)
    assert (found.tokens, found.windows) == (119, len(wanted)) == (len(flat), len(wanted))


def test_texts_are_scored_together_and_do_not_see_each_other(tiny: Model):
    texts = [make.TEXT[:300], "A", make.TEXT[300:420]]
    found = perplexity(tiny, *texts, window=16, stride=8)
    wanted = [part for text in texts for part in surprises(tiny, list(tiny.tokenizer(text)["input_ids"]), 16, 8)]
    flat = [value for part in wanted for value in part]
    assert found.perplexity == pytest.approx(math.exp(np.mean(flat)), rel=1e-4)
    assert (found.tokens, found.windows) == (len(flat), len(wanted))


def test_the_error_of_perplexity_is_a_bootstrap_s_over_windows(tiny_llama: Model):
    found = perplexity(tiny_llama, make.TEXT, window=8, stride=4)
    ids = list(tiny_llama.tokenizer(make.TEXT)["input_ids"])
    parts = surprises(tiny_llama, ids, 8, 4)
    rows = np.array([[sum(part), len(part)] for part in parts])
    wanted = reference.bootstrap(lambda some: math.exp(some[:, 0].sum() / some[:, 1].sum()), rows)
    assert found.windows > 50
    assert found.se == pytest.approx(wanted, rel=0.15)


def test_windows_are_no_longer_than_the_model_s_context(tiny_llama: Model):
    tiny_llama.network.config.max_position_embeddings = 16
    whole = perplexity(tiny_llama, make.TEXT, window=500, stride=8)
    assert whole == perplexity(tiny_llama, make.TEXT, window=16, stride=8)
    with pytest.raises(UserError, match="a stride of 16 tokens does not fit into windows of 16"):
        perplexity(tiny_llama, make.TEXT, window=500, stride=16)


def test_texts_that_cannot_be_measured(tiny_llama: Model, tmp_path: Path):
    with pytest.raises(UserError, match="two tokens or more; here: 1"):
        perplexity(tiny_llama, make.TEXT, limit=1)
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="no text in it"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        read_text(tmp_path / "latin.txt")


# --- the harness, on a task of our own


HARNESS_RECORDS = [
    ("The Eiffel Tower is in the city of", ["Paris", "Rome", "ice hockey"], 0),
    ("Victor Hugo grew up speaking", ["Russian", "French"], 1),
    ("Zoë Müller was born in", ["Norway", "Rome"], 0),
    ("Most people know Ada Lovelace for", ["chess", "the first program", "opera"], 1),
]


@pytest.fixture
def harness_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A multiple-choice task over a local JSON file."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install 'ece-edit[eval]')")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in HARNESS_RECORDS]
    data = write(tmp_path, "own", rows)
    lines = [
        "task: own_places",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}, cache_dir: {tmp_path}/cache}}",
        "test_split: test",
        "output_type: multiple_choice",
        'doc_to_text: "{{question}}"',
        'doc_to_choice: "{{choices}}"',
        "doc_to_target: answer",
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]",
    ]
    file = tmp_path / "own.yaml"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.slow
def test_the_harness_measures_the_model_in_memory(tiny_llama: Model, harness_task: Path):
    tasks = load_tasks([str(harness_task)])

    def summed(prompt: str, choice: str) -> float:
        tokens = len(reference.token_ids(tiny_llama, f"{prompt} {choice}"))
        return reference.likelihood(tiny_llama, prompt, choice)[0] * (
            tokens - len(reference.token_ids(tiny_llama, prompt))
        )

    def wanted() -> float:
        hits = [int(np.argmax([summed(q, c) for c in choices])) == a for q, choices, a in HARNESS_RECORDS]
        return sum(hits) / len(hits)

    vocabulary, padding = len(tiny_llama.tokenizer), tiny_llama.tokenizer.pad_token
    values = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for layer in range(4):
            weight = tiny_llama.weight(layer)
            weight.copy_(2 * torch.randn(weight.shape, generator=generator))
        before = [tiny_llama.weight(layer).clone() for layer in range(4)]
        found = harness(tiny_llama, tasks, batch_size=2)["own_places"]
        assert found["acc"].value == pytest.approx(wanted())
        assert found["acc"].records == 4
        assert all(torch.equal(tiny_llama.weight(layer), w) for layer, w in enumerate(before))
        values.append(found["acc"].value)
    assert len(set(values)) > 1, "three models, one accuracy: the test cannot tell them apart"
    assert (len(tiny_llama.tokenizer), tiny_llama.tokenizer.pad_token) == (vocabulary, padding)
    assert harness(tiny_llama, tasks, limit=2)["own_places"]["acc"].records == 2


def test_a_harness_task_that_is_not_there(tmp_path: Path):
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match="no task 'no_such_task'"):
        load_tasks(["no_such_task"])


def test_without_the_harness_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"pip install 'ece-edit\[eval\]'"):
        load_tasks(["piqa"])


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'ece-edit\[eval\]'"):
        summary(answered(TASKS["sst2"], ["positive"], ["positive"]))


# --- the command


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """Two of the tasks, with twelve records each."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("sst2", "cola"):
        write(folder, name, [{"sentence": f"the river {i} is fine", "label": i % 2} for i in range(POOL + 2)])
    return folder


def test_the_command_measures_before_and_after(ece: Ece, checkpoint: Path, data_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(make.TEXT, encoding="utf-8")
    edits = tmp_path / "edits"
    fact = ["--subject", "Eiffel Tower", "--prompt", "{} is located in the city of", "--target", "Rome"]
    fast = ["--set", "layers=1-2", "--set", "tokens=512", "--set", "targets.descent.evaluations=3"]
    assert ece("edit", "--model", checkpoint, *fact, *fast, "--out", edits).code == 0
    asked = ["--model", checkpoint, "--edits", edits, "--data", data_folder, "--tasks", "sst2,cola", "--text", text]
    result = ece("abilities", *asked, "--shots", 2, "--json")
    assert result.code == 0
    report = result.json
    assert set(report) == {"tasks", "text", "unedited", "provenance"}
    assert set(report["tasks"]) == {"sst2", "cola"}
    assert report["tasks"]["cola"]["mcc"]["records"] == 2
    assert report["unedited"]["text"][str(text)]["perplexity"]["tokens"] > 100
    before, after = (r["text"][str(text)]["perplexity"]["perplexity"] for r in (report["unedited"], report))
    assert before != after
    assert set(report["provenance"]["data"]) == {"sst2", "cola", "text"}


def test_what_the_command_refuses(ece: Ece, checkpoint: Path, data_folder: Path) -> None:
    for arguments, message in (
        ([], "nothing to measure"),
        (["--tasks", "sst2"], "--tasks needs --data"),
        (["--data", data_folder], "mrpc.jsonl: cannot be read"),
        (["--data", data_folder, "--tasks", "sst"], "no task 'sst'"),
        (["--text", data_folder / "none.txt"], "none.txt: cannot be read"),
    ):
        result = ece("abilities", "--model", checkpoint, *arguments)
        assert result.code == 2
        assert message in result.err.replace("\n", "")
        assert result.out == ""
