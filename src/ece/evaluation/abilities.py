"""General abilities: the paper's six tasks (SST-2, MRPC, MMLU, CoLA, RTE, NLI), each a few-shot prompt and its labels.

A task is declared, not coded. Its records are local JSON lines; the first `POOL` of them serve as examples and are
never evaluated. Every record is answered twice: by the label that is most likely after the prompt, and by the label
found in what the model writes (docs/abilities.md).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ece.errors import UserError, requiring
from ece.evaluation.means import Mean, percent
from ece.facts import read_records
from ece.models import Model
from ece.models.answers import Answer, answers
from ece.models.likelihood import Question

POOL = 10
"""The first so many records of a file are examples, however many are shown: all settings answer the same rest."""

SHOTS = 4
"""Examples shown by default: as many of each label in the files the field uses, where two or four labels take turns."""

WRITTEN = 5
"""Tokens the model may write for an answer."""

Metric = Literal["f1", "mcc"]


@dataclass(frozen=True)
class Task:
    """A classification task."""

    name: str
    """The stem of its file."""

    template: str
    """The question, in terms of a record's fields."""

    labels: Mapping[int | str, str]
    """What stands in the field `gold`, and the word that says it."""

    gold: str = "label"
    metrics: tuple[Metric, ...] = ("f1",)
    """Beside the accuracy; the first is the task's own."""

    @property
    def words(self) -> tuple[str, ...]:
        """The labels as the model is to say them."""
        return tuple(self.labels.values())

    def found(self, text: str) -> str | None:
        """The label that a text says first, as a whole word; None where it says none.

        Case does not count, but in labels of one letter ("a" is an article).
        """
        alternatives = (re.escape(word) if len(word) == 1 else f"(?i:{re.escape(word)})" for word in self.words)
        match = re.search(rf"\b(?:{'|'.join(alternatives)})\b", text)
        return match and next(word for word in self.words if word.lower() == match[0].lower())


TASKS = {
    task.name: task
    for task in (
        Task("sst2", "Review: {sentence}\nSentiment:", {0: "negative", 1: "positive"}),
        Task(
            "mrpc",
            "First sentence: {sentence1}\nSecond sentence: {sentence2}\nDo both say the same, Yes or No?\nAnswer:",
            {0: "No", 1: "Yes"},
        ),
        Task(
            "mmlu",
            "Question: {question}\n(A) {choices[0]}\n(B) {choices[1]}\n(C) {choices[2]}\n(D) {choices[3]}\nAnswer:",
            dict(enumerate("ABCD")),
            gold="answer",
        ),
        Task(
            "cola",
            "Sentence: {sentence}\nIs this grammatical English, Yes or No?\nAnswer:",
            {0: "No", 1: "Yes"},
            metrics=("mcc", "f1"),
        ),
        Task(
            "rte",
            "Text: {sentence1}\nClaim: {sentence2}\nDoes the text make the claim, True or False?\nAnswer:",
            {0: "True", 1: "False"},
        ),
        Task(
            "nli",
            "Premise: {sentence1}\nHypothesis: {sentence2}\nDoes the premise entail it, True or False?\nAnswer:",
            {"entailment": "True", "not_entailment": "False"},
        ),
    )
}


@dataclass(frozen=True)
class Example:
    """A record as a question and the label that is right."""

    question: str
    label: str

    @property
    def shown(self) -> str:
        """With its answer, as one of the examples of a prompt."""
        return f"{self.question} {self.label}\n\n"


@dataclass(frozen=True)
class Answers:
    """What a model answered to a task's records, in their order."""

    task: Task
    right: list[str]
    likeliest: list[str]
    """The label with the greatest mean log-probability per token."""

    texts: list[str]
    """What the model wrote."""

    @property
    def written(self) -> list[str | None]:
        """The label found in each text."""
        return [self.task.found(text) for text in self.texts]


