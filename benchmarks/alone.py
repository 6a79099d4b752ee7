"""Every fact, or every batch, edited alone on the unedited model: what a method can do before a sequence wears it down.

python benchmarks/alone.py --data counterfact.json [--methods mend,serac,ece] [--first 0] [--facts 50] [--batch-size 1]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from machine import COUNTERFACT, description, report, start
from tqdm import tqdm

import ece
from ece.evaluation.counterfact import RecordScore
from ece.facts import CounterFactRecord, batches
from ece.methods.engine import written_contexts
from ece.methods.method import Method
from ece.studies.setup import given_options

SHOWN = ("efficacy", "generalization", "specificity", "specificity_kept", "score", "efficacy_exact")


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "ece,ft-l,ft-w,ft-m,mend,serac,grace,ike",
    first: Annotated[int, typer.Option(help="First record.")] = 0,
    facts: Annotated[int, typer.Option(help="How many.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Facts edited together.")] = 1,
    set: Annotated[list[str] | None, typer.Option(help="METHOD:key=value, an option of a method.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Edit a batch, evaluate its records, take the edit off again; for every batch and method."""
    given = given_options(set)
    model = ece.load()
    records = ece.read_counterfact(data)[first : first + facts]
    before = written_contexts(model)
    unedited = ece.evaluate(model, records)
    quality, rows = {"unedited": ece.summary(unedited)}, [{"method": "unedited", "s / edit": ""}]
    for name in methods.split(","):
        own = {key.removeprefix(f"{name}:"): value for key, value in given.items() if key.startswith(f"{name}:")}
        chosen = ece.method(name).with_options(own)
        together = tqdm(batches(records, batch_size), desc=name, disable=None)
        tried = [alone(model, batch, chosen, before) for batch in together]
        quality[name] = ece.summary([score for scores, _ in tried for score in scores], unedited)
        rows.append({"method": name, "s / edit": f"{sum(seconds for _, seconds in tried) / len(records):.2f}"})
    shown = [row | {metric: str(quality[row["method"]].get(metric, "")) for metric in SHOWN} for row in rows]
    found = {name: {metric: vars(mean) for metric, mean in means.items()} for name, means in quality.items()}
    each = f"batch of {batch_size}" if batch_size > 1 else "fact"
    title = f"{len(records)} facts from record {first}, each {each} alone"
    asked = {"first": first, "facts": facts, "batch_size": batch_size}
    report(title, shown, asked | {"methods": found, "machine": description()}, json)


def alone(
    model: ece.Model, records: Sequence[CounterFactRecord], method: Method, before: Sequence[str]
) -> tuple[list[RecordScore], float]:
    """The records' metrics with their edit, and the seconds that the edit took."""
    began = time.perf_counter()
    made = ece.edit(model, [record.fact() for record in records], method, before=before)
    seconds = time.perf_counter() - began
    made.apply(model)
    scores = ece.evaluate(model, records)
    made.revert(model)
    return scores, seconds


if __name__ == "__main__":
    start(main)
