"""A journal of 100 batches of 100 facts on SmolLM2: time to open and apply, time to undo the last batch, size.

python benchmarks/journal.py [--batches 100] [--facts 100]

The factors are random numbers of the right shapes, stored as an edit's are: none of these figures depends on their
values.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import start

import ece
from ece.edits.edit import FactEntry, Manifest
from ece.edits.folder import Applied
from ece.edits.journal import Journal, key, writing
from ece.edits.packing import rounded
from ece.models import LowRank


def main(
    batches: Annotated[int, typer.Option(help="How many batches.")] = 100,
    facts: Annotated[int, typer.Option(help="Facts in each.")] = 100,
    layers: Annotated[str, typer.Option(help="The edited layers.")] = "3,4,5,6,7",
) -> None:
    """Write the journal, open it, apply it, and undo its last batch."""
    model = ece.load()
    edited = [int(layer) for layer in layers.split(",")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "edits"
        with writing(folder) as journal:
            for number in range(batches):
                journal = journal.batch(_edit(model, edited, facts, number))
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        print(f"{batches * facts} facts take {size / 1e6:.1f} MB, {size / batches / facts / 1e3:.1f} kB each")
        began, used = time.perf_counter(), time.process_time()
        Applied(model).follow(Journal.read(folder))
        print(f"opened, checked and applied in {_since(began, used)}")
        began, used = time.perf_counter(), time.process_time()
        with writing(folder) as journal:
            journal.undo({key(fact) for fact in journal.in_force[-1].facts})
        print(f"last batch undone in {_since(began, used)}")


def _since(began: float, used: float) -> str:
    return f"{time.perf_counter() - began:.2f} s, of which {time.process_time() - used:.2f} s of processor time"


def _edit(model: ece.Model, layers: list[int], facts: int, number: int) -> ece.Edit:
    def random(*shape: int) -> torch.Tensor:
        return 1e-3 * torch.randn(*shape)

    neurons = torch.arange(model.d_ff)
    deltas = {
        layer: rounded(LowRank(random(model.d_model, facts), random(facts, model.d_ff), neurons)) for layer in layers
    }
    entries = [
        FactEntry(prompt="{} is in the city of", subject=f"Place {number} {i}", target="Rome") for i in range(facts)
    ]
    manifest = Manifest(
        method="ece",
        options=ece.method("ece").options(),
        model=model.name,
        fingerprint=model.fingerprint,
        layers=layers,
        neurons=dict.fromkeys(layers, model.d_ff),
        facts=entries,
        contexts=[""],
        seconds=0.0,
        derived_keys=True,
    )
    return ece.Edit(deltas, {}, {}, random(facts, model.d_model), random(facts, model.d_model), manifest)


if __name__ == "__main__":
    start(main)
