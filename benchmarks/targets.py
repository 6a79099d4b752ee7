"""Seconds per edit of the target search: plain, and every search of ours, on the same facts and prompts.

python benchmarks/targets.py --data counterfact.json [--facts 100] [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from machine import COUNTERFACT, linear_over_matmul, matmul_peak, report, start
from operations import counted
from plain import plain_search

import ece
from ece.methods.engine import with_layers, written_contexts
from ece.methods.recipe import PerFact, TwoStep
from ece.methods.registry import as_recipe
from ece.methods.searching import Sought, search
from ece.methods.subjects import prepared, states, wanted
from ece.methods.writing import spread, statistics
from ece.targets.descent import Adam
from ece.targets.warm import target_embeddings

SEARCHES: dict[str, dict[str, Any]] = {
    "fast": {"targets": PerFact(Adam(steps=25))},
    "early_stop": {"targets": PerFact(Adam(steps=25, stop_below=0.05))},
    "two_step": {"targets": TwoStep()},
    "default": {},
    "fuller": {"pass_tokens": 400},
}
"""What each changes in `ece`."""


def operations(
    model: ece.Model, facts: list[ece.Fact], recipe: ece.Recipe, history: ece.History, before: Sequence[str]
) -> int:
    """Of a search; the counter sees one thread only, and slows it down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with counted() as counter:
        search(model, facts, recipe, history.warm, before)
    torch.set_num_threads(threads)
    return counter.get_total_flops()


def in_turn(once: Callable[[], Sought], at_least: float) -> tuple[Sought, float, float]:
    """What a search finds, its seconds, and the machine's peak.

    On a shared machine both change: they are measured in turn until the searches took `at_least` so many seconds, and
    are the medians.
    """
    seconds, peaks = [], [matmul_peak()]
    while True:
        began = time.perf_counter()
        sought = once()
        seconds.append(time.perf_counter() - began)
        peaks.append(matmul_peak())
        if sum(seconds) >= at_least:
            return sought, median(seconds), median(peaks)


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    facts: Annotated[int, typer.Option(help="Facts to edit, from the first record.")] = 100,
    learned: Annotated[
        int, typer.Option(help="Edits solved before, from record 1000, that the default learns from.")
    ] = 300,
    plain_facts: Annotated[int, typer.Option(help="Facts for the plain search.")] = 10,
    only: Annotated[list[str] | None, typer.Option(help="Only these searches, beside plain.")] = None,
    at_least: Annotated[
        float, typer.Option(help="Seconds for each search: a shorter one is repeated, and its median counts.")
    ] = 60,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Time the searches, and score the edits they lead to."""
    model = ece.load()
    records = ece.read_counterfact(data)
    chosen = records[:facts]
    asked = [record.fact() for record in chosen]
    recipe = with_layers(model, asked, as_recipe("ece"))
    before = written_contexts(model)
    statistics(model, recipe)
    history = ece.History()
    if learned:
        earlier = [record.fact() for record in records[1000 : 1000 + learned]]
        solved = search(model, earlier, recipe, history.warm, before).solved
        history.warm.learn(target_embeddings(model, [fact.target for fact in earlier]), solved.delta)

    seconds, peaks, scores, evaluations, rows = {}, {}, {}, {}, []
    began = time.perf_counter()
    for fact in asked[:plain_facts]:
        plain_search(model, fact, recipe.edited[-1], before, steps=25, rate=0.5, weights=recipe.weights)
    seconds["plain"] = (time.perf_counter() - began) / plain_facts
    rows.append(
        {
            "search": "plain",
            "s / edit": seconds["plain"],
            "plain / this": 1.0,
            "evaluations": 25.0,
            "Score": "",
            "GFLOP/s peak": "",
            "% of peak": "",
            "% of oneDNN's": "",
        }
    )
    shares = {}
    subjects = prepared(model, asked, recipe, before)
    moments, hidden = statistics(model, recipe), states(model, asked, recipe.edited[-1])
    faster = linear_over_matmul()
    for name, choices in SEARCHES.items():
        if only and name not in only:
            continue
        variant = replace(recipe, **choices)
        sought, taken, peaks[name] = in_turn(partial(search, model, asked, variant, history.warm, before), at_least)
        solved = sought.solved
        seconds[name] = taken / facts
        evaluations[name] = solved.evaluations.float().mean().item()
        shares[name] = operations(model, asked, variant, history, before) / (facts * seconds[name]) / peaks[name]
        reached = wanted(model, asked, variant, before, hidden, solved.delta)
        deltas, _, _ = spread(model, variant, subjects, reached, moments, history)
        model.overlay.push(model, deltas)
        scores[name] = ece.summary(ece.evaluate(model, chosen))["score"]
        model.overlay.remove(model, deltas)
        rows.append(
            {
                "search": name,
                "s / edit": seconds[name],
                "plain / this": seconds["plain"] / seconds[name],
                "evaluations": evaluations[name],
                "Score": str(scores[name]),
                "GFLOP/s peak": peaks[name] / 1e9,
                "% of peak": 100 * shares[name],
                "% of oneDNN's": 100 * shares[name] / faster,
            }
        )
    found = {
        "seconds_per_edit": seconds,
        "plain_over": {name: seconds["plain"] / value for name, value in seconds.items()},
        "evaluations": evaluations,
        "score": {name: {"mean": mean.mean, "se": mean.se} for name, mean in scores.items()},
        "share_of_peak": shares,
        "share_of_onednn_peak": {name: share / faster for name, share in shares.items()},
        "peak_gflops": {name: peak / 1e9 for name, peak in peaks.items()},
        "facts": facts,
        "learned_from": learned,
        "contexts": before,
    }
    report(
        f"Target search, {facts} facts, {torch.get_num_threads()} threads",
        rows,
        found,
        json,
    )


if __name__ == "__main__":
    start(main)
