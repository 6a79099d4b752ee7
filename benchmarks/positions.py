"""Where in a neighbour's prompt an edit disturbs it: the change is laid over some of the tokens only.

A neighbour's subject is what stands before the words that some prompt of the data ends with.

python benchmarks/positions.py --data counterfact.json [--first 1000] [--facts 600] [--set keep_after=0] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, report, start
from torch import Tensor

import ece
from ece.cli.options import chosen_method
from ece.facts import CounterFactRecord
from ece.models.replay import passes
from ece.models.texts import Texts, added
from ece.models.tokens import locate

PASS_TOKENS = 1024

Where = Callable[[Tensor, Tensor], Tensor]
"""Which of the `[positions]` are changed (bool, for all rows or `[rows, positions]`); the subjects' last ones are
`[rows, 1]`."""

WHERE: dict[str, Where] = {
    "no token": lambda place, last: place < 0,
    "all": lambda place, last: place >= 0,
    "the subject's last": lambda place, last: place == last,
    "those before it": lambda place, last: place < last,
    "those after it": lambda place, last: place > last,
    "all but the subject's last": lambda place, last: place != last,
    "all but those before it": lambda place, last: place >= last,
    "all but those after it": lambda place, last: place <= last,
}


@dataclass(frozen=True)
class Neighbour:
    """A prompt about another subject, and its objects."""

    template: str
    subject: str
    objects: tuple[str, str]
    """The true one and the new one."""


def endings(records: Sequence[CounterFactRecord]) -> list[str]:
    """What follows the subject in the records' prompts and paraphrases, longest first."""
    prompts = [(record.fact().subject, record.fact().prompt) for record in records]
    said = [prompt.split("{}")[1] for _, prompt in prompts]
    for record, (subject, _) in zip(records, prompts, strict=True):
        said += [text.rsplit(subject, 1)[1] for text in record.paraphrase_prompts if subject in text]
    return sorted({ending for ending in said if ending.strip()}, key=len, reverse=True)


def neighbours(records: Sequence[CounterFactRecord], known: Sequence[str], each: int) -> list[Neighbour]:
    """The first neighbour prompts of every record whose end is known."""
    found = []
    for record in records:
        rewrite = record.requested_rewrite
        for prompt in record.neighborhood_prompts[:each]:
            ending = next((end for end in known if prompt.endswith(end) and len(prompt) > len(end)), None)
            if ending and rewrite.target_true:
                objects = (rewrite.target_true.text, rewrite.target_new.text)
                found.append(Neighbour("{}" + ending, prompt.removesuffix(ending), objects))
    return found


@torch.no_grad()
def log_probabilities(
    model: ece.Model, asked: Sequence[Neighbour], change: Mapping[int, Tensor], where: Sequence[Where]
) -> Tensor:
    """Of both objects, the mean over their tokens, with the weights changed at some tokens `[where, asked, 2]`."""
    pairs = [(neighbour, target) for neighbour in asked for target in neighbour.objects]
    located = [locate(model, about.template, about.subject, target=target) for about, target in pairs]
    found = torch.empty(len(where), len(pairs))
    for group in passes([len(text.ids) for text in located], PASS_TOKENS):
        prompts = [about.template.format(about.subject) for about, _ in (pairs[i] for i in group)]
        texts = Texts.prepare(model, prompts, [pairs[i][1] for i in group], min(change, default=0))
        last = torch.tensor([[located[i].subject_last] for i in group], device=model.device)
        place = torch.arange(texts.visible.shape[1], device=model.device)
        for number, chosen in enumerate(where):
            tokens = chosen(place, last)[..., None]
            with added(model, {layer: partial(_change, tokens, weight) for layer, weight in change.items()}):
                found[number, group] = -texts.nll(texts.run()).to(found)
    return found.unflatten(1, (-1, 2))


def _change(tokens: Tensor, weight: Tensor, keys: Tensor) -> Tensor:
    return tokens * (keys @ weight.T)


def main(
    data: Annotated[Path, typer.Option(help="CounterFact records.")] = COUNTERFACT,
    first: Annotated[int, typer.Option(help="First record.")] = 1000,
    facts: Annotated[int, typer.Option(help="How many are edited.")] = 600,
    batch_size: Annotated[int, typer.Option(help="Facts in a batch.")] = 100,
    every: Annotated[int, typer.Option(help="Ask for the neighbours of every so many records.")] = 2,
    each: Annotated[int, typer.Option(help="So many of each.")] = 3,
    set: Annotated[list[str] | None, typer.Option(help="key=value, options of `ece`.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures here.")] = None,
) -> None:
    """Edit, take the change off again, and lay it over some tokens at a time."""
    model = ece.load()
    records = ece.read_counterfact(data)
    some = records[first : first + facts]
    recipe = chosen_method("ece", set)
    made = list(ece.edit_in_sequence(model, [record.fact() for record in some], recipe, batch_size))
    change = {layer: model.weight(layer) - base for layer, base in model.overlay.base.items()}
    for edit in reversed(made):
        edit.revert(model)
    asked = neighbours(some[::every], endings(records), each)
    said = log_probabilities(model, asked, change, list(WHERE.values()))
    leads = dict(zip(WHERE, said[..., 0] - said[..., 1], strict=True))
    rows = [
        {
            "change at": name,
            "specificity (%)": 100 * (lead > 0).float().mean().item(),
            "soft (%)": 100 * lead.sigmoid().mean().item(),
            "lead, change (nats)": (lead - leads["no token"]).mean().item(),
            "its size (nats)": (lead - leads["no token"]).abs().mean().item(),
        }
        for name, lead in leads.items()
    ]
    found = {"set": set or [], "first": first, "facts": facts, "prompts": len(asked), "rows": rows}
    title = f"{facts} edits from record {first}, layers {sorted(change)}: {len(asked)} prompts about neighbours"
    report(title, rows, found, json)


if __name__ == "__main__":
    start(main)
