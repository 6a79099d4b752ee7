"""Hyper-parameters by the same random search with the same budget for every method, on CounterFact records 1000-1999.

python benchmarks/tune.py --data counterfact.json [--methods rome,memit] [--trials 20] [--facts 200] [--out FOLDER]

A trial edits facts in sequence and scores the edited model on their records. Trials are numbered; each method's n-th
trial is drawn from its own space with the same seed, and the first one is the method as it is declared. What a search
for targets depends on is drawn first, and so is the same in the n-th trial of all methods that search alike: their
searches are made once (FOLDER/targets); with `--one-search` it is not drawn at all, and one search serves all trials.
MEND and SERAC are trained for each trial (FOLDER/trained), by `ece train` on those of the records that no trial edits;
what is drawn for that begins with `train.`. Every trial is written to FOLDER/METHOD.jsonl when it is done: run again,
it goes on where it stopped. At the end what was drawn in the best trial of each method goes into the model's file of
options (`src/ece/methods/hyperparameters`), with its source.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from machine import COUNTERFACT, start
from tqdm import tqdm

import ece
from ece.cli.train import mend, serac
from ece.files import new_file
from ece.methods.finetune import FineTuning
from ece.methods.grace import Grace
from ece.methods.ike import Ike
from ece.methods.mend import LAST_LAYERS, Mend
from ece.methods.method import Method
from ece.methods.presets import Preset, Setting, Size
from ece.methods.recipe import PerFact, Recipe, TwoStep
from ece.methods.registry import METHODS, method
from ece.methods.searching import Search, search
from ece.methods.serac import Serac
from ece.provenance import file_hash
from ece.studies.searches import Searches
from ece.studies.setup import check_options, given_options, given_to
from ece.studies.store import Store
from ece.targets.descent import LogOdds
from ece.training.trainer import CHECKPOINT, WEIGHTS
from ece.update.after import Prune, Rect
from ece.update.solvers import Equality, LeastSquares, NullSpace

TUNED = slice(1000, 2000)
"""Records that may be tuned on."""

OPTIONS = Path(__file__).parents[1] / "src" / "ece" / "methods" / "hyperparameters"
TRAIN = "train."
"""What options of a method's training begin with."""

TRAINING = {"mend": mend, "serac": serac}
"""What trains a method: the commands of `ece train`."""

log = logging.getLogger("ece.tune")


Point = dict[str, Any]
"""Options by dotted name."""


