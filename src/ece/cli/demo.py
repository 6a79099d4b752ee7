"""`ece demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ece.cli.options import AsJson, Method, ModelName
from ece.cli.output import show
from ece.errors import UserError


def demo(
    model: ModelName = "smollm2",
    output: Annotated[Path, typer.Option("--out", help="Folder for the edits.")] = Path("edits-demo"),
    facts: Annotated[int, typer.Option(min=1, max=20, help="How many of the shipped facts.")] = 20,
    method: Method = "ece",
    as_json: AsJson = False,
) -> None:
    """Edit some of the shipped facts and show what the model says before and after."""
    from ece.demo import demonstrate, rendered
    from ece.models import load

    if output.exists():
        raise UserError(f"{output} exists already; delete it, or give another folder with --out")
    shown = demonstrate(load(model), output, facts, method)
    report = {
        "facts": shown.rows,
        "before": {name: asdict(mean) for name, mean in shown.before.items()},
        "after": {name: asdict(mean) for name, mean in shown.after.items()},
        "seconds_per_edit": shown.edit.manifest.seconds / len(shown.rows),
        "layers": shown.edit.manifest.layers,
        "neurons": shown.edit.manifest.neurons,
        "edits": str(shown.place),
    }
    show(as_json, report, rendered(shown))
