"""The journal: a folder of entries that only grows. Each is there whole or not at all, and names the one before it.

An entry is a batch of facts (`batch-0001`), or says that facts were taken out (`undo-0002`): how many of the edits in
force stay, and the edits that follow them from then on. What is in force is the sum of all entries, in order.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field

from ece.edits.edit import TENSORS, Edit, Manifest, checked
from ece.edits.lock import held
from ece.edits.seal import FORMAT, MANIFEST, Digest, FileName, read_manifest, sealed
from ece.errors import UserError
from ece.facts import Fact
from ece.files import Unwritten, new_folder
from ece.provenance import now, versions

Key = tuple[str, str]
"""Subject and prompt: what a fact is about."""

_NAME = re.compile(r"(batch|undo)-(\d{4,})")


def key(fact: Fact) -> Key:
    """What the fact is about."""
    return fact.subject, fact.prompt


class Removed(BaseModel):
    """A fact that was taken out."""

    prompt: str
    subject: str
    target: str
    relation: str | None = None
    batch: int
    """The entry that had put it in."""

    by: str | None = None
    """The target that takes its place, where it was superseded."""

    @property
    def fact(self) -> Fact:
        """The fact itself."""
        return Fact(self.prompt, self.subject, self.target, self.relation)


class Undone(BaseModel):
    """Facts taken out, and what takes the place of the edits that had them and of those behind."""

    format: int = FORMAT
    number: int = 0
    previous: Digest | None = None
    files: dict[FileName, Digest] = {}
    """The seals of the edits in this entry, by their folders' names; in order."""

    reason: Literal["undone", "superseded"] = "undone"
    how: Literal["cut", "replayed", "recomputed"]
    """Nothing came behind; solved again from the stored targets; or searched for again."""

    keep: int = Field(ge=0)
    """How many of the edits in force stay."""

    removed: list[Removed]
    created: str = Field(default_factory=now)
    versions: dict[str, str] = Field(default_factory=versions)


@dataclass(frozen=True)
class Held:
    """An edit in force: where it lies, what its manifest says, and the seal that tells it from all others."""

    place: Path
    manifest: Manifest
    seal: str

    @property
    def facts(self) -> list[Fact]:
        """All its facts, those that failed among them."""
        return [entry.fact for entry in self.manifest.facts]

    def load(self, device: torch.device | str = "cpu") -> Edit:
        """Read it.

        Raises:
            UserError: it is damaged.
        """
        return Edit.load(self.place, device)


@dataclass(frozen=True)
class Entry:
    """One folder of the journal."""

    number: int
    place: Path
    manifest: Manifest | Undone
    seal: str
    edits: tuple[Held, ...]
    """The edits in it: a batch's own, or those that an undo solved again."""


