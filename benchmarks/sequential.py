"""Thousands of edits in sequence: total time, time per batch, peak memory, and quality on the way.

python benchmarks/sequential.py --data counterfact.json [--first 0] [--edits 2000] [--measure 100,1000] [--json FILE]
"""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, description, peak_memory, report, start

REST = peak_memory()

import ece  # noqa: E402
from ece.cli.options import chosen_method  # noqa: E402
from ece.heap import one_heap  # noqa: E402


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    first: Annotated[int, typer.Option(help="First record; 1000 for trials of options.")] = 0,
    edits: Annotated[int, typer.Option(help="How many.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Facts in a batch.")] = 100,
    method: Annotated[str, typer.Option(help="Which method.")] = "ece",
    set: Annotated[list[str] | None, typer.Option(help="key=value, options of the method.")] = None,
    measure: Annotated[str, typer.Option(help="Evaluate after so many edits (not timed).")] = "100,1000,2000",
    json: Annotated[Path | None, typer.Option(help="Write the figures here, after every batch.")] = None,
) -> None:
    """Edit, and evaluate all facts edited so far at the given counts."""
    one_heap()  # as the command line does
    model = ece.load()
    recipe = chosen_method(method, set)
    records = ece.read_counterfact(data)[first : first + edits]
    counts = [int(count) for count in measure.split(",") if count and int(count) <= edits]
    unedited = ece.evaluate(model, records[: max(counts, default=0)])
    seconds: list[float] = []
    quality: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
    rows: list[dict[str, object]] = []
    found: dict[str, object] = {}
    began = time.perf_counter()
    for made in ece.edit_in_sequence(model, [record.fact() for record in records], recipe, batch_size):
        seconds.append(time.perf_counter() - began)
        entries = made.manifest.facts
        done = min(len(seconds) * batch_size, edits)
        if done in counts:
            now, then = ece.evaluate(model, records[:done]), unedited[:done]
            states = {"edited": ece.summary(now, then), "unedited": ece.summary(then)}
            quality[done] = {state: {name: vars(m) for name, m in found.items()} for state, found in states.items()}
        rows.append(
            {
                "edits": done,
                "s / batch": seconds[-1],
                "s / edit": seconds[-1] / len(entries),
                "evaluations / edit": sum(entry.evaluations for entry in entries) / len(entries),
                "peak GB above rest": peak_memory() - REST,
                "Score": f"{quality[done]['edited']['score']['mean']:.1f}" if done in quality else "",
            }
        )
        found = {
            "method": recipe.name,
            "options": recipe.options(),
            "layers": made.manifest.layers,
            "first": first,
            "edits": done,
            "seconds": sum(seconds),
            "batches": rows,
            "quality": quality,
            "peak_gb_above_rest": peak_memory() - REST,
            "machine": description(),
        }
        if json:
            json.write_text(json_module.dumps(found, indent=1) + "\n")
        began = time.perf_counter()
    title = f"{recipe.name}: {edits} edits in {sum(seconds) / 60:.1f} min, {torch.get_num_threads()} threads"
    report(title, rows, found, json)


if __name__ == "__main__":
    start(main)
