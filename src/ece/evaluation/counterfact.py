"""CounterFact: efficacy, generalization, specificity (Eq. 23-25), their harmonic mean, the strict variants, and the
metrics of generated texts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ece.errors import UserError
from ece.evaluation.answers import says, written
from ece.evaluation.generation import Consistency, Writing, fluency
from ece.evaluation.means import Mean, Score, as_score, column, harmonic, percent, share
from ece.facts import CounterFactRecord, Fact, raw_lines, read_json, validated
from ece.models import Model
from ece.models.likelihood import Likelihood, Question, likelihoods

log = logging.getLogger(__name__)

METRICS = ("efficacy", "generalization", "specificity")
VARIANTS = ("", "_exact", "_soft", "_generated")
NAN = float("nan")


@dataclass(frozen=True)
class RecordScore:
    """One record's metrics, each the mean over its prompts, in [0, 1]; NaN where it has no such prompts, or where the
    metric was not asked for.
    """

    efficacy: float
    """Eq. 23: whether the new object is likelier than the true one after the edited prompt."""

    generalization: float
    """Eq. 24: the same after paraphrases."""

    specificity: float
    """Eq. 25: whether the true object is likelier than the new one after prompts about neighbours."""

    efficacy_exact: float
    """Whether every token of the new object is the most probable one (teacher forcing)."""

    generalization_exact: float
    specificity_exact: float
    """The same for the true object after prompts about neighbours."""

    neighbours: tuple[bool, ...]
    """Which neighbour prompts are right."""

    efficacy_soft: float = NAN
    """How much likelier the new object is: the logistic function of the difference of log-probabilities, in nats."""

    generalization_soft: float = NAN
    specificity_soft: float = NAN
    """How much likelier the true object is after prompts about neighbours."""

    efficacy_generated: float = NAN
    """Whether the model, writing by itself, names the new object, and not the true one before it (`says`)."""

    generalization_generated: float = NAN
    specificity_generated: float = NAN
    """Whether it names the true object, and not the new one before it, after prompts about neighbours."""

    fluency: float = NAN
    """Eq. 26, mean over the texts written after the generation prompts; in bits."""

    consistency: float = NAN
    """Of those texts with the reference texts."""

    texts: tuple[str, ...] = ()
    """What was written after the generation prompts, each with its prompt."""


@dataclass(frozen=True)
class CounterFact:
    """A `Benchmark` of CounterFact records."""

    name: ClassVar[str] = "counterfact"
    fields: ClassVar[tuple[str, ...]] = ("requested_rewrite (an object)", "paraphrase_prompts", "neighborhood_prompts")
    options: ClassVar[tuple[str, ...]] = ("snippets", "corpus", "tokens", "top_k", "seed")

    records: Sequence[CounterFactRecord]
    references: Sequence[Sequence[str]]
    """Of each record: texts about other subjects that have the new object."""

    corpus: Sequence[str]
    """What the TF-IDF vectorizer is fitted on."""

    writing: Writing = field(default_factory=Writing)

    @staticmethod
    def fits(raw: dict[str, Any]) -> bool:
        """Whether a raw record is of this kind."""
        return isinstance(raw.get("requested_rewrite"), dict)

    @classmethod
    def read(
        cls,
        file: Path,
        raw: Sequence[dict[str, Any]],
        snippets: Path | str | None = None,
        corpus: Path | str | None = None,
        tokens: int = Writing.tokens,
        top_k: int | None = Writing.top_k,
        seed: int = Writing.seed,
    ) -> CounterFact:
        """From a file's raw records.

        Args:
            file: for messages.
            raw: its records.
            snippets: CounterFact's attribute snippets, which then are the reference texts instead of the records' own
                `reference_texts`.
            corpus: a text file, one document a line, to fit the TF-IDF vectorizer on; all reference texts of the file
                (with snippets: all snippets) by default.
            tokens: see `Writing`.
            top_k: see `Writing`; 0 too stands for always taking the most probable token.
            seed: see `Writing`.

        Raises:
            UserError: a record or the snippets are incomplete.
        """
        records = [validated(file, number, record, CounterFactRecord) for number, record in enumerate(raw)]
        known = read_snippets(Path(snippets)) if snippets else None
        references = [tuple(r.reference_texts if known is None else known.get(_attribute(r), ())) for r in records]
        every = references if known is None else known.values()
        documents = raw_lines(Path(corpus)) if corpus else [text for texts in every for text in texts]
        return cls(records, references, documents, Writing(tokens, top_k or None, seed))

    def facts(self) -> list[Fact]:
        """The facts that the records ask for, none twice."""
        return list(dict.fromkeys(record.fact() for record in self.records))

    def part(self, start: int, stop: int | None, step: int = 1) -> CounterFact:
        """Every `step`th of the records `start` to `stop` (not included), with the corpus of all."""
        return replace(self, records=self.records[start:stop:step], references=self.references[start:stop:step])

    def evaluate(self, model: Model, *, generated: bool = False, texts: bool = False) -> list[Score]:
        """The fields of `RecordScore`, for each record.

        Raises:
            UserError: a record lacks the true object, or scikit-learn is missing.
        """
        compare = Consistency(self.corpus) if texts and any(self.references) else None
        scores = evaluate(model, self.records, generated=generated)
        if texts:
            scores = self._with_texts(model, scores, compare)
        return [as_score(asdict(score)) for score in scores]

    def _with_texts(self, model: Model, scores: list[RecordScore], compare: Consistency | None) -> list[RecordScore]:
        missing = sum(not (refs and record.generation_prompts) for record, refs in self._described())
        if missing:
            log.warning("consistency leaves out %d of %d records: no reference texts", missing, len(self.records))
        prompts = [prompt for record in self.records for prompt in record.generation_prompts]
        pages = iter(self.writing.write(model, prompts))
        found = []
        for score, (record, references) in zip(scores, self._described(), strict=True):
            own = tuple(next(pages) for _ in record.generation_prompts)
            consistency = compare(own, references) if compare and own and references else NAN
            found.append(replace(score, fluency=share(map(fluency, own)), consistency=consistency, texts=own))
        return found

    def _described(self) -> Iterator[tuple[CounterFactRecord, Sequence[str]]]:
        return zip(self.records, self.references, strict=True)

    def summary(self, scores: Sequence[Score], before: Sequence[Score] | None = None) -> dict[str, Mean]:
        """Means over records; see `summary`."""
        return _summary(scores, before)


Attribute = tuple[str | None, str | None]


def _attribute(record: CounterFactRecord) -> Attribute:
    """Relation and new object, by their ids."""
    return record.requested_rewrite.relation_id, record.requested_rewrite.target_new.id


def read_snippets(file: Path) -> dict[Attribute, list[str]]:
    """CounterFact's attribute snippets: by relation id and target id, texts about subjects that have that attribute.

    The file is a list of `{"relation_id", "target_id", "samples": [{"text", ...}, ...]}`, as it is distributed, or an
    object relation id -> target id -> samples.

    Raises:
        UserError: it cannot be read, or is neither.
    """
    found: dict[Attribute, list[str]] = {}
    try:
        content = read_json(file)
        if isinstance(content, list):
            entries = [(entry["relation_id"], entry["target_id"], entry["samples"]) for entry in content]
        else:
            entries = [(rel, target, some) for rel, targets in content.items() for target, some in targets.items()]
        for relation, target, samples in entries:
            found.setdefault((relation, target), []).extend(str(sample["text"]) for sample in samples)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not attribute snippets; expected relation_id, target_id and samples, each with a text ({error!r})"
        ) from error
    return found


def evaluate(model: Model, records: Sequence[CounterFactRecord], *, generated: bool = False) -> list[RecordScore]:
    """Score every record. "Likelier" compares the mean log-probability per token.

    Args:
        model: edited or not.
        records: with their true objects.
        generated: also what the model writes by itself.

    Raises:
        UserError: a record lacks the true object.
    """
    questions = [question for record in records for question in _questions(record)]
    answers = likelihoods(model, questions)
    lines = written(model, questions) if generated else [None] * len(questions)
    asked = map(_Asked, questions, answers, lines)
    return [_scored(record, asked) for record in records]


def _questions(record: CounterFactRecord) -> list[Question]:
    rewrite = record.requested_rewrite
    if rewrite.target_true is None:
        raise UserError(f"record {record.case_id}: field requested_rewrite.target_true is missing; evaluation needs it")
    candidates = (rewrite.target_new.text, rewrite.target_true.text)
    prompts = [record.fact().question, *record.paraphrase_prompts, *record.neighborhood_prompts]
    return [Question(prompt, candidates) for prompt in prompts]


@dataclass(frozen=True)
class _Asked:
    """One prompt and what became of it; the new object is candidate 0, the true one candidate 1."""

    question: Question
    answers: Sequence[Likelihood]
    line: str | None

    def likelier(self, wanted: int) -> bool:
        return self._lead(wanted) > 0

    def preferred(self, wanted: int) -> float:
        """The wanted one's part of both probabilities (geometric means over tokens): 1/2 where they are equal."""
        return (1 + math.tanh(self._lead(wanted) / 2)) / 2

    def _lead(self, wanted: int) -> float:
        """By how much its log-probability is the larger one, in nats."""
        return self.answers[wanted].log_probability - self.answers[1 - wanted].log_probability

    def exact(self, wanted: int) -> bool:
        return self.answers[wanted].exact

    def names(self, wanted: int) -> bool:
        both = self.question.candidates
        return says(self.line or "", [both[wanted]], [both[1 - wanted]])


