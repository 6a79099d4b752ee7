"""Thousands of edits in sequence: total time, time per batch, peak memory, and quality on the way.

python benchmarks/sequential.py --data counterfact.json [--edits 2000] [--measure 100,1000] [--json FILE]
"""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import description, peak_memory, report

REST = peak_memory()

import ece  # noqa: E402


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = Path("../shared/data/counterfact.json"),
    edits: Annotated[int, typer.Option(help="How many, from the first record.")] = 2000,
    batch_size: Annotated[int, typer.Option(help="Facts in a batch.")] = 100,
    method: Annotated[str, typer.Option(help="Which method.")] = "ece",
    set: Annotated[list[str] | None, typer.Option(help="key=value, options of the method.")] = None,
    measure: Annotated[str, typer.Option(help="Evaluate after so many edits (not timed).")] = "100,1000,2000",
    json: Annotated[Path | None, typer.Option(help="Write the figures here, after every batch.")] = None,
) -> None:
    """Edit, and evaluate the facts edited so far at the given counts."""
    model = ece.load()
    recipe = ece.method(method).with_options(dict(option.split("=", 1) for option in set or []))
    records = ece.read_counterfact(data)[:edits]
    counts = {int(count) for count in measure.split(",") if count}
    seconds: list[float] = []
    scores: dict[int, dict[str, dict[str, float]]] = {}
    rows = []
    quality_seconds = 0.0
    began = time.perf_counter()
    for made in ece.edit_in_sequence(model, [record.fact() for record in records], recipe, batch_size):
        seconds.append(time.perf_counter() - began)
        done = min(len(seconds) * batch_size, edits)
        row = {"edits": str(done), "s / batch": seconds[-1], "s / edit": seconds[-1] / len(made.manifest.facts)}
        row["evaluations"] = sum(fact.evaluations for fact in made.manifest.facts) / len(made.manifest.facts)
        row["peak GB above rest"] = peak_memory() - REST
        if done in counts:
            start = time.perf_counter()
            after = ece.evaluate(model, records[:done])
            with model.overlay.suspended(model):
                before = ece.evaluate(model, records[:done])
            scores[done] = {
                name: {"mean": mean.mean, "se": mean.se, "unedited": base.mean}
                for (name, mean), base in zip(
                    ece.summary(after, before).items(), [*ece.summary(before).values(), ece.Mean(100, 0)], strict=True
                )
            }
            quality_seconds += time.perf_counter() - start
        row["Score"] = f"{scores[done]['score']['mean']:.1f}" if done in scores else ""
        rows.append(row)
        found = {
            "method": recipe.name,
            "options": recipe.options(),
            "layers": made.manifest.layers,
            "edits": done,
            "seconds": sum(seconds),
            "seconds_per_batch": seconds,
            "quality": scores,
            "peak_gb_above_rest": peak_memory() - REST,
            "machine": description(),
        }
        if json:
            json.write_text(json_module.dumps(found, indent=1) + "\n")
        began = time.perf_counter()
    title = f"{recipe.name}: {edits} edits in {sum(seconds) / 60:.1f} min, {torch.get_num_threads()} threads"
    report(title, rows, found, json)


if __name__ == "__main__":
    typer.run(main)
