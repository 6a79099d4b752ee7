"""Saved edits on a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from ece.edits.edit import Edit
from ece.edits.journal import Journal, writing
from ece.edits.seal import MANIFEST
from ece.errors import UserError
from ece.models import Model

log = logging.getLogger(__name__)


def load_edits(folder: Path | str, model: Model) -> list[Edit]:
    """The edits in force of a journal, oldest first; or the one edit that `Edit.save` wrote.

    Raises:
        UserError: there are none, they are damaged, or they were made for another model.
    """
    edits = _one(Path(folder), model) if (Path(folder) / MANIFEST).is_file() else _in_force(folder, model)
    for edit in edits:
        edit.check(model)
    return edits


def _one(folder: Path, model: Model) -> list[Edit]:
    edit = Edit.load(folder, model.device)
    if edit.manifest.previous:
        log.warning("%s is one batch of several; those before it are left out; %s has all", folder, folder.parent)
    return [edit]


def _in_force(folder: Path | str, model: Model) -> list[Edit]:
    journal = Journal.read(folder)
    if not journal.entries:
        raise UserError(f"{folder}: no edits in it; `ece edit --out {folder}` makes some")
    return [held.load(model.device) for held in journal.in_force]


def append(folder: Path | str, edit: Edit) -> Path:
    """Save one more edit behind those that are there.

    Raises:
        UserError: another process holds the folder, or it is damaged.
    """
    with writing(folder) as journal:
        return journal.batch(edit).entries[-1].place


@dataclass
class Applied:
    """The edits of a journal that are on a model, and what keeps them in step with it."""

    model: Model
    edits: list[Edit] = field(default_factory=list)
    seals: list[str] = field(default_factory=list)
    head: str = ""
    entries: int = 0
    """How many entries the journal has."""

    def follow(self, journal: Journal) -> None:
        """Bring the model to what is in force; edits that stay in front are left alone.

        Raises:
            UserError: an edit is damaged, or was made for another model; nothing is changed.
        """
        wanted = journal.in_force
        same = 0
        while same < min(len(wanted), len(self.seals)) and wanted[same].seal == self.seals[same]:
            same += 1
        new = [held.load(self.model.device) for held in wanted[same:]]
        for edit in new:
            edit.check(self.model)
        self._exchange(self.edits[same:], new)
        self.edits = [*self.edits[:same], *new]
        self.seals = [held.seal for held in wanted]
        self.head, self.entries = journal.head, len(journal.entries)

    def made(self, edit: Edit, journal: Journal) -> None:
        """Take note of an edit that is applied already and is the journal's last."""
        self.edits.append(edit)
        self.seals.append(journal.in_force[-1].seal)
        self.head, self.entries = journal.head, len(journal.entries)

    def _exchange(self, old: list[Edit], new: list[Edit]) -> None:
        """Take edits off and apply others; where they are changes of weights alone, the weights are written once."""
        if any(edit.memory is not None for edit in [*old, *new]):
            for edit in reversed(old):
                edit.revert(self.model)
            for edit in new:
                edit.apply(self.model)
        elif old:
            self.model.overlay.replace(self.model, [edit.deltas for edit in old], [edit.deltas for edit in new])
        else:
            self.model.overlay.push_all(self.model, [edit.deltas for edit in new])