def chosen_tasks(names: Sequence[str] | None) -> list[Task]:
    """Tasks by name; all of them for None.

    Raises:
        UserError: there is no such task.
    """
    unknown = [name for name in names or () if name not in TASKS]
    if unknown:
        raise UserError(f"no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
    return [TASKS[name] for name in names or TASKS]


def read_examples(task: Task, folder: Path) -> list[Example]:
    """A task's records, from `{name}.jsonl` in a folder.

    Raises:
        UserError: the file cannot be read, has no records beyond the pool, or a record lacks a field or has a label
            that the task does not know.
    """
    file = folder / f"{task.name}.jsonl"
    records = read_records(file, {})
    if len(records) <= POOL:
        raise UserError(f"{file}: {len(records)} records; the first {POOL} serve as examples, so more are needed")
    return [_example(task, record, f"{file}: record {number}") for number, record in enumerate(records)]


def _example(task: Task, record: dict[str, Any], where: str) -> Example:
    filled: dict[str, str] = {}
    for _, field, _, _ in Formatter().parse(task.template):
        if field is None:
            continue
        try:
            value, _ = Formatter().get_field(field, (), record)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError(f"{where}: field {field} is missing") from None
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{where}: field {field} must be a text that is not empty, not {value!r}")
        filled[field] = value.strip()
    label = record.get(task.gold)
    if not isinstance(label, int | str) or isinstance(label, bool) or label not in task.labels:
        known = ", ".join(repr(value) for value in task.labels)
        raise UserError(f"{where}: field {task.gold} is {label!r}; {task.name} has the labels {known}")
    pieces = Formatter().parse(task.template)
    question = "".join(text + (filled[field] if field is not None else "") for text, field, _, _ in pieces)
    return Example(question, task.labels[label])


def evaluate(
    model: Model, task: Task, examples: Sequence[Example], shots: int = SHOTS, limit: int | None = None
) -> Answers:
    """Ask a model the records after the pool.

    Args:
        model: as it is now.
        task: whose records they are.
        examples: all of the file's records.
        shots: how many of the first records are shown in each prompt, at most `POOL`; fewer where the model's context
            would not hold them.
        limit: only so many records.

    Raises:
        UserError: more shots than `POOL`, or a record alone is too long for the model.
    """
    if not 0 <= shots <= POOL:
        raise UserError(f"{shots} shots; between 0 and {POOL} are possible")
    asked = examples[POOL:][:limit]
    prompts = prompted(model, examples[:shots], asked)
    found = answers(model, [Question(prompt, task.words) for prompt in prompts], WRITTEN, task.name)
    likeliest = [_likeliest(task, answer) for answer in found]
    return Answers(task, [example.label for example in asked], likeliest, [answer.text for answer in found])


def _likeliest(task: Task, answer: Answer) -> str:
    compared = zip(task.words, answer.candidates, strict=True)
    return max(compared, key=lambda pair: pair[1].log_probability)[0]


def prompted(model: Model, shown: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """Prompts: the examples shown, as many of the first as fit into the model's context, and then the question.

    Raises:
        UserError: a question alone is too long for the model.
    """
    room = model.context or float("inf")
    lengths = np.cumsum([0, *_lengths(model, [example.shown for example in shown])])
    prompts = []
    for number, (example, length) in enumerate(
        zip(asked, _lengths(model, [example.question for example in asked]), strict=True), POOL
    ):
        fitting = int((lengths + length + 2 * WRITTEN <= room).sum())
        if fitting == 0:
            raise UserError(f"record {number} has {length} tokens; {model.name} reads {room} at most, answer included")
        prompts.append("".join(e.shown for e in shown[: fitting - 1]) + example.question)
    return prompts


def _lengths(model: Model, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in model.tokenizer(list(texts))["input_ids"]] if texts else []


def summary(answers: Answers) -> dict[str, Mean]:
    """A task's metrics in percent: by likelihood, by what is written (`*_generated`), and the share `unparsable`.

    F1 is the mean over labels, weighted by how often each is right; a text that says no label is a wrong answer. The
    accuracy's error is that of a mean, the others' is the jackknife's over records.

    Raises:
        UserError: scikit-learn is not installed.
    """
    says = [word if word is not None else "" for word in answers.written]
    found: dict[str, Mean] = {}
    for suffix, said in (("", answers.likeliest), ("_generated", says)):
        for metric in answers.task.metrics:
            found[metric + suffix] = _jackknifed(_score(metric), answers.right, said)
        hits = [right == word for right, word in zip(answers.right, said, strict=True)]
        found["accuracy" + suffix] = percent(np.array(hits, dtype=np.float64))
    return found | {"unparsable": percent(np.array([not word for word in says], dtype=np.float64))}


Score = Callable[[Sequence[str], Sequence[str], NDArray[np.int64]], float]
"""Of right labels, labels said, and how often each such pair was seen."""


def _score(metric: Metric) -> Score:
    with requiring("a task's F1 or MCC", "eval"):
        from sklearn.metrics import f1_score, matthews_corrcoef
    weighted: dict[str, Any] = {"average": "weighted", "zero_division": 0}

    def score(right: Sequence[str], said: Sequence[str], counts: NDArray[np.int64]) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "a single label was found": then MCC is 0
            if metric == "mcc":
                return float(matthews_corrcoef(right, said, sample_weight=counts))
            return float(f1_score(right, said, sample_weight=counts, **weighted))

    return score


def _jackknifed(score: Score, right: Sequence[str], said: Sequence[str]) -> Mean:
    """A score times 100 and its jackknife error; records with the same pair of labels are left out at one stroke."""
    pairs = Counter(zip(right, said, strict=True))
    rights, saids = zip(*pairs, strict=True)
    counts = np.array(list(pairs.values()))
    records = int(counts.sum())
    value = 100 * score(rights, saids, counts)
    if records < 2:
        return Mean(value, float("nan"), records)
    without_one = np.array([100 * score(rights, saids, counts - one) for one in np.eye(len(counts), dtype=np.int64)])
    middle = counts @ without_one / records
    spread = np.sqrt((records - 1) / records * (counts @ (without_one - middle) ** 2))
    return Mean(value, float(spread), records)
