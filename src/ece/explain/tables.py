"""An explanation on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ece.explain.explanation import Explanation, Located
from ece.explain.vocabulary import Token

FACTS = 10
LONGEST = 14
"""Characters of a token that are shown."""

SCORES = {
    "as": "Activation Score, |a|",
    "wi": "Weight Importance, the sum of |W| in the neuron's column",
    "rs": "Residual Sensitivity, |a| · ‖W‖",
    "random": "none: chosen at random (a control); the scores shown are Residual Sensitivity, |a| · ‖W‖",
}


def rendered(explanation: Explanation, facts: int = FACTS) -> Group:
    """All tables, with those of the first `facts` facts. Made for 100 columns."""
    hidden = len(explanation.facts) - facts
    parts: list[RenderableType] = [
        layers_table(explanation),
        *(fact_table(located) for located in explanation.facts[:facts]),
        *([Text(f"  … and {hidden} more facts\n", style="dim")] if hidden > 0 else []),
        clusters_table(explanation),
    ]
    return Group(*parts)


def layers_table(explanation: Explanation) -> Table:
    """The neurons chosen in each layer (Eq. 8), and how much of the score they hold."""
    percent = f"{100 * explanation.fraction:.0f} %"
    table = _table(
        f"Neurons chosen in {explanation.model} by {explanation.method}",
        f"score: {SCORES.get(explanation.score, explanation.score)}",
    )
    for heading in ("layer", "chosen", "of all neurons", "of the score", f"one fact's {percent} (median)"):
        table.add_column(heading, justify="right")
    for place, chosen in enumerate(explanation.layers):
        own = sorted(located.sites[place].own for located in explanation.facts)[len(explanation.facts) // 2]
        table.add_row(
            str(chosen.layer),
            f"{len(chosen.neurons):,}",
            f"{100 * chosen.share_of_neurons:.1f} %",
            f"{100 * chosen.share_of_score:.1f} %",
            f"{own:,}",
        )
    return table


def fact_table(located: Located) -> Table:
    """A fact's strongest neurons in all edited layers, and what they write for it."""
    fact = located.fact
    shares = " · ".join(f"{site.layer} {100 * site.share:.0f} %" for site in located.sites)
    table = _table(f"{fact.question} → {fact.target}", f"read at the end of {fact.subject!r}; layer {shares}")
    table.add_column("layer", justify="right")
    table.add_column("neuron", justify="right")
    table.add_column("a", justify="right")
    table.add_column("of layer", justify="right")
    table.add_column("promotes", style="green", ratio=1)
    table.add_column("suppresses", style="red", ratio=1)
    for neuron in located.strongest:
        table.add_row(
            str(neuron.layer),
            str(neuron.index),
            f"{neuron.activation:+.2f}",
            f"{100 * neuron.share:.1f} %",
            _tokens(neuron.writes.promotes),
            _tokens(neuron.writes.suppresses),
        )
    return table


def clusters_table(explanation: Explanation) -> Table:
    """The clusters of facts with like neuron sets (Eq. 9), each with its anchor (Eq. 10)."""
    within, between = explanation.distance_within, explanation.distance_between
    means = [
        f"{mean:.2f} {where}"
        for mean, where in (
            (within, "inside a cluster"),
            (between, "between clusters"),
            (explanation.chance, "by chance"),
        )
        if mean is not None
    ]
    table = _table("Clusters of facts by their neuron sets", f"mean Jaccard distance of two facts: {', '.join(means)}")
    table.add_column("cluster", justify="right")
    table.add_column("anchor", no_wrap=True, max_width=30)
    table.add_column("other members", ratio=1)
    table.add_column("mean distance", justify="right")
    for number, cluster in enumerate(explanation.clusters):
        subjects = {member: explanation.facts[member].fact.subject for member in cluster.members}
        anchor = subjects.pop(cluster.anchor) if cluster.anchor is not None else "(left out of the edit)"
        table.add_row(
            str(number),
            Text(visible(anchor, space=" ")),
            Text(visible(", ".join(subjects.values()), space=" ")),
            f"{cluster.distance:.2f}" if len(cluster.members) > 1 else "",
        )
    return table


def visible(text: str, space: str = "·") -> str:
    """The text on one line: spaces as `space`, and what cannot be printed as escapes."""
    return "".join(
        space if character == " " else character if character.isprintable() else ascii(character)[1:-1]
        for character in text
    )


def _table(title: str, caption: str) -> Table:
    heading = Text(visible(title, space=" "), style="bold")
    heading.append("\n" + visible(caption, space=" "), style="not bold dim")
    return Table(title=heading, title_justify="left", box=SIMPLE_HEAD, expand=True, pad_edge=False)


def _tokens(tokens: tuple[Token, ...]) -> Text:
    shown = (visible(token.text) for token in tokens)
    return Text("  ".join(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in shown))
