"""Table 1: all methods on all benchmarks, after the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence

from ece.studies.figures import Picture
from ece.studies.setup import Setup
from ece.studies.shared import dots, metrics, of_metrics, panels
from ece.studies.study import Found, Row, Study
from ece.studies.tables import Table

TEXTS = ", generated texts"


def rows(setup: Setup) -> list[Row]:
    """Every method on every benchmark: its metrics, and those of generated texts on the first records."""
    found = []
    for data in setup.inputs.benchmarks:
        for name in setup.methods:
            run = setup.run(name, data=data)
            found.append(Row(name, setup.quality(run), panel=data))
            if setup.texts:
                texts = setup.quality(run, first=setup.capped(setup.texts), generated=True, texts=True)
                found.append(Row(name, texts, panel=data + TEXTS))
    return sorted(found, key=lambda row: row.panel)


def tables(found: Sequence[Found]) -> list[Table]:
    """One for each benchmark, and one of what generated texts add to it."""
    made, parts = [], panels(found)
    for panel, part in parts.items():
        plain = metrics(parts.get(panel.removesuffix(TEXTS), [])) if panel.endswith(TEXTS) else []
        if names := [name for name in metrics(part) if name not in plain]:
            made.append(of_metrics(_title(panel, part), part, names=names))
    return made


def figures(found: Sequence[Found]) -> list[Picture]:
    """One for each benchmark."""
    parts = panels(found).items()
    return [dots(panel, _title(panel, part), part) for panel, part in parts if not panel.endswith(TEXTS)]


def _title(panel: str, found: Sequence[Found]) -> str:
    return f"Methods on {panel} after {max(each.row.cell.edits for each in found):,} edits"


STUDY = Study(
    name="methods",
    title="All methods on all benchmarks",
    paper="Table 1",
    question="How well does each method write facts, carry them over to paraphrases, and leave other facts alone?",
    rows=rows,
    tables=tables,
    figures=figures,
)
