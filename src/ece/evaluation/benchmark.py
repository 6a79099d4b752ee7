"""What every benchmark can do, and reading one from a file whose schema tells which it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from ece.errors import UserError
from ece.evaluation.counterfact import CounterFact
from ece.evaluation.knowedit import KnowEdit
from ece.evaluation.means import Mean, Score
from ece.evaluation.mquake import Mquake
from ece.evaluation.ripple import Ripple
from ece.evaluation.zsre import Zsre
from ece.facts import Fact, raw_records
from ece.models import Model


class Benchmark(Protocol):
    """Records that tell which facts to edit and how to measure a model afterwards."""

    name: ClassVar[str]
    """The kind, as `read_benchmark` takes it."""

    @property
    def records(self) -> Sequence[Any]:
        """In the file's order."""
        ...

    def facts(self) -> list[Fact]:
        """The facts that the records ask for, in their order, none twice."""
        ...

    def part(self, start: int, stop: int | None, step: int = 1) -> Self:
        """Every `step`th of the records `start` to `stop` (not included); whatever all records share stays as it is."""
        ...

    def evaluate(self, model: Model, *, generated: bool = False, texts: bool = False) -> list[Score]:
        """Score every record with the model as it is now.

        Args:
            model: edited or not.
            generated: also the `*_generated` metrics: what the model writes by itself.
            texts: also the metrics of long generated texts (fluency, consistency), where the kind has prompts for them.

        Raises:
            UserError: a record lacks what its metrics need.
        """
        ...

    def summary(self, scores: Sequence[Score], before: Sequence[Score] | None = None) -> dict[str, Mean]:
        """Means over records.

        Args:
            scores: what `evaluate` gave, or what was read back from JSON.
            before: the same records' scores by the unedited model, for the metrics that compare the two.
        """
        ...


KINDS = {kind.name: kind for kind in (CounterFact, Zsre, KnowEdit, Ripple, Mquake)}
"""By name. A record is of the first kind that recognises it."""


def read_benchmark(file: Path | str, kind: str = "auto", **options: Any) -> Benchmark:
    """Records for evaluation.

    Args:
        file: JSON (a list) or JSON lines.
        kind: a name in `KINDS`, or `auto`: the first record tells.
        options: of the kind, as its `read` takes them; None stands for its default.

    Raises:
        UserError: no such kind or option, the file cannot be read, or a record is not of the kind: what was expected,
            and what was found.
    """
    file = Path(file)
    if kind != "auto" and kind not in KINDS:
        raise UserError(f"no kind of benchmark is called {kind!r}; there are auto, {', '.join(KINDS)}")
    raw = raw_records(file)
    name = _kind(raw[0]) if kind == "auto" else kind
    if name is None:
        known = "; ".join(f"{kind.name} ({', '.join(kind.fields)})" for kind in KINDS.values())
        raise UserError(f"{file}: record 0 is of no known kind: expected one of {known}; found {_found(raw[0])}")
    chosen = KINDS[name]
    for number, record in enumerate(raw):
        if not chosen.fits(record):
            other = _kind(record)
            raise UserError(
                f"{file}: record {number} is not of kind {name}: expected the fields {', '.join(chosen.fields)}; found "
                f"{_found(record)}" + (f", which is {other}: keep one kind in a file" if other else "")
            )
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in chosen.options:
            raise UserError(f"{file}: {option} is no option of {name} records")
    return chosen.read(file, raw, **given)


def _kind(record: dict[str, Any]) -> str | None:
    return next((kind.name for kind in KINDS.values() if kind.fits(record)), None)


def _found(record: dict[str, Any]) -> str:
    names = list(record)
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no fields"
