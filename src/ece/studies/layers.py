"""A control that the paper lacks: the automatic choice of layers against fixed windows."""

from __future__ import annotations

from collections.abc import Sequence

from ece.locate.layers import window_of
from ece.studies.figures import Picture
from ece.studies.setup import Setup
from ece.studies.shared import differences, dots, layers, of_metrics, panels
from ece.studies.study import Found, Row, Study
from ece.studies.tables import Table

AUTO = "automatic"


def windows(count: int) -> list[tuple[int, ...]]:
    """Windows in a model of so many layers: five wide ones in its lower two thirds, and single layers of theirs."""
    width = window_of(count)
    highest = max(0, min(count - 1 - width, round(2 * count / 3) - width))
    starts = sorted({round(step * highest / 4) for step in range(5)})
    wide = [tuple(range(start, start + width)) for start in starts]
    single = [(window[-1],) for window in wide] if width > 1 else []
    return wide + single


def rows(setup: Setup) -> list[Row]:
    """The automatic choice, and every window."""
    found = []
    for name in setup.varied({"layers": "auto"}):
        found.append(Row(AUTO, setup.quality(setup.run(name, {"layers": "auto"})), panel=name))
        for window in windows(setup.layers):
            text = ",".join(map(str, window))
            label = f"layers {window[0]}-{window[-1]}" if len(window) > 1 else f"layer {text}"
            found.append(Row(label, setup.quality(setup.run(name, {"layers": text})), panel=name))
    return found


def tables(found: Sequence[Found]) -> list[Table]:
    """By window, with the layers that were chosen, and the difference from the automatic choice."""
    made = []
    for name, part in panels(found).items():
        table = of_metrics(f"{name} in different layers", part)
        shown = [[*row, layers(each)] for row, each in zip(table.rows, part, strict=True)]
        made.append(Table(table.title, [*table.headings, "layers"], shown, table.note))
        made += [differences(part, AUTO)] if any(each.label == AUTO for each in part) else []
    return made


def figures(found: Sequence[Found]) -> list[Picture]:
    """All windows of each method."""
    return [dots(name, f"{name}: which layers are edited", part) for name, part in panels(found).items()]


STUDY = Study(
    name="layers",
    title="Which layers are edited",
    paper="",
    question="Does the automatic choice do as well as the best fixed window?",
    rows=rows,
    tables=tables,
    figures=figures,
)
