"""The command line: parses, calls, prints. Results go to stdout, progress and logs to stderr."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from ece.errors import UserError

app = typer.Typer(
    help="Edit what a language model knows: explain where a fact is, change it there, keep the rest.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Console(), Console(stderr=True)

ModelName = Annotated[
    str, typer.Option("--model", "-m", help="smollm2 (embedded), a local folder, a GGUF file, or a hub id.")
]
EditsFolder = Annotated[Path | None, typer.Option("--edits", help="Folder of edits made by `ece edit`.")]
FactsFile = Annotated[
    Path | None,
    typer.Option("--facts", help="JSON or JSON lines: {prompt, subject, target}, CounterFact or zsRE records."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[str | None, typer.Option(help="Where the weights go, e.g. auto, cuda or cpu; needs accelerate.")]
RemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Let the checkpoint's own code run.")]
Method = Annotated[str, typer.Option(help="ece, ece-as, ece-wi, ece-rs, memit or memit-history; see `ece methods`.")]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, e.g. layers=3-7 or neurons.p=0.9; see `ece methods NAME`.")
]


def main() -> None:
    """Run the command line. Bad input ends with one line on stderr and exit code 2."""
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=err, show_path=False)]
    )
    logging.getLogger("ece").setLevel(logging.INFO)
    try:
        app()
    except UserError as error:
        err.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


@app.command("edit")
def edit_command(
    output: Annotated[Path, typer.Option("--out", help="Folder for the edits; more are added to what is there.")],
    facts: FactsFile = None,
    model: ModelName = "smollm2",
    method: Method = "ece",
    batch_size: Annotated[int, typer.Option(min=1, help="Facts edited at a time.")] = 100,
    options: Options = None,
    subject: Annotated[str | None, typer.Option(help="One fact: its subject.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One fact: a prompt with {} for the subject.")] = None,
    target: Annotated[str | None, typer.Option(help="One fact: what the model is to say.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Edit facts, batch after batch. Writes the edits, never the model; run again, it goes on where it stopped."""
    from ece.edits.folder import append, started_folder
    from ece.facts import check_consistent
    from ece.methods.engine import edit_in_sequence
    from ece.models import load

    wanted = _facts(facts, subject, prompt, target)
    recipe = _recipe(method, options)
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    earlier = started_folder(output, loaded)
    there = [entry.fact for edit in earlier for entry in edit.manifest.facts]
    check_consistent([*there, *wanted])
    new = [fact for fact in wanted if fact not in set(there)]
    if len(new) < len(wanted):
        logging.getLogger(__name__).info("%d facts are in %s already", len(wanted) - len(new), output)
    for edit in earlier:
        edit.apply(loaded)

    began, made = time.monotonic(), []
    try:
        with _bar(len(new), "edits") as bar:
            for edit in edit_in_sequence(loaded, new, recipe, batch_size, earlier) if new else ():
                append(output, edit)
                made.append(edit)
                bar.update(len(edit.manifest.facts))
    except KeyboardInterrupt:
        err.print("stopped; the batches that were finished are saved, and the same command goes on from there")
        raise typer.Exit(130) from None
    seconds = time.monotonic() - began
    entries = [entry for edit in made for entry in edit.manifest.facts]
    report = {
        "edits": str(output),
        "method": recipe.name,
        "facts": len(entries),
        "already_there": len(wanted) - len(new),
        "batches": len(made),
        "layers": made[-1].manifest.layers if made else [],
        "neurons": made[-1].manifest.neurons if made else {},
        "already_known": [str(entry.fact) for entry in entries if entry.already_known],
        "failed": [str(entry.fact) for entry in entries if entry.failed],
        "seconds": seconds,
        "seconds_per_edit": seconds / len(entries) if entries else 0.0,
    }
    _print(as_json, report, _edited(report))


