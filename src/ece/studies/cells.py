"""Cells: the smallest things a study measures. Plain data, so that a cell's hash is its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Hashed(BaseModel):
    """Plain data with a name made from its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the content's SHA-256."""
        text = json.dumps(self.content(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def content(self) -> dict[str, Any]:
        """What tells it from others."""
        return self.model_dump(mode="json")


class Run(Hashed):
    """How a model is edited: batch after batch of the data's facts, from the first. Cells share the edits of a run."""

    data: str
    """The kind of benchmark whose facts are edited."""

    method: str | None = None
    """None: the unedited model."""

    changes: dict[str, Any] = {}
    """Options of the method as they were asked for, which may be said in several ways: no part of its key."""

    options: dict[str, Any] = {}
    """All options as they are with these changes: another default makes another run."""

    batch_size: int = 0

    def content(self) -> dict[str, Any]:
        """All but `changes`, which come to `options`."""
        return self.model_dump(mode="json", exclude={"changes"})


class Cell(Hashed):
    """One measurement: a run, how many of its edits, and what is measured then."""

    run: Run
    edits: int
    measure: str
    """A name in `ece.studies.measures.MEASURES`."""

    of: dict[str, Any] = {}
    """What the measure is told: the data, the slice of records, and so on."""

    def content(self) -> dict[str, Any]:
        """With its run's content."""
        return self.model_dump(mode="json") | {"run": self.run.content()}

    def unedited(self) -> Cell:
        """The same measurement on the unedited model."""
        return Cell(run=Run(data=self.run.data), edits=0, measure=self.measure, of=self.of)

    @property
    def range(self) -> slice | None:
        """Which records, where each is measured on its own: of texts, what is measured depends on all of them."""
        return (
            slice(self.of["start"], self.of["stop"]) if self.measure == "quality" and "texts" not in self.of else None
        )

    def within(self, other: Cell) -> slice | None:
        """Where its records stand among another's, which measures the same on more of them; None where it does not."""
        here, there = self.range, other.range
        if here is None or there is None or not there.start <= here.start <= here.stop <= there.stop:
            return None
        same = other.model_copy(update={"of": other.of | {"start": here.start, "stop": here.stop}})
        return slice(here.start - there.start, here.stop - there.start) if same.key == self.key != other.key else None


class Track(BaseModel):
    """Cells that are measured along one run. Cells of the unedited model need no run, and stand alone."""

    run: Run
    cells: list[Cell]
    label: str = ""
    """For people."""

    @property
    def key(self) -> str:
        """What the track is locked by."""
        return self.run.key if self.run.method else self.cells[0].key


def tracks(cells: Iterable[Cell], common: Mapping[str, Any] | None = None) -> list[Track]:
    """The cells by what they share, each once, in the order in which they first come.

    Args:
        cells: in any order; a cell may come several times.
        common: options that labels do not mention.
    """
    found: dict[str, Track] = {}
    for cell in {cell.key: cell for cell in cells}.values():
        key = Track(run=cell.run, cells=[cell]).key
        found.setdefault(key, Track(run=cell.run, cells=[], label=_label(cell, common or {}))).cells.append(cell)
    return list(found.values())


def _label(cell: Cell, common: Mapping[str, Any]) -> str:
    run = cell.run
    if run.method is None:
        what = [str(cell.of[name]) for name in ("data", "task") if name in cell.of]
        if "stop" in cell.of:
            what.append(f"{cell.of['stop'] - cell.of['start']:,} records")
        what += [name for name, value in cell.of.items() if value is True]
        return ", ".join([f"unedited: {cell.measure}", *what])
    changes = [f"{name}={value}" for name, value in run.changes.items() if common.get(name) != value]
    return ", ".join([f"{run.method} on {run.data} by {run.batch_size}", *changes])
