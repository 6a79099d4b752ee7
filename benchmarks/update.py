"""What the update is made of, at fixed targets: text, tokens and shrinking of E[kk^T], lambda, neurons, kept prompts
and names.

Targets are sought once, on the original weights, and written in batches with history under each setting, or all of them
in one batch. How far that misses them tells what a bad figure is due to: what was written, or what was sought.

    python benchmarks/update.py --data counterfact.json [--first 1000] [--facts 300] [--json FILE]
"""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, report, start

import ece
from ece.cli.options import chosen_method
from ece.evaluation.benchmark import read_benchmark
from ece.methods.engine import with_layers, written_contexts
from ece.methods.recipe import Neurons
from ece.methods.searching import search
from ece.methods.subjects import prepared, states, wanted
from ece.methods.writing import spread, statistics

SHOWN = (
    *("efficacy", "generalization", "specificity", "specificity_gold", "specificity_kept", "specificity_unchanged"),
    *("score", "efficacy_exact", "efficacy_soft", "generalization_soft", "specificity_soft", "score_soft"),
)

IN_ONE_BATCH = "all in one batch"
"""The default, but for the size of a batch."""


def settings(recipe: ece.Recipe, d_ff: int) -> dict[str, ece.Recipe]:
    """The default, and one change at a time."""
    return {
        "default": recipe,
        IN_ONE_BATCH: recipe,
        "python's reference alone": replace(recipe, corpus="python"),
        "2 tokens per neuron": replace(recipe, tokens=2 * d_ff),
        "8 tokens per neuron": replace(recipe, tokens=8 * d_ff),
        "72 tokens per neuron": replace(recipe, tokens=72 * d_ff),
        "not shrunk": replace(recipe, shrink=0.0),
        "shrunk by 0.1": replace(recipe, shrink=0.1),
        "shrunk by 0.3": replace(recipe, shrink=0.3),
        "shrunk to the diagonal": replace(recipe, shrink=1.0),
        "lambda 100": replace(recipe, regularise=100.0),
        "lambda 400": replace(recipe, regularise=400.0),
        "lambda 10000": replace(recipe, regularise=10000.0),
        "prompts not kept": replace(recipe, keep_prompts=0.0),
        "prompts kept as facts are": replace(recipe, keep_prompts=1.0),
        "what comes after the subject not kept": replace(recipe, keep_after=0.0),
        "what comes after the subject kept as facts are": replace(recipe, keep_after=1.0),
        "names kept": replace(recipe, keep_names=0.3),
        "names kept, lambda 1200": replace(recipe, keep_names=0.3, regularise=1200.0),
        "mean keys": replace(recipe, keys="contexts"),
        "written after contexts": replace(recipe, write_contexts=2),
        "the common part written too": replace(recipe, leave_common=0.0),
        "the common part written too, lambda 1400": replace(recipe, leave_common=0.0, regularise=1400.0),
        "none of the common part written": replace(recipe, leave_common=1.0),
        "half of the common part, lambda 1400": replace(recipe, regularise=1400.0),
        "neurons by RS, p 0.8": replace(recipe, neurons=Neurons("rs", 0.8)),
        "as many at random": replace(recipe, neurons=Neurons("random", 0.8)),
    }


def written(
    model: ece.Model,
    facts: list[ece.Fact],
    recipe: ece.Recipe,
    before: list[str],
    hidden: torch.Tensor,
    delta: torch.Tensor,
    batch_size: int,
) -> list[ece.Delta]:
    """Write the states h + delta `[facts, d_model]` batch after batch; the changes stay on the model."""
    history, moments, made = ece.History(), statistics(model, recipe), []
    for first in range(0, len(facts), batch_size):
        part = slice(first, first + batch_size)
        with model.overlay.suspended(model):
            targets = wanted(model, facts[part], recipe, before, hidden[part], delta[part])
        subjects = prepared(model, facts[part], recipe, before)
        deltas, keys, around = spread(model, recipe, subjects, targets, moments, history)
        model.overlay.push(model, deltas)
        made.append(deltas)
        history.take(model, (), keys, around, delta[:0])
    return made


def main(
    data: Annotated[Path, typer.Option(help="Records of any benchmark.")] = COUNTERFACT,
    first: Annotated[int, typer.Option(help="First record.")] = 1000,
    facts: Annotated[int, typer.Option(help="Facts.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Facts in a batch.")] = 100,
    every: Annotated[int, typer.Option(help="Evaluate every so many records.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help="Only settings whose names hold this, e.g. shrunk.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Further corpora to compare, e.g. a text file.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="key=value, options of `ece` for all settings.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Search once, then solve and evaluate under each setting."""
    model = ece.load()
    benchmark = read_benchmark(data)
    chosen = benchmark.part(first, first + facts).facts()
    evaluated = benchmark.part(first, first + facts, every)
    recipe = with_layers(model, chosen, chosen_method("ece", set))
    before = written_contexts(model)
    solved = search(model, chosen, recipe, ece.History().warm, before).solved
    hidden = states(model, chosen, recipe.edited[-1])
    unedited = evaluated.evaluate(model)
    base = evaluated.summary(unedited)
    shown = [name for name in SHOWN if name in evaluated.summary(unedited, unedited)]
    rows = [{"setting": "unedited"} | {name: str(base.get(name, "")) for name in shown} | {"missed": ""}]
    found: dict[str, object] = {"unedited": {name: vars(mean) for name, mean in base.items()}, "facts": facts}
    found |= {"set": set or [], "layers": recipe.edited, "nll": float(solved.nll.mean())}
    found["step"] = float((solved.delta.norm(dim=1) / hidden.norm(dim=1)).mean())
    compared = settings(recipe, model.d_ff) | {Path(name).name: replace(recipe, corpus=name) for name in text or []}
    asked = {n: s for n, s in compared.items() if not only or any(part in n for part in only)}
    for name, setting in asked.items():
        size = facts if name == IN_ONE_BATCH else batch_size
        made = written(model, chosen, setting, before, hidden, solved.delta, size)
        quality = evaluated.summary(evaluated.evaluate(model), unedited)
        missed = (states(model, chosen, recipe.edited[-1]) - hidden - solved.delta).norm(dim=1)
        missed /= solved.delta.norm(dim=1)
        for deltas in reversed(made):
            model.overlay.remove(model, deltas)
        rows.append({"setting": name} | {metric: str(quality[metric]) for metric in shown})
        rows[-1]["missed"] = f"{float(missed.mean()):.2f}"
        found[name] = {metric: vars(mean) for metric, mean in quality.items()} | {"missed": float(missed.mean())}
        if json:
            json.write_text(json_module.dumps(found, indent=1) + "\n")  # a long run: what is there is there
    title = f"The update at fixed targets: {facts} facts from record {first} in batches of {batch_size}"
    sought = f"NLL {found['nll']:.2f} at a mean step of {found['step']:.2f} |h|"
    report(f"{title}, layers {list(recipe.edited)}, {sought}", rows, found, json)


if __name__ == "__main__":
    start(main)
