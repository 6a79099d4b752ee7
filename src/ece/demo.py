"""The demonstration: some shipped facts, edited in one batch, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ece.edits.edit import Edit
from ece.edits.folder import append
from ece.evaluation.counterfact import METRICS, evaluate, summary
from ece.evaluation.means import Mean
from ece.facts import DEMONSTRATED, read_counterfact, shipped_file
from ece.methods import registry
from ece.methods.engine import edit
from ece.methods.presets import with_preset
from ece.models import Model
from ece.models.generate import continuations


@dataclass(frozen=True)
class Demonstration:
    """What the demonstration did and found."""

    edit: Edit
    place: Path
    rows: list[dict[str, str]]
    before: dict[str, Mean]
    after: dict[str, Mean]


def demonstrate(model: Model, folder: Path, facts: int = DEMONSTRATED, method: str = "ece") -> Demonstration:
    """Edit the first shipped facts in one batch and save the edit; the model is given back as it was.

    Args:
        model: without edits.
        folder: of the edits; a batch is added.
        facts: how many.
        method: which.
    """
    records = read_counterfact(shipped_file())[:facts]
    edited = [record.fact() for record in records]
    prompts = [fact.question for fact in edited]
    paraphrases = [record.paraphrase_prompts[0] for record in records]
    neighbours = [record.neighborhood_prompts[0] for record in records]
    before, neighbour_before = _said(model, prompts, neighbours)
    scored_before = evaluate(model, records)
    made = edit(model, edited, with_preset(registry.method(method), model))
    place = append(folder, made)
    made.apply(model)
    after, paraphrase_after, neighbour_after = _said(model, prompts, paraphrases, neighbours)
    scored_after = evaluate(model, records)
    made.revert(model)
    columns = {
        "prompt": prompts,
        "target": [fact.target for fact in edited],
        "before": before,
        "after": after,
        "paraphrase": paraphrases,
        "paraphrase_after": paraphrase_after,
        "neighbour": neighbours,
        "neighbour_before": neighbour_before,
        "neighbour_after": neighbour_after,
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return Demonstration(made, place, rows, summary(scored_before), summary(scored_after, scored_before))


def _said(model: Model, *columns: Sequence[str]) -> list[list[str]]:
    """What the model writes after each prompt of some columns, which have the same length."""
    prompts = [prompt for row in zip(*columns, strict=True) for prompt in row]
    texts = [" ".join(text.split()) for text in continuations(model, prompts, tokens=4)]
    return [texts[column :: len(columns)] for column in range(len(columns))]


def rendered(shown: Demonstration) -> RenderableType:
    """Tables for the terminal."""
    table = Table(title="What the model writes next", show_lines=True, expand=True)
    for heading in ("edited fact", "before", "after", "a paraphrase, after", "a neighbour, which must not change"):
        table.add_column(heading, ratio=3 if " " in heading else 2)
    for row in shown.rows:
        changed = "" if row["neighbour_before"] == row["neighbour_after"] else f" -> {escape(row['neighbour_after'])}"
        table.add_row(
            escape(row["prompt"]),
            escape(row["before"]),
            _marked(row["after"], row["target"]),
            f"{escape(row['paraphrase'])} {_marked(row['paraphrase_after'], row['target'])}",
            f"{escape(row['neighbour'])} [dim]{escape(row['neighbour_before'])}[/]{changed}",
        )
    return Group(table, metrics_table(shown.before, shown.after), closing(shown.edit, shown.place))


def _marked(text: str, target: str) -> str:
    right = text.lower().startswith(target.lower()[: len(text)]) and text
    return f"[green]{escape(text)}[/]" if right else f"[yellow]{escape(text)}[/]"


def metrics_table(before: dict[str, Mean], after: dict[str, Mean]) -> Table:
    """Efficacy, generalization, specificity and score, before and after."""
    table = Table(title="Percent of prompts, ± standard error")
    for heading in ("", *METRICS, "score"):
        table.add_column(heading, justify="right")
    for name, values in (("before", before), ("after", after)):
        table.add_row(name, *(str(values[metric]) for metric in (*METRICS, "score")))
    return table


def closing(made: Edit, place: Path) -> str:
    """Where and how much was changed, how long it took, and where it was saved."""
    manifest = made.manifest
    counts = sorted(set(manifest.neurons.values())) or [0]
    neurons = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    layers = f"layers {manifest.layers[0]} to {manifest.layers[-1]}" if manifest.layers else "no layers"
    each = manifest.seconds / len(manifest.facts)
    return (
        f"{len(made.facts)} facts in {manifest.seconds:.1f} s ({each:.2f} s per edit); "
        f"{layers}, {neurons} neurons in each; saved in {place}"
    )
