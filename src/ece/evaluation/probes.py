"""Benchmarks whose records ask questions with known answers: a kind declares its schema and questions, and this asks.

A metric is a group of trials; a trial is one or more probes; a probe is a prompt with the answers it may have. Under
each metric's plain name stands the token accuracy: the share of the answer's tokens that are the most probable ones,
each given those before it (Eq. 20-22). `*_exact` asks for all of them, `*_generated` lets the model write by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from ece.errors import UserError
from ece.evaluation.answers import says, written
from ece.evaluation.means import Mean, Score, as_score, column, harmonic, percent, share
from ece.facts import Fact, validated
from ece.models import Model
from ece.models.likelihood import Likelihood, Question, likelihoods

GOLD, KNOWN = "_gold", "_known"


@dataclass(frozen=True)
class Probe:
    """A prompt and the answers of which any will do, the usual one first."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """Probes that are passed together."""

    probes: tuple[Probe, ...]
    any: bool = False
    """One right probe is enough (the best one counts); else all must be right (in token accuracy: their mean)."""

    conditions: tuple[Probe, ...] = ()
    """What the unedited model must get right for the trial to count in `*_known`."""

    def value(self, probes: Sequence[float], together: Callable[[Sequence[float]], float]) -> float:
        """The trial's value from its probes'."""
        return max(probes) if self.any else together(probes)


def trial(prompt: str, *answers: str) -> Trial:
    """A trial of one probe."""
    return Trial((Probe(prompt, answers),))


Trials = Mapping[str, Sequence[Trial]]
"""By metric. A name that ends in `_gold` is of questions that the edit must leave alone; it has a twin `*_unchanged`,
which compares with the unedited model's own most probable tokens (along the first answer) instead of the answer's.
Where a kind has conditions, a metric has a twin `*_known`: the mean over the trials whose conditions the unedited model
meets (all tokens of an answer; for `*_generated`, in what it writes)."""

Record = TypeVar("Record", bound=BaseModel)


@dataclass(frozen=True)
class Questions(ABC, Generic[Record]):
    """A `Benchmark` of such records."""

    name: ClassVar[str]
    fields: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]]
    """In the order in which they are shown."""

    conditional: ClassVar[tuple[str, ...]] = ()
    """Whose trials may have conditions."""

    scored: ClassVar[tuple[str, ...]] = ()
    """Whose harmonic mean is the score."""

    schema: ClassVar[type[Any]]

    records: Sequence[Record]

    @staticmethod
    @abstractmethod
    def fits(raw: dict[str, Any]) -> bool:
        """Whether a raw record is of this kind."""

    @abstractmethod
    def facts_of(self, record: Record) -> list[Fact]:
        """What a record asks to edit."""

    @abstractmethod
    def trials_of(self, record: Record) -> Trials:
        """How the edit is measured; a metric that the record has nothing for may be missing or empty."""

    @classmethod
    def read(cls, file: Path, raw: Sequence[dict[str, Any]], **options: Any) -> Self:
        """From a file's raw records.

        Raises:
            UserError: a record is incomplete, or its fact is not in order.
        """
        made = cls([validated(file, number, record, cls.schema) for number, record in enumerate(raw)], **options)
        for number, record in enumerate(made.records):
            try:
                made.facts_of(record)
            except UserError as error:
                raise UserError(f"{file}: record {number}: {error}") from error
        return made

    def facts(self) -> list[Fact]:
        """The facts that the records ask for, none twice."""
        return list(dict.fromkeys(fact for record in self.records for fact in self.facts_of(record)))

    def part(self, start: int, stop: int | None, step: int = 1) -> Self:
        """Every `step`th of the records `start` to `stop` (not included)."""
        return replace(self, records=self.records[start:stop:step])

    def evaluate(self, model: Model, *, generated: bool = False, texts: bool = False) -> list[Score]:
        """By metric, a record's mean over its trials; under `predicted` the tokens for `*_unchanged`; and under `known`
        each trial's value and whether its conditions are met, for `*_known`.

        `texts` changes nothing: these kinds have no prompts for longer texts.
        """
        trials = [self.trials_of(record) for record in self.records]
        questions = [
            Question(probe.prompt, probe.answers)
            for own in trials
            for metric in self.metrics
            for trial in own.get(metric, ())
            for probe in (*trial.probes, *trial.conditions)
        ]
        answers = likelihoods(model, questions)
        lines = written(model, questions) if generated else [None] * len(questions)
        asked = iter(zip(answers, lines, strict=True))
        return [self._score(own, asked) for own in trials]

    def _score(self, trials: Trials, asked: Iterator[tuple[list[Likelihood], str | None]]) -> Score:
        values: dict[str, Any] = {}
        predicted: dict[str, list[list[int]]] = {}
        known: dict[str, list[tuple[float, bool]]] = {}
        for metric in self.metrics:
            passed = [_Passed.of(own, asked) for own in trials.get(metric, ())]
            each = {metric: [x.accuracy for x in passed], f"{metric}_exact": [x.exact for x in passed]}
            met = {variant: [x.met for x in passed] for variant in each}
            if any(x.generated for x in passed):
                each[f"{metric}_generated"] = [x.says for x in passed]
                met[f"{metric}_generated"] = [x.says_conditions for x in passed]
            values |= {variant: share(of) for variant, of in each.items()}
            if metric in self.conditional:
                known |= {variant: list(zip(of, met[variant], strict=True)) for variant, of in each.items()}
            if metric.endswith(GOLD):
                predicted[metric] = [list(x.answers[0].predicted) for of in passed for x in of.probes]
        return as_score(values) | {"predicted": predicted} | ({"known": known} if self.conditional else {})

    def summary(self, scores: Sequence[Score], before: Sequence[Score] | None = None) -> dict[str, Mean]:
        """Means over records in percent; metrics that no record has are left out.

        Args:
            scores: of the records.
            before: the same records' scores by the unedited model, for `*_unchanged` and `*_known`.
        """
        found: dict[str, Mean] = {}
        for variant in ("", "_exact", "_generated"):
            columns = {metric: column(scores, metric + variant) for metric in self.metrics}
            found |= {metric + variant: percent(values) for metric, values in columns.items()}
            if self.scored:
                found[f"score{variant}"] = harmonic([columns[metric] for metric in self.scored])
            if before is not None and not variant:
                found |= {_twin(metric): self._unchanged(metric, before, scores) for metric in self._untouched}
            if before is not None:
                names = [metric + variant for metric in self.conditional]
                found |= {f"{name}{KNOWN}": self._known(name, before, scores) for name in names}
        return {name: mean for name, mean in found.items() if mean.records}

    @property
    def _untouched(self) -> list[str]:
        return [metric for metric in self.metrics if metric.endswith(GOLD)]

    @staticmethod
    def _unchanged(metric: str, before: Sequence[Score], now: Sequence[Score]) -> Mean:
        pairs = zip(before, now, strict=True)
        return percent([_agreement(b["predicted"][metric], n["predicted"][metric]) for b, n in pairs])

    @staticmethod
    def _known(name: str, before: Sequence[Score], now: Sequence[Score]) -> Mean:
        """Over the trials whose conditions were met before the edit."""
        pairs = [(b["known"].get(name, ()), n["known"].get(name, ())) for b, n in zip(before, now, strict=True)]
        return percent([share(value for (_, met), (value, _) in zip(b, n, strict=True) if met) for b, n in pairs])


@dataclass(frozen=True)
class _Outcome:
    """What became of a probe."""

    probe: Probe
    answers: Sequence[Likelihood]
    line: str | None

    @property
    def accuracy(self) -> float:
        return max(answer.accuracy for answer in self.answers)

    @property
    def exact(self) -> bool:
        return any(answer.exact for answer in self.answers)

    @property
    def says(self) -> bool:
        return says(self.line or "", self.probe.answers)


@dataclass(frozen=True)
class _Passed:
    """What became of a trial."""

    trial: Trial
    probes: list[_Outcome]
    conditions: list[_Outcome]

    @classmethod
    def of(cls, trial: Trial, asked: Iterator[tuple[list[Likelihood], str | None]]) -> _Passed:
        probes = [_Outcome(probe, *next(asked)) for probe in trial.probes]
        return cls(trial, probes, [_Outcome(probe, *next(asked)) for probe in trial.conditions])

    @property
    def accuracy(self) -> float:
        return self.trial.value([x.accuracy for x in self.probes], share)

    @property
    def exact(self) -> float:
        return self.trial.value([x.exact for x in self.probes], min)

    @property
    def generated(self) -> bool:
        return any(x.line is not None for x in self.probes)

    @property
    def says(self) -> float:
        return self.trial.value([x.says for x in self.probes], min)

    @property
    def met(self) -> bool:
        return all(x.exact for x in self.conditions)

    @property
    def says_conditions(self) -> bool:
        return all(x.says for x in self.conditions)


def _twin(metric: str) -> str:
    return metric.removesuffix(GOLD) + "_unchanged"


def _agreement(before: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> float:
    """Mean over probes of the share of places with the same token."""
    return share(share(a == b for a, b in zip(*pair, strict=True)) for pair in zip(before, now, strict=True))