def _scored(record: CounterFactRecord, asked: Iterator[_Asked]) -> RecordScore:
    def take(count: int) -> list[_Asked]:
        return [next(asked) for _ in range(count)]

    edited, paraphrases = take(1), take(len(record.paraphrase_prompts))
    neighbours = take(len(record.neighborhood_prompts))
    new, true = 0, 1
    score = RecordScore(
        efficacy=share(x.likelier(new) for x in edited),
        generalization=share(x.likelier(new) for x in paraphrases),
        specificity=share(x.likelier(true) for x in neighbours),
        efficacy_exact=share(x.exact(new) for x in edited),
        generalization_exact=share(x.exact(new) for x in paraphrases),
        specificity_exact=share(x.exact(true) for x in neighbours),
        neighbours=tuple(x.likelier(true) for x in neighbours),
        efficacy_soft=share(x.preferred(new) for x in edited),
        generalization_soft=share(x.preferred(new) for x in paraphrases),
        specificity_soft=share(x.preferred(true) for x in neighbours),
    )
    if edited[0].line is None:
        return score
    return replace(
        score,
        efficacy_generated=share(x.names(new) for x in edited),
        generalization_generated=share(x.names(new) for x in paraphrases),
        specificity_generated=share(x.names(true) for x in neighbours),
    )


