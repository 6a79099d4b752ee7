"""Results of a study's rows: means against the unedited model's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ece.files import finite, new_file
from ece.studies.measures import MEASURES
from ece.studies.setup import Setup
from ece.studies.store import Result, Store
from ece.studies.study import Found, Row


def found(rows: Sequence[Row], setup: Setup, store: Store) -> list[Found]:
    """The rows that are finished."""
    results = {row.cell.key: store.result(row.cell) for row in rows}
    befores = {key: store.result(row.cell.unedited()) for row in rows if (key := row.cell.key)}
    there: list[Found] = []
    for row in rows:
        result, before = results[row.cell.key], befores[row.cell.key]
        if result is not None:
            there.append(Found(row, result, means(result, before, setup), before))
    return there


def means(result: Result, before: Result | None, setup: Setup) -> dict[str, Any]:
    """A result's means; against the unedited model's records, unless it is the unedited model's itself."""
    cell = result.cell
    other = before.records if before is not None and cell.run.method is not None else None
    return MEASURES[cell.measure].means(cell.of, result.records, other, setup.inputs)


def join(setup: Setup, store: Store) -> None:
    """Write `results.jsonl`: a line for each finished cell, with means for its records."""
    lines = []
    for result in store.results():
        summary = means(result, store.result(result.cell.unedited()), setup)
        line = {
            "key": result.cell.key,
            **result.cell.model_dump(mode="json"),
            "means": {name: asdict(mean) for name, mean in summary.items()},
            "made": result.edits,
            "seconds": result.seconds,
            "provenance": result.provenance,
        }
        lines.append(json.dumps(finite(line), ensure_ascii=False) + "\n")
    with new_file(store.folder / "results.jsonl") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
