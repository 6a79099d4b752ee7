"""Where in a neighbour's prompt an edit disturbs it: the change is laid over some of the tokens only.

A neighbour's subject is what stands before the words that some prompt of the data ends with.

python benchmarks/positions.py --data counterfact.json [--first 1000] [--facts 600] [--set keep_after=0] [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import COUNTERFACT, report, start
from torch import Tensor

import ece
from ece.facts import CounterFactRecord
from ece.models.replay import padded, passes
from ece.models.tokens import Tokens, locate

PASS_TOKENS = 1024

Where = Callable[[Tensor, Tensor], Tensor]
"""Which positions `[positions]` are changed, where the subjects' last ones are `[rows, 1]`."""

WHERE: dict[str, Where] = {
    "no token": lambda place, last: (place < 0).expand(len(last), -1),
    "all": lambda place, last: (place >= 0).expand(len(last), -1),
    "the subject's last": lambda place, last: place == last,
    "those before it": lambda place, last: place < last,
    "those after it": lambda place, last: place > last,
    "all but the subject's last": lambda place, last: place != last,
    "all but those before it": lambda place, last: place >= last,
    "all but those after it": lambda place, last: place <= last,
}


@dataclass(frozen=True)
class Neighbour:
    """A prompt about another subject, followed by the true object and by the new one."""

    true: Tokens
    new: Tokens


def endings(records: Sequence[CounterFactRecord]) -> list[str]:
    """What follows the subject in the records' prompts and paraphrases, longest first."""
    prompts = [(record.fact().subject, record.fact().prompt) for record in records]
    said = [prompt.split("{}")[1] for _, prompt in prompts]
    for record, (subject, _) in zip(records, prompts, strict=True):
        said += [text.rsplit(subject, 1)[1] for text in record.paraphrase_prompts if subject in text]
    return sorted({ending for ending in said if ending.strip()}, key=len, reverse=True)


def neighbours(
    model: ece.Model, records: Sequence[CounterFactRecord], known: Sequence[str], each: int
) -> list[Neighbour]:
    """The first neighbour prompts of every record whose end is known."""
    found = []
    for record in records:
        rewrite = record.requested_rewrite
        for prompt in record.neighborhood_prompts[:each]:
            ending = next((end for end in known if prompt.endswith(end) and len(prompt) > len(end)), None)
            if ending and rewrite.target_true:
                subject, template = prompt.removesuffix(ending), "{}" + ending
                objects = (rewrite.target_true.text, rewrite.target_new.text)
                found.append(Neighbour(*(locate(model, template, subject, target=text) for text in objects)))
    return found


@contextmanager
def changed(model: ece.Model, change: Mapping[int, Tensor], tokens: Tensor) -> Iterator[None]:
    """While this lasts, the weights differ by `change` at `tokens` `[rows, positions]` (bool)."""

    def at(layer: int) -> Callable[..., Tensor]:
        return lambda _, inputs, output: output + tokens[..., None] * (inputs[0] @ change[layer].T)

    with ExitStack() as stack:
        for layer in change:
            stack.callback(model.ffn_output(layer).register_forward_hook(at(layer)).remove)
        yield


@torch.no_grad()
def log_probabilities(model: ece.Model, texts: Sequence[Tokens], change: Mapping[int, Tensor], where: Where) -> Tensor:
    """Of each text's target, the mean over its tokens `[texts]`."""
    found = torch.empty(len(texts))
    for group in passes([len(text.ids) for text in texts], PASS_TOKENS):
        ids, visible = padded([texts[i].ids for i in group], model.device)
        last = torch.tensor([[texts[i].subject_last] for i in group], device=model.device)
        with changed(model, change, where(torch.arange(ids.shape[1], device=model.device), last)):
            said = model.network(ids, attention_mask=visible.long(), use_cache=False).logits.log_softmax(-1)
        for row, i in zip(said, group, strict=True):
            start, target = texts[i].target_start, torch.tensor(texts[i].target, device=model.device)
            found[i] = row[start - 1 : start - 1 + len(target)].gather(1, target[:, None]).mean()
    return found


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
    recipe = ece.method("ece").with_options(dict(option.split("=", 1) for option in set or []))
    made = list(ece.edit_in_sequence(model, [record.fact() for record in some], recipe, batch_size))
    change = {layer: model.weight(layer) - base for layer, base in model.overlay.base.items()}
    for edit in reversed(made):
        edit.revert(model)
    asked = neighbours(model, some[::every], endings(records), each)
    texts = [text for prompt in asked for text in (prompt.true, prompt.new)]
    rows, leads = [], {}
    for name, where in WHERE.items():
        true, new = log_probabilities(model, texts, change, where).unflatten(0, (-1, 2)).T
        leads[name] = true - new
        moved = leads[name] - leads["no token"]
        rows.append(
            {
                "change at": name,
                "specificity (%)": 100 * (leads[name] > 0).float().mean().item(),
                "soft (%)": 100 * leads[name].sigmoid().mean().item(),
                "lead, change (nats)": moved.mean().item(),
                "its size (nats)": moved.abs().mean().item(),
            }
        )
    found = {"set": set or [], "first": first, "facts": facts, "prompts": len(asked), "rows": rows}
    title = (
        f"{facts} edits from record {first}, layers {sorted(change)}: the true object's lead in {len(asked)} prompts"
    )
    report(title, rows, found, json)


if __name__ == "__main__":
    start(main)
