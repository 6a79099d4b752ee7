"""What must not change: facts that stay right and texts that stay likely, measured after each batch of edits."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from ece.errors import UserError
from ece.evaluation.perplexity import perplexity
from ece.facts import CounterFactRecord, Fact, PlainRecord, filled, read_records
from ece.models import Model
from ece.models.likelihood import Question, likelihoods


def _filled(text: str) -> str:
    filled(text)
    return text


class TextRecord(BaseModel):
    """`{"text": "..."}`: text that is to stay as likely as it was."""

    model_config = ConfigDict(extra="ignore")
    text: Annotated[str, AfterValidator(_filled)]


@dataclass
class Guard:
    """Facts and texts, with the bounds that the user gave."""

    questions: tuple[Question, ...]
    """What the unedited model is asked; what it gets right it is to go on getting right."""

    texts: tuple[str, ...]
    specificity: float | None = None
    """How many points of percent of the facts that were right may be lost."""

    perplexity: float | None = None
    """By how many percent the texts' perplexity may rise."""

    stop: bool = True
    """Whether a batch that breaks a bound ends the run; else it is left out."""

    _before: dict[str, tuple[list[int], float]] = field(default_factory=dict)
    """By fingerprint: the questions that the unedited model gets right, and its perplexity."""

    @classmethod
    def read(
        cls, file: Path, specificity: float | None = None, perplexity: float | None = None, stop: bool = True
    ) -> Guard:
        """A guard from JSON or JSON lines.

        Records are facts (`prompt`, `subject`, `target`: what is right and is to stay so), texts (`text`), or
        CounterFact records, of which the neighbours' prompts with the true object are taken.

        Raises:
            UserError: the file is not in order, no bound is given, or a bound has nothing that it could be measured on.
        """
        records = read_records(file, {"text": TextRecord, "requested_rewrite": CounterFactRecord, "": PlainRecord})
        questions: list[Question] = []
        for number, record in enumerate(records):
            if isinstance(record, CounterFactRecord):
                true = record.requested_rewrite.target_true
                if true is None:
                    raise UserError(f"{file}: record {number}: field requested_rewrite.target_true is missing")
                questions += [Question(prompt, (true.text,)) for prompt in record.neighborhood_prompts]
            elif isinstance(record, PlainRecord):
                fact: Fact = record.fact()
                questions.append(Question(fact.question, (fact.target,)))
        texts = tuple(record.text for record in records if isinstance(record, TextRecord))
        if specificity is None and perplexity is None:
            raise UserError("--guard: give a bound, --guard-specificity POINTS or --guard-perplexity PERCENT")
        if specificity is not None and not questions:
            raise UserError(f"{file}: no facts in it, which --guard-specificity needs; add records with a target")
        if perplexity is not None and not texts:
            raise UserError(f'{file}: no texts in it, which --guard-perplexity needs; add records {{"text": ...}}')
        return cls(tuple(questions), texts, specificity, perplexity, stop)

    @property
    def identity(self) -> str:
        """The same for the same questions, texts and bounds."""
        parts = [[(q.prompt, q.candidates) for q in self.questions], self.texts]
        text = json.dumps([*parts, self.specificity, self.perplexity, self.stop])
        return hashlib.sha256(text.encode()).hexdigest()

    def measure(self, model: Model) -> dict[str, float]:
        """On the model as it is now: `specificity` and `perplexity_rise`, both in percent; and the `perplexity`.

        Raises:
            UserError: the unedited model gets none of the facts right.
        """
        if model.fingerprint not in self._before:
            with model.overlay.suspended(model):
                right = [i for i, found in enumerate(likelihoods(model, self.questions)) if found[0].exact]
                self._before[model.fingerprint] = right, self._perplexity(model)
            if self.questions and not right and self.specificity is not None:
                raise UserError("--guard: the unedited model gets none of these facts right, so none can be lost")
        right, then = self._before[model.fingerprint]
        found: dict[str, float] = {}
        if right:
            still = likelihoods(model, [self.questions[i] for i in right], "guard")
            found["specificity"] = 100 * sum(answers[0].exact for answers in still) / len(right)
        if self.texts:
            found["perplexity"] = self._perplexity(model)
            found["perplexity_rise"] = 100 * (found["perplexity"] / then - 1)
        return found

    def _perplexity(self, model: Model) -> float:
        return perplexity(model, *self.texts).perplexity if self.texts else math.nan

    def broken(self, metrics: dict[str, float]) -> str:
        """Which bound is broken, and by how much; empty where none is."""
        lost = 100 - metrics.get("specificity", 100.0)
        if self.specificity is not None and lost > self.specificity:
            return f"guard: {lost:.1f} points of specificity are lost, and {self.specificity:g} may be"
        rise = metrics.get("perplexity_rise", 0.0)
        if self.perplexity is not None and not rise <= self.perplexity:
            return f"guard: perplexity is {rise:.1f} % higher, and {self.perplexity:g} % may be"
        return ""
