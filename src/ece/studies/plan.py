"""How long a study will take: from the timings of finished cells, or from a quick probe."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from ece.errors import UserError
from ece.methods.engine import edit, written_contexts
from ece.methods.recipe import Recipe
from ece.methods.registry import method
from ece.methods.searching import Search
from ece.models import Model
from ece.studies.cells import Cell, Run, Track
from ece.studies.inputs import Inputs
from ece.studies.measures import MEASURES
from ece.studies.searches import Searches, searching_alike
from ece.studies.store import Result, Store

log = logging.getLogger(__name__)

PROBED = 8
"""Records that a probe takes: fewer are slower for each of them than the many of a cell."""

PROBED_FACTS = 8
"""Facts that a probe takes: a search for fewer is much slower for each of them than a batch's."""

EXTENT = ("start", "stop", "limit", "batch_size", "batches", "tokens")
"""What of a measure says how much of it, and not what."""


@dataclass
class Timings:
    """Seconds for an edit by method, and for a record by kind of measurement."""

    edits: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By method: edits and their seconds."""

    searches: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By method: edits, and those of their seconds that went into the search for targets."""

    measured: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """By kind: records and their seconds."""

    def learn(self, result: Result) -> None:
        """Take the timings of a finished cell."""
        cell = result.cell
        self.measured.setdefault(kind(cell), []).append((MEASURES[cell.measure].size(cell.of), result.seconds))
        if cell.run.method and result.edits:
            facts = sum(result.edits["facts"])
            self.edited(cell.run.method, facts, sum(result.edits["seconds"]), sum(result.edits.get("searching", ())))

    def edited(self, name: str, facts: int, seconds: float, searching: float) -> None:
        """Take the seconds of so many edits by the method, and those of them that the search took."""
        self.edits.setdefault(name, []).append((facts, seconds))
        self.searches.setdefault(name, []).append((facts, searching))

    def edit(self, name: str) -> float | None:
        """Seconds for an edit by the method."""
        return _rate(self.edits.get(name, ()))

    def editing(self, name: str, edits: int, found: int) -> float | None:
        """Seconds for so many edits by the method, if the targets of `found` of them are there already."""
        whole, search = self.edit(name), _rate(self.searches.get(name, ()))
        return None if whole is None else whole * edits - (search or 0) * found

    def record(self, cell: Cell) -> float | None:
        """Seconds for a record of the cell's kind of measurement."""
        return _rate(self.measured.get(kind(cell), ()))

    def measuring(self, cell: Cell) -> float | None:
        """Seconds that the cell's measurement takes, without its edits."""
        rate, size = self.record(cell), MEASURES[cell.measure].size(cell.of)
        if rate is None and cell.measure == "seconds":  # which is made of edits
            rates = [self.edit(name) for name in cell.of["methods"]]
            rate = None if None in rates else sum(rate for rate in rates if rate is not None) / len(rates)
        return None if rate is None else size * rate


@dataclass(frozen=True)
class Step:
    """What is left of a track."""

    track: Track
    edits: int
    cells: int
    seconds: float | None
    """None: not known."""


def kind(cell: Cell) -> str:
    """What the cell measures, whatever the extent."""
    what = {name: value for name, value in cell.of.items() if name not in EXTENT}
    return f"{cell.measure} {json.dumps(what, sort_keys=True)}"


