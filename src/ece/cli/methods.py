"""`ece methods`."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ece.cli.options import AsJson
from ece.cli.output import show


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's options.")] = None, as_json: AsJson = False
) -> None:
    """List the methods, or one method's options with their values and meanings."""
    from ece.methods.describe import options
    from ece.methods.presets import presets
    from ece.methods.registry import METHODS, method

    if name is None:
        table = Table(box=SIMPLE_HEAD)
        table.add_column("method", no_wrap=True)
        table.add_column("what it is, and where it is from", ratio=5)
        table.add_column("cost of a fact, and what it needs", ratio=3)
        report: dict[str, Any] = {}
        for recipe in METHODS.values():
            about = (recipe.summary, recipe.source, recipe.cost, recipe.needs)
            summary, source, cost, needs = map(escape, about)
            table.add_row(recipe.name, f"{summary}\n[dim]{source}[/]", f"{cost}\n[dim]{needs}[/]")
            report[recipe.name] = dict(zip(("summary", "source", "cost", "needs"), about, strict=True))
        show(as_json, report, table)
        return
    recipe = method(name)
    known = {preset: found.methods[name] for preset, found in presets().items() if name in found.methods}
    table = Table("option", "value", "meaning", title=f"{recipe.name}: {recipe.summary}\n{recipe.source}")
    for option in options(recipe):
        table.add_row(option.name, escape(str(option.value)), escape(option.meaning))
    for preset, setting in known.items():
        table.add_section()
        table.add_row(f"--preset {preset}", "", escape(setting.source))
        for option, value in setting.options.items():
            table.add_row(f"  {option}", escape(str(value)))
    report = {
        "name": recipe.name,
        "summary": recipe.summary,
        "source": recipe.source,
        "cost": recipe.cost,
        "needs": recipe.needs,
        "options": recipe.options(),
        "meanings": {option.name: option.meaning for option in options(recipe)},
        "presets": {preset: setting.model_dump() for preset, setting in known.items()},
    }
    show(as_json, report, table)
