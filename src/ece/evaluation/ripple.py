"""RippleEdits (Cohen et al. 2023): what else must change with a fact, and what must not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, field_validator

from ece.errors import UserError
from ece.evaluation.probes import Probe, Questions, Trial, Trials, trial
from ece.facts import Fact, Filled


class Answer(BaseModel):
    """A right answer and its other names."""

    value: str
    aliases: list[str] = []

    @property
    def names(self) -> Iterator[str]:
        """All of them that are not blank; a single letter is no name, as in the authors' code."""
        return (name.strip() for name in (self.value, *self.aliases) if len(name.strip()) > 1 or name.strip().isdigit())


class Query(BaseModel):
    """A prompt to go on from."""

    prompt: Filled
    answers: list[Answer]
    subject_id: str | None = None
    query_type: str = "regular"

    @property
    def names(self) -> tuple[str, ...]:
        """Of all answers."""
        return tuple(dict.fromkeys(name for answer in self.answers for name in answer.names))


class RippleTest(BaseModel):
    """Queries of which one (OR) or all (AND) must be answered."""

    test_queries: Annotated[list[Query], Field(min_length=1)]
    test_condition: Literal["OR", "AND"] = "OR"

    condition_queries: list[Query] = []
    """What the unedited model must know for the test to mean something."""


class Statement(BaseModel):
    """A fact in words: its prompt holds the object as well."""

    prompt: Filled
    subject_id: str | None = None
    relation: str | None = None
    subject: Filled | None = None
    target: Filled | None = None


class Edited(Statement):
    """The edit. `subject` and `target` are no fields of the distributed files, and help where words are ambiguous."""

    previous_fact: Statement | None = None


class RippleRecord(BaseModel):
    """An edit with its six criteria."""

    model_config = ConfigDict(extra="ignore")

    edit: Edited
    relation: list[RippleTest] = Field([], validation_alias=AliasChoices("Relation_Specifity", "Relation_Specificity"))
    logical: list[RippleTest] = Field([], validation_alias="Logical_Generalization")
    aliasing: list[RippleTest] = Field([], validation_alias="Subject_Aliasing")
    through_target: list[RippleTest] = Field([], validation_alias="Compositionality_I")
    through_subject: list[RippleTest] = Field([], validation_alias="Compositionality_II")
    forgetfulness: list[RippleTest] = Field([], validation_alias="Forgetfulness")

    @field_validator("edit")
    @classmethod
    def _says_target(cls, edit: Edited) -> Edited:
        if " is " not in edit.prompt and edit.target is None:
            raise ValueError(f"the prompt {edit.prompt!r} does not read '... is TARGET.'; add the field target")
        return edit

    @property
    def queries(self) -> Iterator[Query]:
        """Of all criteria."""
        tests = (self.relation, self.logical, self.aliasing, self.through_target, self.through_subject)
        return (query for some in (*tests, self.forgetfulness) for test in some for query in test.test_queries)


@dataclass(frozen=True)
class Ripple(Questions[RippleRecord]):
    """A `Benchmark` of RippleEdits records."""

    name: ClassVar[str] = "ripple"
    fields: ClassVar[tuple[str, ...]] = ("edit", "Logical_Generalization", "Subject_Aliasing", "Compositionality_I")
    metrics: ClassVar[tuple[str, ...]] = (
        "efficacy",
        "multi_hop",
        "multi_hop_subject",
        "aliasing",
        "logical",
        "relation_gold",
        "forgetfulness_gold",
    )
    conditional: ClassVar[tuple[str, ...]] = metrics[1:]
    schema: ClassVar[type[Any]] = RippleRecord

    @staticmethod
    def fits(raw: dict[str, Any]) -> bool:
        """Whether a raw record is of this kind."""
        return isinstance(raw.get("edit"), dict) and "Logical_Generalization" in raw

    def facts_of(self, record: RippleRecord) -> list[Fact]:
        """The edit; the files give its words, not its parts, which are found by comparing (`subject_of`).

        Raises:
            UserError: the subject cannot be told.
        """
        question, target = split(record.edit)
        subject = subject_of(record)
        if subject not in question:
            raise UserError(f"field edit.subject: {subject!r} does not occur in {question!r}")
        head, _, tail = question.rpartition(subject)
        return [Fact(f"{head}{{}}{tail}", subject, target, record.edit.relation)]

    def trials_of(self, record: RippleRecord) -> Trials:
        """Each test is a trial."""
        question, target = split(record.edit)
        return {
            "efficacy": [trial(question, target)],
            "multi_hop": _trials(record.through_target),
            "multi_hop_subject": _trials(record.through_subject),
            "aliasing": _trials(record.aliasing),
            "logical": _trials(record.logical),
            "relation_gold": _trials(record.relation),
            "forgetfulness_gold": _trials(record.forgetfulness),
        }


def split(statement: Statement) -> tuple[str, str]:
    """Question and target of `The name of ... is TARGET.` (or of one whose target is given)."""
    words = statement.prompt.removesuffix(".")
    if statement.target is not None:
        return words.removesuffix(statement.target).rstrip(), statement.target
    question, _, target = words.rpartition(" is ")
    return f"{question} is", target


def subject_of(record: RippleRecord) -> str:
    """The subject's name: the field `subject`, or what the edit's question and others about that subject end in.

    Raises:
        UserError: there is neither.
    """
    if record.edit.subject is not None:
        return record.edit.subject
    about = {q.prompt for q in record.queries if q.query_type == "regular" and q.subject_id == record.edit.subject_id}
    question, _ = split(record.edit)
    common = _common_end({question, *about} if record.edit.subject_id else {question})
    _, of, subject = common.removesuffix(" is").partition(" of ")
    if len(about - {question}) == 0 or not of or not subject:
        raise UserError(f"field edit: the subject's name cannot be told from {question!r}; add the field subject to it")
    return subject


def _common_end(texts: Iterable[str]) -> str:
    return commonprefix([text[::-1] for text in texts])[::-1]


def _trials(tests: Sequence[RippleTest]) -> list[Trial]:
    """Tests without any answer are left out; with several answers, any will do."""
    asked = [(test, _probes(test.test_queries)) for test in tests]
    return [Trial(p, test.test_condition == "OR", _probes(test.condition_queries)) for test, p in asked if p]


def _probes(queries: Sequence[Query]) -> tuple[Probe, ...]:
    """Queries without any answer are left out."""
    return tuple(Probe(query.prompt, query.names) for query in queries if query.names)