@dataclass(frozen=True)
class Journal:
    """What a folder says, as it was read. Reading needs no lock: entries never change."""

    folder: Path
    entries: tuple[Entry, ...] = ()

    @classmethod
    def read(cls, folder: Path | str, until: int | None = None) -> Journal:
        """Read all manifests; the tensors are read when they are asked for.

        Args:
            folder: of the journal; empty or missing is a journal without entries.
            until: only so many entries, from the first.

        Raises:
            UserError: a manifest is missing or damaged, or an entry does not follow the one before it.
        """
        folder = Path(folder)
        entries: list[Entry] = []
        for number, place in enumerate(entry_folders(folder)[:until], 1):
            entry = read_entry(place)
            follow(entries[-1] if entries else None, entry, number, folder)
            entries.append(entry)
        return cls(folder, tuple(entries))

    @property
    def head(self) -> str:
        """The last entry's seal: it stands for all that is there. Empty where nothing is."""
        return self.entries[-1].seal if self.entries else ""

    @property
    def in_force(self) -> list[Held]:
        """The edits that make the edited model, in order."""
        now: list[Held] = []
        for entry in self.entries:
            if isinstance(entry.manifest, Undone):
                now = [*now[: entry.manifest.keep], *entry.edits]
            elif not entry.manifest.left_out:
                now += entry.edits
        return now

    @property
    def active(self) -> dict[Key, tuple[Fact, int]]:
        """The facts in force, by what they are about, with the entry that put them in; those that failed too."""
        found: dict[Key, tuple[Fact, int]] = {}
        for entry in self.entries:
            if isinstance(entry.manifest, Undone):
                for removed in entry.manifest.removed:
                    found.pop((removed.subject, removed.prompt), None)
            elif not entry.manifest.left_out:
                found |= {key(entry_.fact): (entry_.fact, entry.number) for entry_ in entry.manifest.facts}
        return found

    def behind(self, gone: Collection[Key]) -> tuple[int, bool]:
        """How many edits in force stay without these facts, and whether facts come behind that must be made again."""
        state = self.in_force
        keep = next((i for i, held in enumerate(state) if any(key(fact) in gone for fact in held.facts)), len(state))
        return keep, any(key(fact) not in gone for held in state[keep:] for fact in held.facts)

    def left_out(self, run: str) -> list[Fact]:
        """Facts of batches that the guard left out of this run."""
        manifests = [entry.manifest for entry in self.entries if isinstance(entry.manifest, Manifest)]
        return [e.fact for m in manifests if m.left_out and m.run and m.run.id == run for e in m.facts]

    def batch(self, edit: Edit, **more: object) -> Journal:
        """Write one more batch, whole and onto the disk; the journal with it. Only under the lock.

        Args:
            edit: its tensors are not written where `left_out` says why it is no part of the model.
            more: of the manifest: `run`, `metrics`, `left_out`.

        Raises:
            UserError: the disk is full, or another entry has appeared.
        """
        number = len(self.entries) + 1
        about = {"number": number, "previous": self.head or None} | more
        manifest = edit.manifest.model_copy(update=about)
        if more.get("left_out"):
            edit = Edit({}, {}, {}, edit.hidden[:0], edit.delta[:0], manifest)
        with self._new(f"batch-{number:04d}") as temporary:
            replace(edit, manifest=manifest).write(temporary)
        return self._grown(f"batch-{number:04d}")

    def undo(
        self,
        gone: Collection[Key],
        edits: Sequence[Edit] = (),
        *,
        how: Literal["cut", "replayed", "recomputed"] = "cut",
        superseded: Mapping[Key, str] | None = None,
    ) -> Journal:
        """Write one more entry that takes facts out; the journal with it. Only under the lock.

        Args:
            gone: what the facts are about.
            edits: what takes the place of all edits from the first that is touched on.
            how: they were made.
            superseded: the targets that take the old ones' place.

        Raises:
            UserError: a fact is not in force, the disk is full, or another entry has appeared.
        """
        active = self.active
        for about in gone:
            if about not in active:
                raise UserError(f"{self.folder}: no fact in force about {about[0]!r} with the prompt {about[1]!r}")
        undone = Undone(
            reason="superseded" if superseded else "undone",
            how=how,
            keep=self.behind(gone)[0],
            removed=[
                Removed(**asdict(fact), batch=number, by=(superseded or {}).get(about))
                for about, (fact, number) in active.items()
                if about in gone
            ],
        )
        number = len(self.entries) + 1
        with self._new(f"undo-{number:04d}") as temporary:
            seals = {}
            for i, edit in enumerate(edits, 1):
                inside = temporary / f"edit-{i:04d}"
                inside.mkdir()
                manifest = edit.manifest.model_copy(update={"number": i, "previous": None})
                seals[inside.name] = replace(edit, manifest=manifest).write(inside)
            about = {"number": number, "previous": self.head or None, "files": seals}
            (temporary / MANIFEST).write_bytes(sealed(undone.model_copy(update=about)))
        return self._grown(f"undo-{number:04d}")

    @contextmanager
    def _new(self, name: str) -> Iterator[Path]:
        if any(len(self.entries) < int(path.name.split("-")[1]) for path in entry_folders(self.folder)):
            raise UserError(f"{self.folder}: another process has written to it; run the command again")
        try:
            with new_folder(self.folder / name) as temporary:
                yield temporary
        except Unwritten as error:
            safe = "all earlier entries are safe: make room, and the same command goes on from there"
            raise UserError(f"{error}; {safe}") from error

    def _grown(self, name: str) -> Journal:
        return replace(self, entries=(*self.entries, read_entry(self.folder / name)))


