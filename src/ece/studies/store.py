"""A study's folder: its settings, a file for each finished cell, locks, and the edits of unfinished runs.

settings.json        what all cells have in common; other settings are refused
cells/KEY.json       a finished cell: one line of JSON, there whole or not at all
results.jsonl        all of them, with means instead of records
runs/KEY/batch-…     edits made so far of a run that is not finished
locks/KEY            held by the process that works on a track
targets/KEY          what searches found, for runs that differ in what comes after the search only
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ece.errors import UserError, requiring
from ece.files import new_file
from ece.studies.cells import Cell, Run, Track

with requiring("a study", "studies"):
    from filelock import FileLock


class Result(BaseModel):
    """A finished cell."""

    cell: Cell
    records: list[dict[str, Any]]
    """What was measured, record by record."""

    edits: dict[str, Any] = {}
    """Of the run until then: layers, neurons, failed facts, evaluations, seconds of each batch and its search."""

    seconds: float
    """That measuring took."""

    provenance: dict[str, Any] = {}
    """Model, data, versions, machine, seed."""


@dataclass(frozen=True)
class Store:
    """The folder."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str, settings: dict[str, Any]) -> Store:
        """Start a folder, or go on with one that was started with the same settings.

        Raises:
            UserError: the folder was made with other settings, or holds something else.
        """
        store = cls(Path(folder))
        store.keep(settings)
        for name in ("cells", "locks"):
            (store.folder / name).mkdir(exist_ok=True)
        return store

    def keep(self, settings: dict[str, Any]) -> None:
        """Note the settings in a new folder; in one that has some, they must be these.

        Raises:
            UserError: as `check`.
        """
        self.check(settings)
        if not self._settings.exists():
            with new_file(self._settings) as temporary:
                temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def check(self, settings: dict[str, Any]) -> None:
        """Refuse other settings, naming the first that differs; nothing is written.

        Raises:
            UserError: the folder was made with other settings, or holds something else.
        """
        if not self._settings.exists():
            if self.folder.is_file() or (
                self.folder.is_dir() and any(path.name[0] != "." for path in self.folder.iterdir())
            ):
                raise UserError(f"{self.folder} holds something that is not a study; give another folder with --out")
            return
        try:
            there = json.loads(self._settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self._settings}: cannot be read ({error}); give another folder with --out") from error
        for name in dict.fromkeys([*there, *settings]):
            old, new = there.get(name), settings.get(name)
            if old != new:
                raise UserError(
                    f"{self.folder} was made with {name} = {_short(old)}, now it is {_short(new)};"
                    " give another folder with --out"
                )

    @property
    def _settings(self) -> Path:
        return self.folder / "settings.json"

    def has(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return self._place(cell).exists()

    def result(self, cell: Cell) -> Result | None:
        """The cell's result, or None where it is not finished.

        Raises:
            UserError: its file is damaged.
        """
        place = self._place(cell)
        return _read(place) if place.exists() else None

    def results(self) -> list[Result]:
        """All finished cells.

        Raises:
            UserError: the file of one is damaged.
        """
        return [_read(file) for file in sorted((self.folder / "cells").glob("*.json"))]

    def save(self, result: Result) -> None:
        """Keep a finished cell."""
        with new_file(self._place(result.cell)) as temporary:
            temporary.write_text(result.model_dump_json() + "\n", encoding="utf-8")

    def lock(self, track: Track) -> FileLock:
        """Held while a process works on the track. The system releases it when the process ends, however it ends."""
        return FileLock(self.folder / "locks" / track.key)

    def edits(self, run: Run) -> Path:
        """Where the run's edits are kept until all its cells are finished."""
        return self.folder / "runs" / run.key

    @property
    def targets(self) -> Path:
        """Where what searches found is kept."""
        return self.folder / "targets"

    def forget_edits(self, run: Run) -> None:
        """Delete them."""
        shutil.rmtree(self.edits(run), ignore_errors=True)

    def _place(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.key}.json"


def _read(place: Path) -> Result:
    try:
        return Result.model_validate_json(place.read_bytes())
    except ValidationError as error:
        raise UserError(f"{place}: damaged; delete it, and the cell is measured again") from error


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
