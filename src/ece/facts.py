"""Facts, and reading them from files. What is wrong with a record is said with its number and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ece.errors import UserError
from ece.files import read_text


def _template(prompt: str) -> str:
    count = prompt.count("{}")
    if count != 1:
        raise ValueError(f"the prompt must contain {{}} once, for the subject; it does {count} times")
    return _letters(prompt).rstrip()


def filled(text: str) -> str:
    """A text that holds something, without the spaces around it.

    Raises:
        ValueError: it is empty, or not text.
    """
    if not text.strip():
        raise ValueError("must not be empty")
    return _letters(text).strip()


def _letters(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("holds half a surrogate pair, which is no letter")
    return text


DEMONSTRATED = 20
"""The first so many shipped facts are the demonstration's, and no statistics are taken over their sentences."""

Template = Annotated[str, AfterValidator(_template)]
Filled = Annotated[str, AfterValidator(filled)]
Schema = TypeVar("Schema", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """(subject, relation, object): after `prompt` about `subject`, the model is to say `target`."""

    prompt: str
    """A template with one `{}` for the subject."""

    subject: str
    target: str
    """The new object, without a leading space."""

    relation: str | None = field(default=None, compare=False)
    """A name for grouping, where the data have one; else the prompt serves."""

    def __post_init__(self) -> None:
        """Check and tidy the fields.

        Raises:
            UserError: the prompt has no `{}` or several, or the subject or target is empty.
        """
        for name, check in (("prompt", _template), ("subject", filled), ("target", filled)):
            try:
                object.__setattr__(self, name, check(getattr(self, name)))
            except ValueError as error:
                raise UserError(f"{name} {getattr(self, name)!r}: {error}") from error

    @property
    def question(self) -> str:
        """The prompt with its subject."""
        return self.prompt.replace("{}", self.subject)

    def __str__(self) -> str:
        return f"{self.question} -> {self.target}"


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class PlainRecord(_Record):
    """`{"prompt": "{} is in", "subject": "…", "target": "…"}`."""

    prompt: Template
    subject: Filled
    target: Filled
    relation: str | None = None

    def fact(self) -> Fact:
        """The fact this record states."""
        return Fact(self.prompt, self.subject, self.target, self.relation)


class _Object(_Record):
    text: Filled = Field(alias="str")
    id: str | None = None


class Rewrite(_Record):
    """CounterFact's `requested_rewrite`."""

    prompt: Template
    subject: Filled
    target_new: _Object
    target_true: _Object | None = None
    relation_id: str | None = None


class CounterFactRecord(_Record):
    """A record in CounterFact's schema; the lists serve evaluation."""

    case_id: int | str | None = None
    relation: str | None = None
    requested_rewrite: Rewrite
    paraphrase_prompts: list[Filled] = []
    neighborhood_prompts: list[Filled] = []
    generation_prompts: list[Filled] = []
    reference_texts: list[Filled] = []

    def fact(self) -> Fact:
        """The fact this record asks for."""
        rewrite = self.requested_rewrite
        return Fact(rewrite.prompt, rewrite.subject, rewrite.target_new.text, self.relation or rewrite.relation_id)


class ZsreRecord(_Record):
    """A zsRE record in MEND's format; the target is the first of `answers`, as in MEMIT's loader."""

    subject: Filled
    src: Filled
    answers: Annotated[list[Filled], Field(min_length=1)]

    def fact(self) -> Fact:
        """The question with its subject cut out, as a prompt."""
        return Fact(self.src.replace(self.subject, "{}", 1), self.subject, self.answers[0])


def read_facts(file: Path | str) -> list[Fact]:
    """Facts from JSON (a list) or JSON lines: plain records, CounterFact, or zsRE.

    Raises:
        UserError: the file cannot be read, a record is incomplete, or two facts contradict each other.
    """
    records = read_records(Path(file), {"requested_rewrite": CounterFactRecord, "src": ZsreRecord, "": PlainRecord})
    facts = []
    for number, record in enumerate(records):
        try:
            facts.append(record.fact())
        except UserError as error:
            raise UserError(f"{file}: record {number}: {error}") from error
    check_consistent(facts)
    return facts


def read_counterfact(file: Path | str) -> list[CounterFactRecord]:
    """Records for evaluation, in CounterFact's schema.

    Raises:
        UserError: the file cannot be read, or a record is incomplete.
    """
    return read_records(Path(file), {"": CounterFactRecord})


def shipped_file() -> Path:
    """The facts that come with the package, in CounterFact's schema, written by us."""
    return Path(str(resources.files("ece") / "data" / "facts.json"))


def not_demonstrated() -> list[CounterFactRecord]:
    """The shipped facts but the demonstration's, which measures on them."""
    return read_counterfact(shipped_file())[DEMONSTRATED:]


def read_records(file: Path, schemas: dict[str, type[Any]]) -> list[Any]:
    """Records of a JSON or JSON-lines file.

    Args:
        file: the file.
        schemas: by a field that tells the schema; `""` is for any other record.

    Raises:
        UserError: naming the file, and the line or the record and field.
    """

    def schema(raw: dict[str, Any]) -> type[Any] | None:
        return next((schema for key, schema in schemas.items() if not key or key in raw), None)

    raw = raw_records(file)
    return [validated(file, n, record, known) if (known := schema(record)) else record for n, record in enumerate(raw)]


def raw_records(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSON or JSON-lines file.

    Raises:
        UserError: the file cannot be read, or holds something else, or nothing.
    """
    records = _objects(file)
    for number, raw in enumerate(records):
        if not isinstance(raw, dict):
            raise UserError(f"{file}: record {number} is a {type(raw).__name__}, not an object")
    if not records:
        raise UserError(f"{file}: no records in it")
    return records


def validated(file: Path, number: int, raw: dict[str, Any], schema: type[Schema]) -> Schema:
    """A raw record in its schema.

    Raises:
        UserError: naming the file, the record and the field.
    """
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{file}: record {number}: {_first(error)}") from error


def check_consistent(facts: Iterable[Fact]) -> None:
    """Refuse two facts with the same subject and prompt but different targets.

    Raises:
        UserError: naming both facts.
    """
    seen: dict[tuple[str, str], tuple[int, Fact]] = {}
    for number, fact in enumerate(facts):
        first, other = seen.setdefault((fact.subject, fact.prompt), (number, fact))
        if other.target != fact.target:
            raise UserError(
                f"facts {first} and {number} contradict each other: {fact.question!r} is to be both "
                f"{other.target!r} and {fact.target!r}; keep one"
            )


def batches(facts: Sequence[T], size: int) -> list[Sequence[T]]:
    """Facts, or records, in batches of `size`, in order; the last may be smaller."""
    return [facts[i : i + size] for i in range(0, len(facts), size)]


def _objects(file: Path) -> list[Any]:
    if file.suffix == ".jsonl":
        lines = ((n, line) for n, line in enumerate(read_text(file).split("\n"), 1) if line.strip())
        return [_parsed(file, line, n) for n, line in lines]
    parsed = read_json(file)
    return parsed if isinstance(parsed, list) else [parsed]


def read_json(file: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or is not JSON.
    """
    return _parsed(file, read_text(file))


def raw_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        UserError: it cannot be read.
    """
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _parsed(file: Path, text: str, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {line or error.lineno}: not valid JSON ({error.msg})") from error
    except RecursionError as error:
        raise UserError(f"{file}: line {line or 1}: JSON nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{file}: not usable JSON ({str(error).split(';')[0]})") from error


def _first(error: ValidationError) -> str:
    details = error.errors()[0]
    place = ".".join(str(part) for part in details["loc"])
    reason = details["msg"].removeprefix("Value error, ")
    return f"field {place}: {reason[0].lower()}{reason[1:]}"