@contextmanager
def writing(folder: Path | str) -> Iterator[Journal]:
    """The journal, held for writing: what a killed process left half done is cleared away.

    Raises:
        UserError: another process holds it, it is damaged, or the folder holds something else.
    """
    folder = Path(folder)
    refuse_other(folder)
    with held(folder):
        for path in folder.glob(".*-*"):
            if path.is_dir() and not path.is_symlink() and re.fullmatch(r"\.(batch|undo)-\d+-\w+", path.name):
                shutil.rmtree(path, ignore_errors=True)
        yield Journal.read(folder)


def refuse_other(folder: Path) -> None:
    """Leave alone what is not a journal.

    Raises:
        UserError: the folder holds something else.
    """
    visible = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if folder.is_file() or (visible and not entry_folders(folder)):
        raise UserError(f"{folder} holds something that is not edits; give another folder")


def entry_folders(folder: Path) -> list[Path]:
    """The entries' folders, in order."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def read_entry(place: Path) -> Entry:
    """One entry's manifests.

    Raises:
        UserError: one is missing or damaged; the file is named.
    """
    kind, _, number = place.name.partition("-")
    if kind == "batch":
        manifest, seal = read_manifest(place / MANIFEST, Manifest)
        return Entry(int(number), place, manifest, seal, (Held(place, manifest, seal),))
    undone, seal = read_manifest(place / MANIFEST, Undone)
    edits = []
    for name, wanted in undone.files.items():
        manifest, found = read_manifest(place / name / MANIFEST, Manifest)
        if found != wanted:
            raise UserError(f"{place / name / MANIFEST}: damaged (it is not the one that {place / MANIFEST} names)")
        edits.append(Held(place / name, manifest, found))
    return Entry(int(number), place, undone, seal, tuple(edits))


def follow(before: Entry | None, entry: Entry, number: int, folder: Path) -> None:
    """Check that an entry comes right behind the one before it.

    Raises:
        UserError: one is missing in between, or it was made behind another one.
    """
    if entry.number != number:
        raise UserError(f"{folder}: entry {number:04d} is missing, yet {entry.place.name} is there; restore it")
    if entry.manifest.format > 1 and (entry.manifest.number, entry.manifest.previous) != (
        number,
        before.seal if before else None,
    ):
        there = before.place.name if before else "nothing"
        raise UserError(
            f"{entry.place / MANIFEST}: was not made behind {there} as it is here; one of the two was replaced:"
            " restore the folder from a copy"
        )


def verify(folder: Path | str) -> tuple[dict[Path, str], list[str]]:
    """Everything that is wrong with a journal, by file; and the seals of its entries, as far as they can be read.

    All entries are looked at, whatever is found.

    Raises:
        UserError: there is no journal there.
    """
    folder = Path(folder)
    places = entry_folders(folder)
    if not places:
        raise UserError(f"{folder}: no edits in it")
    wrong: dict[Path, str] = {}

    def note(error: UserError, file: Path) -> None:
        path, _, what = str(error).partition(": ")
        known = Path(path).is_relative_to(folder)
        wrong.setdefault(Path(path) if known else file, what if known else str(error))

    seals: list[str] = []
    before: Entry | None = None
    number = 0
    for place in places:
        number += 1
        entry = None
        try:
            entry = read_entry(place)
            seals.append(entry.seal)
            if before is not None or number == 1:
                follow(before, entry, number, folder)
        except UserError as error:
            note(error, place / MANIFEST)
        number = int(place.name.split("-")[1])
        before = entry
        for inside in [place] if place.name.startswith("batch") else sorted(place.glob("edit-*")):
            try:
                manifest, _ = read_manifest(inside / MANIFEST, Manifest)
                if not manifest.left_out:
                    checked(inside, TENSORS, manifest.files)
                    Edit.load(inside)
            except UserError as error:
                note(error, inside)
    return wrong, seals
