"""Runs cells: in any order, in several processes at once, from where it was stopped, nothing twice."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from filelock import Timeout

from ece.edits.edit import Edit
from ece.edits.folder import append
from ece.edits.journal import Journal
from ece.errors import UserError
from ece.facts import Fact
from ece.methods.engine import edit_in_sequence
from ece.methods.registry import method
from ece.models import Model
from ece.studies.cells import Cell, Run, Track
from ece.studies.inputs import Inputs
from ece.studies.measures import MEASURES, Record
from ece.studies.searches import Searches
from ece.studies.store import Result, Store

log = logging.getLogger(__name__)

SEED = 0
WAIT = 2.0
"""Seconds between two looks at what other processes work on."""


@dataclass
class Runner:
    """Runs tracks on one model, and keeps what it finds in a store."""

    model: Model
    inputs: Inputs
    store: Store
    provenance: dict[str, Any]
    notify: Callable[[Track, int, Result | None], None] = lambda track, edits, result: None
    """Told the edits made so far: after each batch, and with each finished cell."""

    failed: dict[str, str] = field(default_factory=dict)
    """By a track's label: why it could not be measured."""

    _cells: list[Cell] = field(default_factory=list)
    """Of all tracks."""

    def __call__(self, tracks: Sequence[Track]) -> None:
        """Finish all tracks; those that another process works on are waited for, and taken over if it dies."""
        given_up: set[str] = set()
        self._cells = [cell for track in tracks for cell in track.cells]
        while open_tracks := [track for track in tracks if track.key not in given_up and self._left(track)]:
            tried = [self._tried(track, given_up) for track in open_tracks]
            if not any(tried):
                time.sleep(WAIT)

    def _left(self, track: Track) -> Track | None:
        """The track without its finished cells."""
        cells = [cell for cell in track.cells if not self.store.has(cell)]
        return track.model_copy(update={"cells": cells}) if cells else None

    def _tried(self, track: Track, given_up: set[str]) -> bool:
        """Run the track, unless another process does, or something in it cannot be measured on the unedited model."""
        try:
            if blocked := [cell for cell in track.cells if cell.unedited().key in given_up]:
                raise UserError(f"{blocked[0].measure} cannot be measured on the unedited model")
            with self.store.lock(track).acquire(timeout=0):
                left = self._left(track)
                if left is not None:
                    self._run(left)
                return True
        except Timeout:
            return False
        except UserError as error:
            log.warning("%s: left out: %s", track.label, error)
            self.failed[track.label] = str(error)
            given_up.add(track.key)
            return True

    def _run(self, track: Track) -> None:
        torch.manual_seed(SEED)
        run = track.run
        if run.method is None:
            return self._measure(track, 0, [])
        last = max(cell.edits for cell in track.cells)
        facts = self.inputs.facts(run.data)[:last]
        made: list[Edit] = []
        with reverted_after(self.model, made):
            for edits in self._edited(run, facts, made):
                self.notify(track, edits, None)
                self._measure(track, edits, made)
        if missed := self._left(track):
            counts = sorted({cell.edits for cell in missed.cells})
            raise ValueError(f"{track.label}: no batch ends after {counts} edits")
        return self.store.forget_edits(run)

    def _edited(self, run: Run, facts: Sequence[Fact], made: list[Edit]) -> Iterator[int]:
        """Edit batch after batch: first those that were saved, then new ones, which are saved. Yields their number."""
        assert run.method is not None
        place, done = self.store.edits(run), 0
        earlier = [held.load(self.model.device) for held in Journal.read(place).in_force]
        for edit in earlier:
            edit.apply(self.model)
            made.append(edit.without_keys())
            done += len(edit.manifest.facts)
            yield done
        recipe = method(run.method).with_options(run.changes)
        if done < len(facts):
            search = Searches(self.store.targets)
            for edit in edit_in_sequence(self.model, facts[done:], recipe, run.batch_size, earlier, search=search):
                made.append(edit)
                append(place, edit)
                done += len(edit.manifest.facts)
                yield done

    def _measure(self, track: Track, edits: int, made: Sequence[Edit]) -> None:
        """Measure the cells that are due after so many edits, those of more records first."""
        for cell in largest_first(track.cells):
            if cell.edits == edits and not self.store.has(cell):
                records, seconds = self._taken(cell) or self._measured(cell)
                result = Result(
                    cell=cell, records=records, edits=described(made), seconds=seconds, provenance=self.provenance
                )
                self.store.save(result)
                self.notify(track, edits, result)

    def _measured(self, cell: Cell) -> tuple[list[Record], float]:
        """What is found on the model as it is now, and how long that took."""
        began = time.monotonic()
        records = MEASURES[cell.measure].records(self.model, cell.of, self.inputs)
        return records, time.monotonic() - began

    def _taken(self, cell: Cell) -> tuple[list[Record], float] | None:
        """The same from a finished cell that measured these records among others."""
        for other in self._cells:
            if (part := cell.within(other)) and (whole := self.store.result(other)):
                records = whole.records[part]
                return records, whole.seconds * len(records) / len(whole.records)
        return None


def largest_first(cells: Iterable[Cell]) -> list[Cell]:
    """Those that measure more come first: others may find their records among theirs."""
    return sorted(cells, key=lambda cell: -MEASURES[cell.measure].size(cell.of))


@contextmanager
def reverted_after(model: Model, made: list[Edit]) -> Iterator[None]:
    """Take the edits that are in the list at the end off the model, the last first."""
    try:
        yield
    finally:
        while made:
            made.pop().revert(model)


def described(made: Sequence[Edit]) -> dict[str, Any]:
    """What a run's edits were made of, and how long each batch took."""
    if not made:
        return {}
    manifests = [edit.manifest for edit in made]
    facts = [entry for manifest in manifests for entry in manifest.facts]
    return {
        "layers": manifests[-1].layers,
        "neurons": manifests[-1].neurons,
        "facts": [len(manifest.facts) for manifest in manifests],
        "seconds": [manifest.seconds for manifest in manifests],
        "searching": [manifest.phases.get("targets", 0.0) for manifest in manifests],
        "evaluations": sum(entry.evaluations for entry in facts) / len(facts),
        "failed": sum(entry.failed for entry in facts),
    }
