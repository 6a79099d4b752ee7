"""How often facts are taken for clashing: paraphrases of one fact, which should be, and facts of other subjects.

python benchmarks/clashes.py --data counterfact.json [--first 1000] [--facts 1000] [--json FILE]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, report, start

import ece
from ece.methods.conflicts import SAME_RELATION, whitened, words_in_common
from ece.methods.engine import with_layers
from ece.methods.registry import as_recipe

THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    first: Annotated[int, typer.Option(help="First record.")] = 1000,
    facts: Annotated[int, typer.Option(help="How many.")] = 1000,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Compare every fact with a paraphrase of its own, and with the facts of all other subjects."""
    model = ece.load()
    pairs = [
        (record.fact(), replace(record.fact(), prompt=text.replace(record.fact().subject, "{}")))
        for record in ece.read_counterfact(data)[first : first + facts]
        for text in record.paraphrase_prompts[:1]
        if text.count(record.fact().subject) == 1
    ]
    wanted, said = [fact for fact, _ in pairs], [paraphrase for _, paraphrase in pairs]
    recipe = with_layers(model, wanted[:100], as_recipe("ece"))
    keys = whitened(model, [*wanted, *said], recipe)
    own, paraphrases = keys[: len(wanted)], keys[len(wanted) :]
    together = (own * paraphrases).sum(1)
    words = torch.tensor([words_in_common(a.prompt, b.prompt) for a, b in zip(wanted, said, strict=True)])
    subjects = {fact.subject: number for number, fact in enumerate(wanted)}
    number = torch.tensor([subjects[fact.subject] for fact in wanted])
    apart = (own @ own.T).masked_fill(number[:, None] == number, -1.0).max(1).values
    rows = [
        {
            "found by": f"keys, cosine of {threshold} or more",
            "paraphrases (%)": 100 * (together >= threshold).float().mean().item(),
            "facts near another subject's (%)": 100 * (apart >= threshold).float().mean().item(),
        }
        for threshold in THRESHOLDS
    ]
    overlapping = 100 * (words >= SAME_RELATION).float().mean().item()
    rows.append({"found by": f"words, overlap of {SAME_RELATION} or more", "paraphrases (%)": overlapping,
                 "facts near another subject's (%)": 0.0})  # fmt: skip
    report(f"{len(wanted)} facts, keys of layer {recipe.edited[-1]}", rows, {"facts": len(wanted), "rows": rows}, json)


if __name__ == "__main__":
    start(main)
