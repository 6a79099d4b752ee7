"""What the update is made of, at fixed targets: text and tokens of E[kk^T], lambda, neurons. One batch.

python benchmarks/update.py --data counterfact.json [--first 1000] [--facts 200] [--json FILE]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from machine import report

import ece
from ece.locate.scores import Score
from ece.methods.engine import Subjects, search, spread, states, statistics, with_layers, written_contexts
from ece.methods.recipe import Neurons

SHOWN = ("efficacy", "generalization", "specificity", "specificity_kept", "score", "efficacy_exact")
SELECTIONS: list[tuple[Score, float]] = [
    ("rs", 0.95),
    ("rs", 0.8),
    ("as", 0.8),
    ("wi", 0.8),
    ("random", 0.8),
    ("rs", 0.5),
]


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = Path("../shared/data/counterfact.json"),
    first: Annotated[int, typer.Option(help="First record.")] = 1000,
    facts: Annotated[int, typer.Option(help="Facts, in one batch.")] = 200,
    texts: Annotated[str, typer.Option(help="Corpora to compare, with commas.")] = "python,self",
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Search the targets once, then solve and evaluate under each setting."""
    model = ece.load()
    records = ece.read_counterfact(data)[first : first + facts]
    wanted = [record.fact() for record in records]
    recipe = with_layers(model, wanted, ece.method("ece"))
    history = ece.History()
    solved, _ = search(model, wanted, recipe, history.warm, written_contexts(model))
    wanted_states = states(model, wanted, recipe.edited[-1]) + solved.delta
    unedited = ece.evaluate(model, records)
    base = ece.summary(unedited)
    rows = [{"setting": "unedited"} | {name: str(base[name]) if name in base else "" for name in SHOWN}]
    found: dict[str, object] = {"unedited": {name: vars(mean) for name, mean in base.items()}, "facts": facts}

    per_neuron = {f"{text}, {n} tokens per neuron": {"corpus": text, "tokens": n * model.d_ff}
                  for text in texts.split(",") for n in (2, 8, 24, 72)}  # fmt: skip
    settings = {name: recipe.with_options(options) for name, options in per_neuron.items()}
    settings |= {f"lambda {value}": replace(recipe, regularise=value) for value in (1.5, 15.0, 150.0, 1500.0, 15000.0)}
    settings |= {f"neurons {score}, p {p}": replace(recipe, neurons=Neurons(score, p)) for score, p in SELECTIONS}
    for name, setting in settings.items():
        subjects = Subjects.prepare(model, wanted, recipe.edited[0], [""])
        deltas, _, _ = spread(model, setting, subjects, wanted_states, statistics(model, setting), history)
        model.overlay.push(model, deltas)
        quality = ece.summary(ece.evaluate(model, records), unedited)
        model.overlay.remove(model, deltas)
        rows.append({"setting": name} | {metric: str(quality[metric]) for metric in SHOWN})
        found[name] = {metric: vars(mean) for metric, mean in quality.items()}
    report(f"The update at fixed targets: {facts} facts from record {first}, layers {recipe.edited}", rows, found, json)


if __name__ == "__main__":
    typer.run(main)
