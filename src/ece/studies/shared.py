"""Tables and figures that several studies have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ece.evaluation.means import Mean
from ece.studies.figures import Dots, Lines
from ece.studies.setup import UNEDITED
from ece.studies.statistics import of_values, paired
from ece.studies.study import Found
from ece.studies.tables import Table, Value, records, text


def metrics(found: Sequence[Found]) -> list[str]:
    """All that any row has, in their order, those that are nowhere a number left out."""
    names = dict.fromkeys(name for each in found for name in each.means)
    return [
        name for name in names if any(not math.isnan(each.means[name].mean) for each in found if name in each.means)
    ]


HEADLINE = ("efficacy", "generalization", "specificity", "specificity_gold", "specificity_unchanged", "score")
"""What figures show, of CounterFact's metrics or zsRE's."""


def headline(found: Sequence[Found]) -> list[str]:
    """The metrics that a figure shows: those of `HEADLINE` that there are, or else the first four."""
    there = metrics(found)
    return [name for name in HEADLINE if name in there] or there[:4]


def seconds_per_edit(found: Found) -> Mean | None:
    """Mean over batches; None for the unedited model."""
    made = found.result.edits
    if not made:
        return None
    return of_values([seconds / facts for seconds, facts in zip(made["seconds"], made["facts"], strict=True)])


def layers(found: Found) -> str | None:
    """The edited layers, `3-7` or `3, 5`."""
    edited = found.result.edits.get("layers")
    if not edited:
        return None
    if len(edited) > 1 and edited == list(range(edited[0], edited[-1] + 1)):
        return f"{edited[0]}-{edited[-1]}"
    return ", ".join(map(str, edited))


def with_neurons(table: Table, found: Sequence[Found]) -> Table:
    """The table with a column more: how many columns of W the last batch changed in a layer, mean over layers."""
    counts = [list(each.result.edits.get("neurons", {}).values()) for each in found]
    means = [round(sum(each) / len(each)) if each else None for each in counts]
    rows = [[*row, mean] for row, mean in zip(table.rows, means, strict=True)]
    return Table(table.title, [*table.headings, "neurons / layer"], rows, table.note)


def of_metrics(
    title: str, found: Sequence[Found], x: str | None = None, costs: bool = True, names: Sequence[str] | None = None
) -> Table:
    """A row for each result: label, the number it stands at, its records, its means, and what it cost.

    Args:
        title: of the table.
        found: in the table's order.
        x: what the rows' numbers count; None for rows that have none.
        costs: whether seconds per edit are shown.
        names: of the metrics; all by default.
    """
    names = metrics(found) if names is None else list(names)
    rows: list[list[Value]] = []
    for each in found:
        row: list[Value] = [each.label]
        row += [_number(each.row.x)] if x else []
        row += [records(each.means), *(each.means.get(name) for name in names)]
        if costs:
            spent = seconds_per_edit(each)
            row.append(None if spent is None else f"{text(spent, spent.records)} (batches: {spent.records})")
        rows.append(row)
    headings = ["", *([x] if x else []), "records", *(name.replace("_", " ") for name in names)]
    return Table(title, headings + (["seconds / edit"] if costs else []), rows, _note(names))


def _note(names: Sequence[str]) -> str:
    if names == ["perplexity"]:
        return "± standard error over windows of the text."
    return f"± standard error over records; in percent{', fluency in bits times 100' if 'fluency' in names else ''}."


def differences(found: Sequence[Found], reference: str) -> Table:
    """How much each row differs from the reference on the same records: paired, and so more exact than two means."""
    base = next(each for each in found if each.label == reference)
    names = [name for name in ("efficacy", "generalization", "specificity") if name in base.means] or [
        name for name in metrics(found) if name in base.result.records[0]
    ]
    rows: list[list[Value]] = []
    for each in found:
        if each is not base and not each.unedited:
            means = {name: paired(each.result.records, base.result.records, name) for name in names}
            rows.append([each.label, records(means), *means.values()])
    title = f"Difference from “{reference}” on the same records"
    return Table(
        title, ["", "records", *(f"Δ {name}" for name in names)], rows, "percentage points ± paired standard error."
    )


def dots(name: str, title: str, found: Sequence[Found]) -> Dots:
    """The headline metrics of each row."""
    return Dots(name, title, [(each.label, each.means) for each in found], headline(found))


def lines(name: str, title: str, x: str, found: Sequence[Found], logarithmic: bool = False) -> Lines:
    """The headline metrics against the rows' numbers."""
    series: dict[str, list[tuple[float, dict[str, Mean]]]] = {}
    for each in found:
        series.setdefault(each.label, []).extend((place, each.means) for place in placed(each, found))
    ordered = {label: sorted(points, key=lambda point: point[0]) for label, points in series.items()}
    return Lines(name, title, x, ordered, headline(found), logarithmic=logarithmic, faint=(UNEDITED,))


def placed(each: Found, found: Sequence[Found]) -> list[float]:
    """Where a row stands on the axis; one that has no number, as the unedited model, is drawn across."""
    if each.row.x is not None:
        return [each.row.x]
    places = [other.row.x for other in found if other.row.x is not None]
    return sorted({min(places), max(places)}) if places else []


def panels(found: Sequence[Found]) -> dict[str, list[Found]]:
    """The rows by their panel, in order."""
    parts: dict[str, list[Found]] = {}
    for each in found:
        parts.setdefault(each.row.panel, []).append(each)
    return parts


def _number(x: float | None) -> Value:
    if x is None:
        return None
    return int(x) if float(x).is_integer() else x
