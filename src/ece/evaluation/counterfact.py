"""CounterFact: efficacy, generalization, specificity (Eq. 23-25), their harmonic mean, and the strict variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ece.errors import UserError
from ece.facts import CounterFactRecord
from ece.models import Model
from ece.models.likelihood import Likelihood, Question, likelihoods

METRICS = ("efficacy", "generalization", "specificity")


@dataclass(frozen=True)
class Mean:
    """A mean over records, with its standard error; in percent."""

    mean: float
    se: float

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.se:.1f}"


@dataclass(frozen=True)
class RecordScore:
    """One record's metrics, each the mean over its prompts, in [0, 1]; NaN where it has no such prompts."""

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


def evaluate(model: Model, records: Sequence[CounterFactRecord]) -> list[RecordScore]:
    """Score every record. "Likelier" compares the mean log-probability per token.

    Raises:
        UserError: a record lacks the true object.
    """
    questions = [question for record in records for question in _questions(record)]
    answers = iter(likelihoods(model, questions))
    return [_scored(record, answers) for record in records]


def _questions(record: CounterFactRecord) -> list[Question]:
    rewrite = record.requested_rewrite
    if rewrite.target_true is None:
        raise UserError(f"record {record.case_id}: field requested_rewrite.target_true is missing; evaluation needs it")
    candidates = (rewrite.target_new.text, rewrite.target_true.text)
    prompts = [record.fact().question, *record.paraphrase_prompts, *record.neighborhood_prompts]
    return [Question(prompt, candidates) for prompt in prompts]


def _scored(record: CounterFactRecord, answers: Iterator[list[Likelihood]]) -> RecordScore:
    def ask(count: int) -> list[list[Likelihood]]:
        return [next(answers) for _ in range(count)]

    def share(right: Sequence[bool]) -> float:
        return float(np.mean(right)) if right else float("nan")

    edited, paraphrases = ask(1), ask(len(record.paraphrase_prompts))
    neighbours = ask(len(record.neighborhood_prompts))
    right = [true.log_probability > new.log_probability for new, true in neighbours]
    return RecordScore(
        share([new.log_probability > true.log_probability for new, true in edited]),
        share([new.log_probability > true.log_probability for new, true in paraphrases]),
        share(right),
        share([new.exact for new, _ in edited]),
        share([new.exact for new, _ in paraphrases]),
        share([true.exact for _, true in neighbours]),
        tuple(right),
    )


def summary(scores: Sequence[RecordScore], before: Sequence[RecordScore] | None = None) -> dict[str, Mean]:
    """Means over records in percent.

    Args:
        scores: of the records.
        before: the same records' scores before editing, for `specificity_kept`: of the neighbour prompts that were
            right then, the share that still is.
    """
    found: dict[str, Mean] = {}
    for suffix in ("", "_exact"):
        columns = np.array([[getattr(s, metric + suffix) for metric in METRICS] for s in scores])
        for metric, column in zip(METRICS, columns.T, strict=True):
            found[metric + suffix] = _mean(column)
        found["score" + suffix] = _harmonic(columns)
    if before is not None:
        kept = [
            np.mean([now for was, now in zip(b.neighbours, s.neighbours, strict=True) if was])
            if any(b.neighbours)
            else np.nan
            for b, s in zip(before, scores, strict=True)
        ]
        found["specificity_kept"] = _mean(np.array(kept))
    return found


def _mean(column: NDArray[np.float64]) -> Mean:
    values = 100 * column[~np.isnan(column)]
    if len(values) == 0:
        return Mean(float("nan"), float("nan"))
    spread = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
    return Mean(float(values.mean()), spread)


def _harmonic(columns: NDArray[np.float64]) -> Mean:
    """Harmonic mean of three metrics' means `[records, 3]`; its error by the jackknife over records."""
    complete = 100 * columns[~np.isnan(columns).any(1)]
    records = len(complete)
    if records == 0:
        return Mean(float("nan"), float("nan"))

    def harmonic(means: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore"):
            return np.where((means > 0).all(-1), 3 / (1 / means).sum(-1), 0.0)

    value = harmonic(np.nanmean(100 * columns, axis=0))
    if records == 1:
        return Mean(float(value), float("nan"))
    without_one = harmonic((complete.sum(0) - complete) / (records - 1))
    spread = np.sqrt((records - 1) / records * ((without_one - without_one.mean()) ** 2).sum())
    return Mean(float(value), float(spread))
