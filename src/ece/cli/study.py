"""`ece study`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ece.cli.options import AsJson, DeviceMap, Dtype, ModelName, Preset, RemoteCode
from ece.cli.output import err, show
from ece.errors import require

if TYPE_CHECKING:
    from ece.studies.plan import Step


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="One or more, comma-separated: methods, time, edits, abilities, batch-size, threshold, cases, neurons,"
            " clusters, layers; or all."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Records to edit and to measure on: CounterFact, zsRE, ...")],
    output: Annotated[Path, typer.Option("--out", help="Folder; a study that was stopped goes on there.")],
    model: ModelName = "smollm2",
    zsre: Annotated[
        list[Path] | None, typer.Option("--zsre", "--more-data", help="More records of another kind.")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="Folder of sst2.jsonl and so on; by default the data's, if it has them.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Held-out text, for perplexity.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated, see `ece methods`; by default all, or the first.")
    ] = None,
    edits: Annotated[int, typer.Option(min=1, help="In sequence, at most.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="Facts edited at a time.")] = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many edits and records: a quick look.")] = None,
    texts: Annotated[int, typer.Option(min=0, help="Records whose generated texts `methods` measures.")] = 100,
    asked: Annotated[int, typer.Option(min=0, help="Records of each task that `abilities` asks; 0: no tasks.")] = 200,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="key=value for all methods, METHOD:key=value for one.")
    ] = None,
    preset: Preset = "auto",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what there is to do, and how long it takes.")] = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure what the paper measures: tables, figures and a report. Run again, it goes on where it stopped."""
    from ece.methods.presets import preset_options
    from ece.models import load
    from ece.studies.inputs import Inputs
    from ece.studies.plan import total
    from ece.studies.registry import studies
    from ece.studies.setup import Setup, given_options
    from ece.studies.studying import Studying

    require("ece study", "studies", "matplotlib", "jinja2", "filelock")
    chosen, given = studies(name), given_options(options)
    inputs = Inputs.read([data, *(zsre or [])], tasks, text)
    if inputs.tasks and asked and any(one.name == "abilities" for one in chosen):
        require("ece study abilities", "eval", "sklearn")
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    names = [method.strip() for method in (methods or "").split(",") if method.strip()]
    setup = Setup(loaded, inputs, names, edits, batch_size, limit, given, texts, asked)
    setup = replace(setup, presets=preset_options(setup.methods, loaded, preset))
    studying = Studying.begin(chosen, setup, output)
    timings = studying.timings()
    steps = studying.plan(timings)
    report = {
        "study": name,
        "out": str(output),
        "report": str(output / "report.html"),
        "plan": [{"what": s.track.label, "edits": s.edits, "cells": s.cells, "seconds": s.seconds} for s in steps],
        "seconds": total(steps),
    }
    if plan:
        show(as_json, report, _planned(steps))
        return
    if not as_json:
        err.print(_planned(steps))
    try:
        failed = studying.run(timings)
    except KeyboardInterrupt:
        err.print("stopped; what was finished is saved, and the same command goes on from there")
        raise typer.Exit(130) from None
    show(as_json, report | {"failed": failed}, f"report: {output / 'report.html'}")
    if failed:
        raise typer.Exit(1)


def _planned(steps: list[Step]) -> Table:
    from ece.studies.plan import spoken, total

    table = Table("what", title=f"{sum(step.cells for step in steps)} cells to measure, about {spoken(total(steps))}")
    for heading in ("edits", "cells", "time"):
        table.add_column(heading, justify="right")
    for step in steps:
        table.add_row(escape(step.track.label), f"{step.edits:,}", str(step.cells), spoken(step.seconds))
    return table
