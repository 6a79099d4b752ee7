"""`ece diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from ece.cli.options import AsJson
from ece.cli.output import printable, show
from ece.errors import UserError

if TYPE_CHECKING:
    from ece.edits.journal import Journal

Edits = Annotated[str, typer.Argument(help="Folder of edits; FOLDER@N is what it was after its first N entries.")]


def diff(a: Edits, b: Edits, as_json: AsJson = False) -> None:
    """Compare what is in force in two folders of edits, or at two times in one: facts, and weights by layer."""
    from ece.edits.diff import diff as compared

    found = compared(_journal(a), _journal(b))
    rows = [("-", fact) for fact in found.only_a] + [("+", fact) for fact in found.only_b]
    table = Table("", "fact", title=f"{found.same} facts in both; {found.shared} batches the same")
    for sign, fact in rows:
        table.add_row(sign, escape(printable(str(fact))))
    for old, new in found.changed:
        table.add_row("~", escape(printable(f"{old} | {new.target}")))
    weights = Table("layer", "relative difference of the change")
    for layer, distance in found.weights.items():
        weights.add_row(str(layer), f"{distance:.3g}")
    report = {
        "only_a": [str(fact) for fact in found.only_a],
        "only_b": [str(fact) for fact in found.only_b],
        "changed": [[str(old), str(new)] for old, new in found.changed],
        "same": found.same,
        "shared_batches": found.shared,
        "weights": {str(layer): distance for layer, distance in found.weights.items()},
    }
    show(as_json, report, Group(table, weights))


def _journal(name: str) -> Journal:
    from ece.edits.journal import Journal

    folder, at, number = name.rpartition("@")
    if not at or Path(name).exists():
        folder, number = name, ""
    if number and not (number.isascii() and number.isdigit()):
        raise UserError(f"{name}: write FOLDER@N, with a number of entries")
    journal = Journal.read(folder, int(number) if number else None)
    if not journal.entries or (number and len(journal.entries) < int(number)):
        raise UserError(f"{folder}: no edits in it" if not journal.entries else f"{name}: it has fewer entries")
    return journal
