"""A control that the paper lacks: what clusters, their number, the split of the steps and the start are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ece.studies.figures import Picture
from ece.studies.setup import Setup
from ece.studies.shared import differences, dots, of_metrics, panels
from ece.studies.study import Found, Row, Study
from ece.studies.tables import Table

TWO_STEP: dict[str, Any] = {"targets": "two-step"}
PAPER = "by neurons, 10 clusters, 20 + 5 steps"
BY = ("random", "relation", "target", "none")
NUMBERS = (2, 5, 20, 50)
SPLITS = ((24, 1), (15, 10), (10, 15), (5, 20))
"""Shared steps and own steps, 25 together as in the paper's 20 and 5."""


def variants() -> dict[str, dict[str, Any]]:
    """The options of each row beside those of the paper's search."""
    return {
        PAPER: {},
        **{f"by {by}" if by != "none" else "one cluster": {"targets.by": by} for by in BY},
        **{f"{number} clusters": {"targets.clusters": number} for number in NUMBERS},
        **{
            f"{shared} + {own} steps": {"targets.shared.steps": shared, "targets.own.steps": own}
            for shared, own in SPLITS
        },
        "own steps from zero": {"targets.start": "zero"},
        "25 own steps, no clusters": {"targets": "per-fact"},
    }


def rows(setup: Setup) -> list[Row]:
    """The method's own search, and the paper's two-step search with one thing changed at a time."""
    found = []
    for name in setup.varied(TWO_STEP):
        own = setup.run(name)
        has_it = own.options["targets"]["kind"] == TWO_STEP["targets"]
        two_step = {} if has_it else TWO_STEP  # naming it again would take the method's own rates away
        if not has_it:
            found.append(Row("the method's own search", setup.quality(own), panel=name))
        for label, changes in variants().items():
            found.append(Row(label, setup.quality(setup.run(name, two_step | changes)), panel=name))
    return found


def tables(found: Sequence[Found]) -> list[Table]:
    """All rows, and their differences from the paper's search."""
    made = []
    for name, part in panels(found).items():
        made.append(of_metrics(f"{name} with the two-step search", part))
        made += [differences(part, PAPER)] if any(each.label == PAPER for each in part) else []
    return made


def figures(found: Sequence[Found]) -> list[Picture]:
    """All rows of each method."""
    return [dots(name, f"{name}: clusters and steps", part) for name, part in panels(found).items()]


STUDY = Study(
    name="clusters",
    title="Clusters and the two-step search",
    paper="",
    question="Is sharing steps inside neuron-set clusters better than sharing them at random, or than not at all?",
    rows=rows,
    tables=tables,
    figures=figures,
)
