"""Hyper-parameters by the same random search with the same budget for every method, on CounterFact records 1000-1999.

python benchmarks/tune.py --data counterfact.json [--methods rome,memit] [--trials 20] [--facts 200] [--out FOLDER]

A trial edits facts in sequence and scores the edited model on their records. Trials are numbered; each method's n-th
trial is drawn from its own space with the same seed, and the first one is the method as it is declared. What a search
for targets depends on is drawn first, and so is the same in the n-th trial of all methods that search alike: their
searches are made once (FOLDER/targets). Every trial is written to FOLDER/METHOD.jsonl when it is done: run again, it
goes on where it stopped. At the end the best trial of each method goes into the model's file of options
(`src/ece/methods/hyperparameters`), with its source.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

import ece
from ece.files import new_file
from ece.methods.presets import Preset, Setting, Size
from ece.methods.recipe import PerFact, Recipe, TwoStep
from ece.methods.recipes import RECIPES
from ece.methods.registry import as_recipe
from ece.methods.searching import Search, search
from ece.studies.searches import Searches
from ece.studies.setup import given_options
from ece.targets.descent import LogOdds
from ece.update.after import Prune, Rect
from ece.update.solvers import Equality, LeastSquares, NullSpace

TUNED = slice(1000, 2000)
"""Records that may be tuned on."""

OPTIONS = Path(__file__).parents[1] / "src" / "ece" / "methods" / "hyperparameters"
log = logging.getLogger("ece.tune")


def drawn(recipe: Recipe, layers: int, generator: random.Random) -> dict[str, Any]:
    """A point of a method's space: what its search depends on, then what its own choices have."""

    def logarithmic(low: float, high: float) -> float:
        return float(f"{math.exp(generator.uniform(math.log(low), math.log(high))):.2g}")

    last = generator.randrange(max(1, layers // 8), max(2, layers // 2))
    point: dict[str, Any] = {
        "layers": list(range(max(0, last - 4), last + 1)),
        "weights.clamp": logarithmic(0.3, 4),
        "weights.kl": generator.choice([0.0625, 0.25, 1.0]),
    }
    match recipe.targets:
        case PerFact(descent=LogOdds()):
            point["targets.descent.aim"] = round(generator.uniform(2, 6), 1)
        case PerFact():
            point["targets.descent.rate"] = logarithmic(0.1, 2)
        case TwoStep():
            point["targets.shared.rate"] = point["targets.own.rate"] = logarithmic(0.1, 2)
    if recipe.regularise:
        point["regularise"] = logarithmic(10, 20_000)
    match recipe.solve:
        case LeastSquares(ridge=ridge) if ridge:
            point["solve.ridge"] = logarithmic(0.1, 100)
        case Equality() if recipe.at_once != 1:
            point["solve.slack"] = generator.choice([0.0, logarithmic(1e-3, 1)])
        case NullSpace():
            point["solve.threshold"] = logarithmic(1e-3, 1)
            point["solve.ridge"] = logarithmic(0.1, 100)
    match recipe.after:
        case Prune():
            point["after.base"] = round(generator.uniform(1.2, 4), 1)
        case Rect():
            point["after.share"] = round(generator.uniform(0.2, 0.8), 1)
    if recipe.neurons.p < 1:
        point["neurons.p"] = round(generator.uniform(0.6, 1.0), 2)
    if recipe.rounds.at_most > 1:
        point["rounds.at_most"] = generator.choice([2, 3])
        point["rounds.above"] = logarithmic(0.01, 10)
    return point


def tried(
    model: ece.Model, recipe: Recipe, records: list[Any], before: list[Any], batch_size: int, search: Search = search
) -> dict[str, Any]:
    """Edit the facts in sequence, score them, and give the model back as it was."""
    began, edits = time.monotonic(), list[ece.Edit]()
    try:
        facts = [record.fact() for record in records]
        for made in ece.edit_in_sequence(model, facts, recipe, batch_size, search=search):
            edits.append(made)
        means = ece.summary(ece.evaluate(model, records), before)
        seconds = sum(made.manifest.seconds for made in edits)  # a search that was made before counts as if it were not
        return {"score": means["score"].mean, "seconds": seconds, "metrics": {k: vars(m) for k, m in means.items()}}
    except (ece.UserError, ValueError, RuntimeError) as error:
        return {"score": 0.0, "seconds": time.monotonic() - began, "failed": str(error)}
    finally:
        for made in reversed(edits):
            made.revert(model)


def read(file: Path) -> list[dict[str, Any]]:
    """The trials that are done."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def keep_best(model: ece.Model, file: Path, found: dict[str, list[dict[str, Any]]], about: str) -> None:
    """Write each method's best trial into the model's file of options; what is there of other methods stays."""
    preset = (
        Preset.model_validate_json(file.read_bytes()) if file.exists() else Preset(model=Size.of(model), methods={})
    )
    for name, trials in found.items():
        best = max(trials, key=lambda trial: trial["score"])
        source = f"benchmarks/tune.py, {about}, the best of {len(trials)} trials: score {best['score']:.1f}"
        preset.methods[name] = Setting(source=source, options=best["options"])
    with new_file(file) as temporary:
        temporary.write_text(preset.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = Path("../shared/data/counterfact.json"),
    model: Annotated[str, typer.Option(help="As for `ece edit`.")] = "smollm2",
    methods: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    trials: Annotated[int, typer.Option(min=1, help="Of each method.")] = 20,
    facts: Annotated[int, typer.Option(min=1, help="Edited in a trial, from record 1000 on.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Facts in a batch.")] = 100,
    set: Annotated[list[str] | None, typer.Option(help="key=value, the same in every trial of all methods.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the trials.")] = Path("docs/results/tuning"),
    write: Annotated[str, typer.Option(help="Name of the file of options; none: only the trials.")] = "smollm2-135m",
) -> None:
    """Search, trial by trial and method by method, so that all have as many whenever it is stopped."""
    logging.basicConfig(level=logging.WARNING)
    log.setLevel(logging.INFO)
    loaded = ece.load(model)
    records = ece.read_counterfact(data)[TUNED][:facts]
    before = ece.evaluate(loaded, records)
    given = given_options(set)
    names = methods.split(",") if methods else [recipe.name for recipe in RECIPES]
    found = {name: read(out / f"{name}.jsonl") for name in names}
    out.mkdir(parents=True, exist_ok=True)
    searches = Searches(out / "targets")
    for number, name in tqdm([(number, name) for number in range(trials) for name in names], unit="trial"):
        if number < len(found[name]):
            continue
        recipe = as_recipe(name).with_options(given)
        point = drawn(recipe, len(loaded.layers), random.Random(number)) if number else {}
        options = given | {name: value for name, value in point.items() if name not in given}
        result = tried(loaded, recipe.with_options(options), records, before, batch_size, searches)
        trial = {"trial": number, "options": options, **result, "facts": len(records), "batch_size": batch_size}
        with (out / f"{name}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(trial) + "\n")
        found[name].append(trial)
        log.info("%s, trial %d: score %.1f in %.0f s, %s", name, number, trial["score"], trial["seconds"], options)
    if write != "none":
        about = f"{len(records)} CounterFact records from 1000 on in batches of {batch_size}"
        keep_best(loaded, OPTIONS / f"{write}.json", found, about)


if __name__ == "__main__":
    typer.run(main)