@dataclass(frozen=True)
class Draw:
    """Where a method's options are drawn from."""

    generator: random.Random
    layers: int
    """The model's."""

    def logarithmic(self, low: float, high: float) -> float:
        """Two digits, evenly on a logarithmic scale."""
        return float(f"{math.exp(self.generator.uniform(math.log(low), math.log(high))):.2g}")

    def search(self, recipe: Recipe) -> Point:
        """What a recipe's search for targets depends on."""
        last = self.generator.randrange(max(1, self.layers // 8), max(2, self.layers // 2))
        point: Point = {
            "layers": list(range(max(0, last - 4), last + 1)),
            "weights.clamp": self.logarithmic(0.3, 4),
            "weights.kl": self.generator.choice([0.0625, 0.25, 1.0]),
        }
        match recipe.targets:
            case PerFact(descent=LogOdds()):
                point["targets.descent.aim"] = round(self.generator.uniform(2, 6), 1)
            case PerFact():
                point["targets.descent.rate"] = self.logarithmic(0.1, 2)
            case TwoStep():
                point["targets.shared.rate"] = point["targets.own.rate"] = self.logarithmic(0.1, 2)
        return point

    def update(self, recipe: Recipe) -> Point:
        """What a recipe has of its own in neurons, solving and what follows it."""
        point: Point = {}
        if recipe.regularise:
            point["regularise"] = self.logarithmic(10, 20_000)
        match recipe.solve:
            case LeastSquares(ridge=ridge) if ridge:
                point["solve.ridge"] = self.logarithmic(0.1, 100)
            case Equality() if recipe.at_once != 1:
                point["solve.slack"] = self.generator.choice([0.0, self.logarithmic(1e-3, 1)])
            case NullSpace():
                point["solve.threshold"] = self.logarithmic(1e-3, 1)
                point["solve.ridge"] = self.logarithmic(0.1, 100)
        match recipe.after:
            case Prune():
                point["after.base"] = round(self.generator.uniform(1.2, 4), 1)
            case Rect():
                point["after.share"] = round(self.generator.uniform(0.2, 0.8), 1)
        if recipe.neurons.p < 1:
            point["neurons.p"] = round(self.generator.uniform(0.6, 1.0), 2)
        if recipe.rounds.at_most > 1:
            point["rounds.at_most"] = self.generator.choice([2, 3])
            point["rounds.above"] = self.logarithmic(0.01, 10)
        return point

    def training(self, tuning: FineTuning) -> Point:
        """Of fine-tuning."""
        point: Point = {
            "layers": [self.generator.randrange(self.layers - 1)],
            "rate": self.logarithmic(2e-4, 2e-2),
        }
        if tuning.bound:
            point["bound"] = self.logarithmic(5e-4, 5e-2)
        if tuning.decay:
            point["decay"] = self.logarithmic(1e-5, 2e-2)
        return point

    def codebook(self) -> Point:
        """Of GRACE."""
        return {"layer": self.generator.randrange(self.layers - 1), "epsilon": self.logarithmic(0.3, 100)}

    def hyper_network(self) -> Point:
        """Of MEND."""
        highest = max(0, self.layers - LAST_LAYERS)
        first = self.generator.randrange(min(self.layers // 2, highest), highest + 1)
        return {
            f"{TRAIN}layers": f"{first}-{first + LAST_LAYERS - 1}",
            f"{TRAIN}c_edit": self.logarithmic(0.02, 1),
            f"{TRAIN}rate": self.logarithmic(2e-4, 2e-3),
            "scale": self.logarithmic(0.05, 2),
        }

    def scope(self) -> Point:
        """Of SERAC."""
        return {
            f"{TRAIN}dimensions": self.generator.choice([32, 64, 128, 256]),
            f"{TRAIN}rate": self.logarithmic(1e-5, 1e-3),
            "threshold": round(self.generator.uniform(0.1, 0.9), 2),
        }

    def retrieval(self) -> Point:
        """Of IKE."""
        return {
            "demonstrations": self.generator.choice([0, 2, 4, 16, 32]),
            "radius": self.logarithmic(0.2, 1),
        }


def drawn(method: Method, layers: int, number: int, *, one_search: bool = False) -> Point:
    """A method's n-th point."""
    draw = Draw(random.Random(number), layers)
    match method:
        case Recipe():
            return ({} if one_search else draw.search(method)) | draw.update(method)
        case FineTuning():
            return draw.training(method)
        case Grace():
            return draw.codebook()
        case Mend():
            return draw.hyper_network()
        case Serac():
            return draw.scope()
        case Ike():
            return draw.retrieval()
        case _:
            raise ece.UserError(f"{method.name} has nothing that is drawn here; leave it out of --methods")


def parted(options: Point) -> tuple[Point, Point]:
    """Options of a method's training, without `train.`, and of the method itself."""
    training = {key.removeprefix(TRAIN): value for key, value in options.items() if key.startswith(TRAIN)}
    return training, {key: value for key, value in options.items() if not key.startswith(TRAIN)}


def trained(name: str, training: Point, model: str, data: Path, first: int, folder: Path) -> Point:
    """Train what a method needs on the records that may be tuned on from the `first` on, unless it is there.

    Returns:
        The option that says where it is.
    """
    if not (folder / WEIGHTS).exists():
        records, resume = f"{first}-{TUNED.stop - 1}", (folder / CHECKPOINT).exists()
        TRAINING[name](data, model, records=records, output=folder, resume=resume, **training)
    return {"weights": str(folder)}


def tried(
    model: ece.Model, recipe: Method, records: list[Any], before: list[Any], batch_size: int, search: Search = search
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


def keep_best(
    model: ece.Model, file: Path, found: dict[str, list[dict[str, Any]]], asked: Mapping[str, str], about: str
) -> None:
    """Write what was drawn in each method's best trial into the model's file of options; other methods' stay."""
    preset = (
        Preset.model_validate_json(file.read_bytes()) if file.exists() else Preset(model=Size.of(model), methods={})
    )
    for name, trials in found.items():
        best = max(trials, key=lambda trial: trial["score"])
        source = f"benchmarks/tune.py, {about}, the best of {len(trials)} trials: score {best['score']:.1f}"
        given = given_to(method(name), asked)
        training, of_method = parted(best["options"])
        options = {key: value for key, value in of_method.items() if key not in given}
        note = f"trained with {training}" if training else None
        preset.methods[name] = Setting(source=source, options=options, note=note)
    with new_file(file) as temporary:
        temporary.write_text(preset.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    model: Annotated[str, typer.Option(help="As for `ece edit`.")] = "smollm2",
    methods: Annotated[str, typer.Option(help="Names, separated by commas; all by default.")] = "",
    trials: Annotated[int, typer.Option(min=1, help="Of each method.")] = 20,
    facts: Annotated[int, typer.Option(min=1, help="Edited in a trial, from record 1000 on.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Facts in a batch.")] = 100,
    set: Annotated[
        list[str] | None, typer.Option(help="key=value, for all trials of all methods that have it.")
    ] = None,
    one_search: Annotated[bool, typer.Option("--one-search", help="Draw nothing that a search depends on.")] = False,
    neighbours: Annotated[int | None, typer.Option(help="Of each record, measured in a trial; all by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the trials.")] = Path("docs/results/tuning"),
    write: Annotated[str, typer.Option(help="Name of the file of options; none: only the trials.")] = "smollm2-135m",
) -> None:
    """Search, trial by trial and method by method, so that all have as many whenever it is stopped."""
    logging.basicConfig(level=logging.WARNING)
    log.setLevel(logging.INFO)
    loaded, asked = ece.load(model), given_options(set)
    same = {"facts": facts, "batch_size": batch_size, "neighbours": neighbours, "one_search": one_search, "set": asked}
    names = methods.split(",") if methods else list(METHODS)
    check_options(asked, {name: given_to(method(name), asked) for name in names})
    Store(out).keep({"model": loaded.fingerprint, "data": file_hash(data)} | same)
    records = [
        record.model_copy(update={"neighborhood_prompts": record.neighborhood_prompts[:neighbours]})
        for record in ece.read_counterfact(data)[TUNED][:facts]
    ]
    before = ece.evaluate(loaded, records)
    found = {name: read(out / f"{name}.jsonl") for name in names}
    searches = Searches(out / "targets")
    for number, name in tqdm([(number, name) for number in range(trials) for name in names], unit="trial"):
        if number < len(found[name]):
            continue
        given = given_to(method(name), asked)
        declared = method(name).with_options(given)
        point = drawn(declared, len(loaded.layers), number, one_search=one_search) if number else {}
        options = given | {name: value for name, value in point.items() if name not in given}
        training, of_method = parted(options)
        if name in TRAINING:
            folder = out / "trained" / f"{name}-{number}"
            of_method |= trained(name, training, model, data, TUNED.start + len(records), folder)
        result = tried(loaded, declared.with_options(of_method), records, before, batch_size, searches)
        trial = {"trial": number, "options": options, **result, "facts": len(records), "batch_size": batch_size}
        with (out / f"{name}.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(trial) + "\n")
        found[name].append(trial)
        log.info("%s, trial %d: score %.1f in %.0f s, %s", name, number, trial["score"], trial["seconds"], options)
    if write != "none":
        about = f"{len(records)} CounterFact records from 1000 on in batches of {batch_size}"
        about += "".join(f", {key}={value}" for key, value in asked.items())
        keep_best(loaded, OPTIONS / f"{write}.json", found, asked, about)


if __name__ == "__main__":
    start(main)
