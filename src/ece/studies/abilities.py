"""Figure 4: general abilities against the number of edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ece.errors import UserError
from ece.evaluation.abilities import TASKS
from ece.evaluation.means import Mean
from ece.studies.cells import Cell
from ece.studies.figures import Lines, Picture
from ece.studies.setup import Setup
from ece.studies.shared import lines, of_metrics, panels, placed
from ece.studies.study import Found, Row, Study
from ece.studies.tables import Table

COUNTS = 5

TEXT = "held-out text"
TOKENS, TOKENS_EACH = 20_000, 100
"""Of it, at most; and for each record that a quick look is limited to."""


def rows(setup: Setup) -> list[Row]:
    """Every task for every method, at several counts of edits.

    Raises:
        UserError: there are no tasks' files.
    """
    tasks = setup.inputs.task_names if setup.asked else []
    if not tasks and not setup.inputs.text:
        raise UserError(
            f"no tasks of general abilities; give the folder of {', '.join(TASKS)} with --tasks, or a text with --text"
        )
    found = []
    if setup.inputs.text:
        of = {"limit": TOKENS if setup.limit is None else min(TOKENS, TOKENS_EACH * setup.limit)}
        for name in setup.methods:
            for count in setup.counts(COUNTS):
                cell = Cell(run=setup.run(name), edits=count, measure="perplexity", of=of)
                found.append(Row(name, cell, count, TEXT))
    for task in tasks:
        of = {"task": task, "limit": setup.capped(setup.asked)}
        for name in setup.methods:
            for count in setup.counts(COUNTS):
                cell = Cell(run=setup.run(name), edits=count, measure="ability", of=of)
                found.append(Row(name, cell, count, task))
    return sorted(found, key=lambda row: (row.panel, row.x))


def tables(found: Sequence[Found]) -> list[Table]:
    """One for each task, and one of the text."""
    return [
        of_metrics(f"{task} after so many edits", part, "edits", costs=False) for task, part in panels(found).items()
    ]


def figures(found: Sequence[Found]) -> list[Picture]:
    """A panel for each task: its own metric, by likelihood; and one figure of the perplexity."""
    series: dict[str, dict[float, dict[str, Mean]]] = {}
    text = [each for each in found if each.row.panel == TEXT]
    for each in (each for each in found if each.row.panel != TEXT):
        metric = TASKS[each.row.panel].metrics[0]
        if metric in each.means:
            points = series.setdefault(each.label, {})
            for place in placed(each, found):
                points.setdefault(place, {})[f"{each.row.panel} ({metric})"] = each.means[metric]
    shown = {label: sorted(points.items()) for label, points in series.items()}
    names = sorted({name for points in shown.values() for _, means in points for name in means})
    made: list[Picture] = []
    if names:
        made.append(Lines("tasks", "General abilities against the number of edits", "edits in sequence", shown, names))
    if text:
        drawn = lines("perplexity", "Perplexity of a held-out text", "edits in sequence", text)
        made.append(replace(drawn, unit="perplexity"))
    return made


STUDY = Study(
    name="abilities",
    title="General abilities against the number of edits",
    paper="Figure 4",
    question="Does editing cost the model what it could do before?",
    rows=rows,
    tables=tables,
    figures=figures,
)
