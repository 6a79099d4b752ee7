"""A folder of edits in the order they were made: `batch-0001`, `batch-0002`, ... each there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from ece.edits.edit import MANIFEST, Edit
from ece.errors import UserError
from ece.models import Model


def load_edits(folder: Path | str, model: Model) -> list[Edit]:
    """The edits of a folder, oldest first.

    Raises:
        UserError: there are none, one is damaged, or they were made for another model.
    """
    folder = Path(folder)
    places = _batches(folder)
    if not places:
        raise UserError(f"{folder}: no edits in it; `ece edit --out {folder}` makes some")
    edits = [Edit.load(place, model.device) for place in places]
    for edit in edits:
        edit.check(model)
    return edits


def started_folder(folder: Path | str, model: Model) -> list[Edit]:
    """The edits to go on from: none where the folder is new or empty.

    Raises:
        UserError: it holds something else, or edits of another model.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(_visible(folder)) and not _batches(folder)):
        raise UserError(f"{folder} holds something that is not edits; give another folder")
    return load_edits(folder, model) if _batches(folder) else []


def append(folder: Path | str, edit: Edit) -> Path:
    """Save one more edit behind those that are there."""
    folder = Path(folder)
    place = folder / f"batch-{len(_batches(folder)) + 1:04d}"
    edit.save(place)
    return place


def _batches(folder: Path) -> list[Path]:
    """Batch folders in order, without gaps.

    Raises:
        UserError: a batch in the middle is missing.
    """
    found = sorted(path for path in folder.glob("batch-*") if (path / MANIFEST).is_file()) if folder.is_dir() else []
    for number, path in enumerate(found, 1):
        if path.name != f"batch-{number:04d}":
            raise UserError(f"{folder}: batch-{number:04d} is missing or damaged, yet {path.name} is there")
    return found


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
