"""Searches that are made once: runs that differ only in what comes after the search find its targets here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from ece.facts import Fact
from ece.files import new_file, sound
from ece.methods.recipe import Recipe, TwoStep
from ece.methods.searching import Sought, pass_tokens, search
from ece.models import Model
from ece.studies.cells import Run
from ece.targets.clusters import Clusters
from ece.targets.descent import Solved
from ece.targets.warm import WarmStart


@dataclass(frozen=True)
class Searches:
    """Stands for `search`, and keeps what it finds under the SHA-256 of all that decides it."""

    folder: Path

    def __call__(
        self, model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]
    ) -> Sought:
        """What was found before, or is found now; another process that looks for the same is waited for."""
        place = self.folder / f"{decided_by(model, facts, recipe, warm, before)}.safetensors"
        place.parent.mkdir(exist_ok=True)
        with FileLock(place.with_suffix(".lock")):
            if not sound(place):
                sought = search(model, facts, recipe, warm, before)
                with new_file(place) as temporary:
                    save_file(_tensors(sought), temporary, {"seconds": str(sought.seconds)})
            return _read(place, model.device)


DECIDING = ("targets", "weights", "site")
"""The options that say how targets are sought, besides layers and contexts."""


def searching_alike(run: Run) -> str:
    """What runs have in common that find each other's targets: a run on the edited model has its own."""
    if run.options.get("targets_from") != "original":
        return run.key
    how = {name: run.options[name] for name in (*DECIDING, "layers", "contexts", "pass_tokens")}
    return json.dumps([run.data, run.batch_size, how], sort_keys=True)


def decided_by(model: Model, facts: Sequence[Fact], recipe: Recipe, warm: WarmStart, before: Sequence[str]) -> str:
    """16 hexadecimal digits of the SHA-256 of everything that a search's outcome depends on."""
    two_step = isinstance(recipe.targets, TwoStep)
    options = recipe.options()
    asked = {
        "model": model.fingerprint,
        "dtype": str(model.network.dtype),
        "facts": [dataclasses.astuple(fact) for fact in facts],
        "options": {name: options[name] for name in DECIDING},
        "pass_tokens": pass_tokens(model, recipe),
        "layers": [recipe.edited[0], recipe.edited[-1]] if two_step else [recipe.edited[-1]],
        "before": list(before[: 1 + recipe.contexts]),
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(save({str(i): tensor.contiguous() for i, tensor in enumerate(_state(model, recipe, warm))}))
    return digest.hexdigest()[:16]


def _state(model: Model, recipe: Recipe, warm: WarmStart) -> Iterator[Tensor]:
    """What earlier batches left: their changes, if the targets are sought on the edited model; what was learned."""
    if recipe.targets_from == "current":
        for delta in model.overlay.stack:
            for layer, change in sorted(delta.items()):
                yield from (torch.tensor(layer), change.left, change.right, change.neurons)
    if getattr(recipe.targets, "warm", False):
        yield from warm.learned


def _tensors(sought: Sought) -> dict[str, Tensor]:
    parts = vars(sought.solved) | (vars(sought.clusters) if sought.clusters else {})
    return {name: tensor.contiguous().cpu() for name, tensor in parts.items()}


def _read(place: Path, device: torch.device) -> Sought:
    parts = load_file(place, str(device))
    with safe_open(place, "pt") as file:
        seconds = float(file.metadata()["seconds"])
    solved = Solved(**{field.name: parts[field.name] for field in dataclasses.fields(Solved)})
    clusters = Clusters(parts["of_fact"], parts["anchors"]) if "anchors" in parts else None
    return Sought(solved, clusters, seconds)
