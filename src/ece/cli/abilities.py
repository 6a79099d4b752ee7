"""`ece abilities`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ece.cli.options import AsJson, DeviceMap, Dtype, EditsFolder, ModelName, RemoteCode, refuse_idle
from ece.cli.output import show
from ece.errors import UserError, require


def abilities(
    context: typer.Context,
    model: ModelName = "smollm2",
    edits: EditsFolder = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the paper's tasks: sst2.jsonl, mrpc.jsonl, mmlu.jsonl and so on.")
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Some of them, comma-separated: sst2, mrpc, mmlu, cola, rte, nli.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records of each task.")] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, max=10, help="Examples in each prompt; by default 4, in the harness what each task asks."),
    ] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness, by name or YAML file: arc_easy,piqa.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Held-out text for perplexity.")] = None,
    text_tokens: Annotated[int, typer.Option(min=2, help="Only so many tokens of the text.")] = 20_000,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """What else the model can do: six language tasks, tasks of lm-evaluation-harness, perplexity; before and after."""
    from ece.edits.edit import refuse_memories
    from ece.edits.folder import load_edits
    from ece.evaluation.abilities import SHOTS, chosen_tasks, evaluate, read_examples, summary
    from ece.evaluation.harness import harness as harnessed
    from ece.evaluation.harness import load_tasks
    from ece.evaluation.perplexity import perplexity, read_text
    from ece.models import Model, load
    from ece.provenance import provenance

    if tasks is not None and data is None:
        raise UserError("--tasks needs --data FOLDER")
    if data is None and harness is None and text is None:
        raise UserError("nothing to measure; give --data FOLDER, --harness TASKS or --text FILE")
    if data is None and harness is None:
        refuse_idle(context, "--data FOLDER or --harness TASKS", "shots", "limit")
    if text is None:
        refuse_idle(context, "--text FILE", "text_tokens")
    if data is not None:
        require("--data", "eval", "sklearn")
    chosen = chosen_tasks(_names(tasks) if tasks else None) if data else []
    shown = SHOTS if shots is None else shots
    examples = [(task, read_examples(task, data)) for task in chosen] if data else []
    held_out = read_text(text) if text else None
    harness_tasks = load_tasks(_names(harness)) if harness else []

    def measured(model: Model) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        if examples:
            found["tasks"] = {
                task.name: summary(evaluate(model, task, records, shown, limit)) for task, records in examples
            }
        if held_out is not None:
            found["text"] = {str(text): {"perplexity": perplexity(model, held_out, limit=text_tokens)}}
        if harness_tasks:
            found["harness"] = harnessed(model, harness_tasks, limit=limit, shots=shots)
        return found

    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded) if edits else []
    if harness_tasks:
        refuse_memories([edit.manifest for edit in made], "and the harness asks no memories; leave out --harness")
    columns = {"unedited": measured(loaded)}
    if made:
        for edit in made:
            edit.apply(loaded)
        columns["edited"] = measured(loaded)
    *unedited, now = columns.values()
    report: dict[str, Any] = _plain(now)
    if unedited:
        report["unedited"] = _plain(unedited[0])
    files = {task.name: data / f"{task.name}.jsonl" for task in chosen} if data else {}
    choices = {"limit": limit, "shots": shown if data else shots, "harness": harness, "text_tokens": text_tokens}
    report["provenance"] = provenance(
        loaded, files | {"text": text}, choices | {"edits": str(edits) if edits else None}
    )
    show(as_json, report, _table(columns))


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _plain(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        kind: {name: {metric: asdict(value) for metric, value in metrics.items()} for name, metrics in of_kind.items()}
        for kind, of_kind in found.items()
    }


def _table(columns: dict[str, dict[str, dict[str, Any]]]) -> Table:
    table = Table("", "metric", title="± standard error; tasks in percent, harness in its own units")
    for column in columns:
        table.add_column(column, justify="right")
    first = next(iter(columns.values()))
    for kind, of_kind in first.items():
        for name, metrics in of_kind.items():
            for metric in metrics:
                values = [str(found[kind][name][metric]) for found in columns.values()]
                table.add_row(f"{kind}: {name}", metric, *values)
    return table