def summary(scores: Sequence[RecordScore], before: Sequence[RecordScore] | None = None) -> dict[str, Mean]:
    """Means over records in percent.

    Args:
        scores: of the records.
        before: the same records' scores before editing, for `specificity_kept`: of the neighbour prompts that were
            right then, the share that still is.
    """
    return _summary([asdict(s) for s in scores], None if before is None else [asdict(s) for s in before])


def _summary(scores: Sequence[Score], before: Sequence[Score] | None) -> dict[str, Mean]:
    found: dict[str, Mean] = {}
    for variant in VARIANTS:
        columns = {metric: column(scores, metric + variant) for metric in METRICS}
        if variant in ("_soft", "_generated") and np.isnan(list(columns.values())).all():
            continue  # not asked for, or read back from a file that is older than the variant
        found |= {metric + variant: percent(values) for metric, values in columns.items()}
        found["score" + variant] = harmonic(list(columns.values()))
    if before is not None:
        found["specificity_kept"] = percent(
            [_kept(b["neighbours"], s["neighbours"]) for b, s in zip(before, scores, strict=True)]
        )
    written = {name: percent(column(scores, name)) for name in ("fluency", "consistency")}
    return found | {name: mean for name, mean in written.items() if mean.records}


def _kept(before: Sequence[bool], now: Sequence[bool]) -> float:
    return share(is_right for was_right, is_right in zip(before, now, strict=True) if was_right)