def steps(tracks: Iterable[Track], store: Store, timings: Timings, made: dict[str, int] | None = None) -> list[Step]:
    """What is left of each track; finished ones are left out.

    Args:
        tracks: all of them.
        store: knows which cells are finished, and keeps edits of unfinished tracks.
        timings: of what was done before.
        made: edits made by now, by the track's key, where more is known than the store does.
    """
    left = [(track, [cell for cell in track.cells if not store.has(cell)]) for track in tracks]
    found: list[Step] = []
    searched: dict[str, int] = {}
    for track, cells in sorted(left, key=lambda each: bool(each[1])):  # finished tracks have searched
        last, alike = max(cell.edits for cell in cells or track.cells), searching_alike(track.run)
        there = (made or {}).get(track.key, saved_edits(store, track.run)) if cells else last
        edits, already = max(0, last - there), max(there, searched.get(alike, 0))
        searched[alike] = max(last, already)
        if not cells:
            continue
        parts = [timings.measuring(cell) for cell in cells]
        if track.run.method and edits:
            parts.append(timings.editing(track.run.method, edits, min(edits, already - there)))
        known = [part for part in parts if part is not None]
        found.append(Step(track, edits, len(cells), sum(known) if len(known) == len(parts) else None))
    return found


def saved_edits(store: Store, run: Run) -> int:
    """About how many edits of the run are saved."""
    return run.batch_size * len(list(store.edits(run).glob("batch-*"))) if run.method else 0


def probe(model: Model, inputs: Inputs, tracks: Sequence[Track], timings: Timings) -> None:
    """Time what no timing is known of, on a few facts and records; the model is left as it is."""
    cells = {kind(cell): cell for track in tracks for cell in track.cells if cell.measure != "seconds"}
    runs = {track.run.method: track.run for track in tracks if track.run.method}
    for cell in (cell for track in tracks for cell in track.cells if cell.measure == "seconds"):
        for name in cell.of["methods"]:
            runs.setdefault(name, Run(data=cell.of["data"], method=name, batch_size=cell.of["batch_size"]))
    missing_cells = [cell for cell in cells.values() if timings.record(cell) is None]
    missing_runs = [run for name, run in runs.items() if timings.edit(name) is None]
    contexts = written_contexts(model) if missing_runs else []
    length = len(missing_cells) + len(missing_runs)
    with TemporaryDirectory() as folder, tqdm(total=length, desc="probe", leave=False, disable=None) as bar:
        search = Searches(Path(folder))
        for cell in missing_cells:
            few = cell.model_copy(update={"of": MEASURES[cell.measure].first(cell.of, PROBED)})
            timings.learn(_timed(model, few, inputs))
            bar.update()
        for run in missing_runs:
            _probe_edits(model, inputs, run, contexts, timings, search)
            bar.update()


def _timed(model: Model, cell: Cell, inputs: Inputs) -> Result:
    began = time.monotonic()
    MEASURES[cell.measure].records(model, cell.of, inputs)
    return Result(cell=cell.unedited(), records=[], seconds=time.monotonic() - began)


def _probe_edits(model: Model, inputs: Inputs, run: Run, contexts: list[str], timings: Timings, search: Search) -> None:
    """A search takes its time for each fact, an update for each batch; what is made once is not counted."""
    assert run.method is not None
    facts = inputs.facts(run.data)[:PROBED_FACTS]
    try:
        chosen = method(run.method).with_options(run.changes)
        manifest = edit(model, facts, chosen, before=contexts, search=search).manifest
    except UserError as error:
        log.warning("%s cannot be timed: %s", run.method, error)
        return
    phases: dict[str, Any] = manifest.phases or {"targets": manifest.seconds}
    update, size = phases.get("update", 0.0), max(run.batch_size, 1)
    searching = phases.get("targets", 0.0) * size / len(facts)
    if isinstance(chosen, Recipe):
        searching *= chosen.targets.evaluations(size) / chosen.targets.evaluations(len(facts))
    timings.edited(run.method, size, searching + update, searching)


def _rate(seen: Iterable[tuple[int, float]]) -> float | None:
    seen = list(seen)
    count = sum(number for number, _ in seen)
    return sum(seconds for _, seconds in seen) / count if count else None


def total(steps: Iterable[Step]) -> float | None:
    """Seconds of all steps; None where one is not known."""
    seconds = [step.seconds for step in steps]
    return None if None in seconds else sum(second for second in seconds if second is not None)


def spoken(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
