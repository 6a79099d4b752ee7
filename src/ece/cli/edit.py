"""`ece edit`."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ece.cli.options import (
    AsJson,
    DeviceMap,
    Dtype,
    FactsFile,
    Method,
    ModelName,
    Options,
    Preset,
    RemoteCode,
    chosen_method,
    fitted_method,
    given_facts,
    refuse_idle,
)
from ece.cli.output import err, printable, show

log = logging.getLogger(__name__)


def edit(
    context: typer.Context,
    output: Annotated[Path, typer.Option("--out", help="Folder for the edits; more are added to what is there.")],
    facts: FactsFile = None,
    model: ModelName = "smollm2",
    method: Method = "ece",
    batch_size: Annotated[int, typer.Option(min=1, help="Facts edited at a time.")] = 100,
    options: Options = None,
    preset: Preset = "auto",
    subject: Annotated[str | None, typer.Option(help="One fact, instead of --facts: its subject.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One fact: a prompt with {} for the subject.")] = None,
    target: Annotated[str | None, typer.Option(help="One fact: what the model is to say.")] = None,
    guard: Annotated[
        Path | None, typer.Option(help="Facts and texts that must not change, measured after each batch.")
    ] = None,
    guard_specificity: Annotated[
        float | None, typer.Option(min=0, help="How many points of the guard's facts may be lost.")
    ] = None,
    guard_perplexity: Annotated[
        float | None, typer.Option(min=0, help="By how many percent the perplexity of the guard's texts may rise.")
    ] = None,
    on_guard: Annotated[
        Literal["stop", "skip"],
        typer.Option(help="What a batch beyond a bound does: end the run, or be left out."),
    ] = "stop",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Report near-duplicates, conflicts and similar keys first.")
    ] = True,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Edit facts, batch after batch. Writes the edits, never the model; run again, it goes on where it stopped."""
    from ece.edits.folder import Applied
    from ece.edits.journal import writing
    from ece.methods.run import Stopped, edit_journal, plan, run_of
    from ece.models import load

    wanted = given_facts(facts, subject, prompt, target)
    chosen_method(method, options)  # what is wrong is said before the model is loaded
    guarding = _guard(context, guard, guard_specificity, guard_perplexity, on_guard)
    made, clashing, stopped = [], [], ""
    with writing(output) as journal:
        loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
        recipe = fitted_method(method, options, preset, loaded)
        applied = Applied(loaded)
        applied.follow(journal)
        todo = plan(journal, wanted, run_of(wanted, recipe, batch_size, guarding))
        if todo.there:
            log.info("%d facts are in %s already", len(todo.there), output)
        if check and todo.new:
            clashing = _clashes(loaded, todo.new, journal, recipe)
        began = time.monotonic()
        try:
            with _bar(len(todo.new), "edits") as bar:
                for _, edit in edit_journal(applied, journal, wanted, recipe, batch_size, guarding):
                    made.append(edit)
                    bar.update(len(edit.manifest.facts))
        except Stopped as reason:
            stopped = str(reason)
        except KeyboardInterrupt:
            err.print("stopped; the batches that were finished are saved, and the same command goes on from there")
            raise typer.Exit(130) from None
    seconds = time.monotonic() - began
    entries = [entry for edit in made for entry in edit.manifest.facts]
    report = {
        "edits": str(output),
        "method": recipe.name,
        "facts": len(entries),
        "already_there": len(todo.there),
        "superseded": [f"{old} | {new.target}" for old, new in todo.replaced],
        "clashes": [str(clash) for clash in clashing],
        "batches": len(made),
        "layers": made[-1].manifest.layers if made else [],
        "neurons": made[-1].manifest.neurons if made else {},
        "already_known": [str(entry.fact) for entry in entries if entry.already_known],
        "failed": [str(entry.fact) for entry in entries if entry.failed],
        "seconds": seconds,
        "seconds_per_edit": seconds / len(entries) if entries else 0.0,
    }
    if stopped:
        report["stopped"] = stopped
    show(as_json, report, _edited(report))
    if stopped:
        err.print(escape(printable(stopped)), soft_wrap=True, highlight=False)
        raise typer.Exit(3)


def _guard(
    context: typer.Context, file: Path | None, specificity: float | None, perplexity: float | None, on_guard: str
) -> Any:
    if file is None:
        refuse_idle(context, "--guard FILE", "guard_specificity", "guard_perplexity", "on_guard")
        return None
    from ece.evaluation.guard import Guard

    return Guard.read(file, specificity, perplexity, on_guard == "stop")


def _clashes(model: Any, new: list[Any], journal: Any, recipe: Any) -> list[Any]:
    from ece.methods.conflicts import clashes

    replaced = {(fact.subject, fact.prompt) for fact in new}
    others = [fact for about, (fact, _) in journal.active.items() if about not in replaced]
    found = clashes(model, new, others, recipe)
    for clash in found[:10]:
        log.warning("%s", clash)
    if len(found) > 10:
        log.warning("and %d more clashes; --json lists them all", len(found) - 10)
    return found


def _edited(report: dict[str, Any]) -> RenderableType:
    table = Table(show_header=False)
    shown = {key: value for key, value in report.items() if value not in ([], {})}
    for key, value in shown.items():
        text = "\n".join(printable(str(item)) for item in value) if _listed(value) else str(value)
        table.add_row(key.replace("_", " "), escape(f"{value:.2f}" if isinstance(value, float) else text))
    return table


def _listed(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _bar(total: int, label: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="fact", disable=None, file=sys.stderr)