@app.command()
def ask(
    prompts: Annotated[list[str], typer.Argument(help="Texts to go on from.")],
    model: ModelName = "smollm2",
    edits: EditsFolder = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many to write.")] = 24,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Let the model go on from a prompt, without and with the edits, side by side."""
    from ece.edits.folder import load_edits
    from ece.models import load
    from ece.models.generate import continuations

    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded) if edits else []
    columns = {"unedited": continuations(loaded, prompts, tokens)}
    if made:
        for edit in made:
            edit.apply(loaded)
        columns["edited"] = continuations(loaded, prompts, tokens)
    table = Table("prompt", *columns, show_lines=True)
    for prompt, *texts in zip(prompts, *columns.values(), strict=True):
        table.add_row(escape(prompt), *(escape(text.strip()) for text in texts))
    answers = [
        dict(zip(["prompt", *columns], row, strict=True)) for row in zip(prompts, *columns.values(), strict=True)
    ]
    _print(as_json, {"model": model, "edits": str(edits) if edits else None, "answers": answers}, table)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option(help="Records in CounterFact's schema.")],
    model: ModelName = "smollm2",
    edits: EditsFolder = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records, from the first.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Efficacy, generalization, specificity and their harmonic mean on CounterFact records, in percent."""
    from ece.edits.folder import load_edits
    from ece.evaluation.counterfact import evaluate as measured
    from ece.evaluation.counterfact import summary
    from ece.facts import read_counterfact
    from ece.models import load

    records = read_counterfact(data)[:limit]
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded) if edits else []
    unedited = measured(loaded, records)
    for edit in made:
        edit.apply(loaded)
    found = summary(measured(loaded, records), unedited) if made else summary(unedited)
    report: dict[str, Any] = {"records": len(records)} | {name: asdict(mean) for name, mean in found.items()}
    base = summary(unedited)
    table = Table("metric", title=f"{len(records)} records, percent ± standard error")
    table.add_column("unedited", justify="right")
    if made:
        report["unedited"] = {name: asdict(mean) for name, mean in base.items()}
        table.add_column("edited", justify="right")
    for name, mean in found.items():
        table.add_row(name, *([str(base.get(name, "")), str(mean)] if made else [str(mean)]))
    _print(as_json, report, table)


@app.command()
def export(
    edits: Annotated[Path, typer.Option(help="Folder of edits made by `ece edit`.")],
    output: Annotated[Path, typer.Option("--out", help="New folder for the checkpoint.")],
    model: ModelName = "smollm2",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Write the edited model as a checkpoint that transformers loads, verified to give the same logits."""
    from ece.edits.export import export as exported
    from ece.edits.folder import load_edits
    from ece.models import load

    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded)
    exported(loaded, made, output)
    facts = sum(len(edit.facts) for edit in made)
    report = {"checkpoint": str(output), "edits": str(edits), "facts": facts, "verified": True}
    _print(as_json, report, f"{facts} facts merged into {output}; its logits equal the edited model's")


@app.command()
def explain(
    model: ModelName = "smollm2",
    facts: FactsFile = None,
    edits: EditsFolder = None,
    method: Method = "ece-rs",
    options: Options = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for plots (PNG).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many facts.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show where facts are: layers, neurons and their scores, what the strongest neurons write, and the clusters."""
    from ece.edits.folder import load_edits
    from ece.explain import explain as explained
    from ece.explain import from_edits
    from ece.explain.tables import rendered
    from ece.models import load

    if (facts is None) == (edits is None):
        raise UserError("give either --facts FILE or --edits FOLDER")
    wanted = _facts(facts, None, None, None)[:limit] if facts else []
    recipe = _recipe(method, options)
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    found = from_edits(loaded, load_edits(edits, loaded)) if edits else explained(loaded, wanted, recipe)
    report = found.as_json()
    if plots:
        from ece.explain.plots import draw

        report["plots"] = [str(path) for path in draw(found, plots)]
    _print(as_json, report, rendered(found))


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's options.")] = None, as_json: AsJson = False
) -> None:
    """List the methods, or one method's options with their values."""
    from ece.methods.registry import METHODS, method

    if name is None:
        table = Table("method", "what it is", "source")
        for recipe in METHODS.values():
            table.add_row(recipe.name, recipe.summary, recipe.source)
        _print(as_json, {recipe.name: recipe.summary for recipe in METHODS.values()}, table)
        return
    recipe = method(name)
    table = Table("option", "value", title=f"{recipe.name}: {recipe.summary}")
    for key, value in _flat(recipe.options()).items():
        table.add_row(key, escape(str(value)))
    _print(as_json, {"name": recipe.name, "summary": recipe.summary, "options": recipe.options()}, table)


@app.command()
def demo(
    model: ModelName = "smollm2",
    output: Annotated[Path, typer.Option("--out", help="Folder for the edits.")] = Path("edits/demo"),
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
    _print(as_json, report, rendered(shown))


def _facts(file: Path | None, subject: str | None, prompt: str | None, target: str | None) -> list[Any]:
    from ece.facts import Fact, read_facts

    if file is not None:
        if subject or prompt or target:
            raise UserError("give either --facts FILE, or --subject, --prompt and --target; not both")
        return read_facts(file)
    if subject is None or prompt is None or target is None:
        raise UserError("give --facts FILE, or all of --subject, --prompt and --target")
    return [Fact(prompt, subject, target)]


def _recipe(name: str, options: list[str] | None) -> Any:
    from ece.methods.registry import method

    pairs = [option.partition("=") for option in options or []]
    for key, equals, _ in pairs:
        if not equals:
            raise UserError(f"--set {key}: write key=value")
    return method(name).with_options({key: value for key, _, value in pairs})


def _flat(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _edited(report: dict[str, Any]) -> RenderableType:
    table = Table(show_header=False)
    shown = {key: value for key, value in report.items() if value not in ([], {})}
    for key, value in shown.items():
        text = (
            "\n".join(map(str, value)) if isinstance(value, list) and key in ("failed", "already_known") else str(value)
        )
        table.add_row(key.replace("_", " "), escape(f"{value:.2f}" if isinstance(value, float) else text))
    return table


def _bar(total: int, label: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=label, unit="fact", disable=None, file=sys.stderr)


def _print(as_json: bool, report: dict[str, Any], shown: RenderableType) -> None:
    if as_json:
        sys.stdout.write(json.dumps(_finite(report), ensure_ascii=False) + "\n")
    else:
        out.print(shown)


def _finite(value: Any) -> Any:
    """The same data with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
