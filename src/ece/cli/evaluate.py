"""`ece evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ece.cli.options import AsJson, DeviceMap, Dtype, EditsFolder, ModelName, RemoteCode, refuse_idle
from ece.cli.output import show


def evaluate(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="CounterFact, zsRE (MEND), KnowEdit, RippleEdits or MQuAKE records.")],
    model: ModelName = "smollm2",
    edits: EditsFolder = None,
    kind: Annotated[
        str, typer.Option(help="auto (the records tell), counterfact, zsre, knowedit, ripple or mquake.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records, from the first.")] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate", help="Also what the model itself writes: *_generated, fluency, consistency."),
    ] = False,
    target: Annotated[str | None, typer.Option(help="zsre: answers (as MEMIT; default) or alt (as MEND).")] = None,
    snippets: Annotated[
        Path | None, typer.Option(help="counterfact: attribute snippets, as reference texts for consistency.")
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="counterfact: a text file, one document a line, for the TF-IDF of consistency.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="counterfact: texts are drawn from so many tokens (5); 0: greedy.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="counterfact: seed of the texts; 0 by default.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Efficacy, generalization, specificity and what else the records ask for, beside the unedited model's.

    Means over records, in percent, with standard errors; docs/metrics.md defines each. Fluency is in hundredths of a
    bit.
    """
    from ece.edits.folder import load_edits
    from ece.evaluation.benchmark import read_benchmark
    from ece.models import load
    from ece.provenance import provenance

    options = {"target": target, "snippets": snippets, "corpus": corpus, "top_k": top_k, "seed": seed}
    benchmark = read_benchmark(data, kind, **options).part(0, limit)
    if not generate:
        refuse_idle(context, "--generate", "snippets", "corpus", "top_k", "seed")
    loaded = load(model, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code)
    made = load_edits(edits, loaded) if edits else []

    def measured() -> list[dict[str, Any]]:
        return benchmark.evaluate(loaded, generated=generate, texts=generate)

    unedited = measured()
    base = benchmark.summary(unedited)
    for edit in made:
        edit.apply(loaded)
    found = benchmark.summary(measured(), unedited) if made else base

    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    choices = {"kind": benchmark.name, "limit": limit, "generate": generate, "edits": str(edits) if edits else None}
    files = {"records": data, "snippets": snippets, "corpus": corpus}
    report: dict[str, Any] = {"records": len(benchmark.records)} | {name: asdict(mean) for name, mean in found.items()}
    if made:
        report["unedited"] = {name: asdict(mean) for name, mean in base.items()}
    report["provenance"] = provenance(loaded, files, choices | chosen, (seed or 0) if generate else None)

    table = Table(
        "metric", title=f"{benchmark.name}, {len(benchmark.records)} records: mean ± standard error, in percent"
    )
    for heading in ("unedited", "edited", "records") if made else ("unedited", "records"):
        table.add_column(heading, justify="right")
    for name, mean in found.items():
        shown = [str(base.get(name, "")), str(mean)] if made else [str(mean)]
        table.add_row(name, *shown, str(mean.records))
    show(as_json, report, table)
