"""An explanation in pictures. Needs matplotlib; nothing else in the package imports this module."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ece.errors import requiring
from ece.explain.explanation import Chosen, Cluster, Explanation
from ece.explain.tables import visible
from ece.files import new_file
from ece.locate.scores import smallest_set
from ece.locate.tracing import KINDS as TRACED
from ece.locate.tracing import Traced

with requiring("a plot", "plots"):
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import CenteredNorm
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

WIDTH, DPI = 8.0, 150
"""Inches, and dots per inch: 1,200 pixels."""

ROWS = 40
"""Facts that a picture can name."""

NAMES = {"as": "Activation Score", "wi": "Weight Importance", "rs": "Residual Sensitivity"}
INK, FAINT, ACCENT = "#222222", "#9a9a9a", "#d55e00"
COLOURS = "cividis"


def draw(explanation: Explanation, folder: Path | str) -> list[Path]:
    """Write `neurons.png`, `layers.png` and `clusters.png`, each whole or not at all.

    Args:
        explanation: of any number of facts; pictures name the first 40.
        folder: made if it is not there; files of these names are replaced.

    Returns:
        The files, in this order.
    """
    pictures = {"neurons": _neurons, "layers": _layers, "clusters": _clusters}
    files = [Path(folder) / f"{name}.png" for name in pictures]
    for file, picture in zip(files, pictures.values(), strict=True):
        figure = picture(explanation)
        with new_file(file) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
    return files


def _neurons(explanation: Explanation) -> Figure:
    """How much of the score the strongest neurons hold, by layer, and which neurons were chosen."""
    figure, axes = _figure(5.2)
    neurons, level = len(explanation.layers[0].scores), 100 * explanation.fraction
    shades = colormaps["viridis"](np.linspace(0.0, 0.9, len(explanation.layers)))
    for chosen, shade in zip(explanation.layers, shades, strict=True):
        _curve(axes, chosen, shade)
    own = [np.median([located.sites[place].own for located in explanation.facts]) for place in range(len(shades))]
    mark = {"color": ACCENT, "markersize": 13, "markeredgewidth": 2, "label": "one fact alone (median), by layer"}
    axes.plot(own, [level] * len(own), "|", **mark)
    axes.plot([0, neurons], [0, 100], color=FAINT, linewidth=1, linestyle=":", label="if all were alike")
    axes.axhline(level, color=ACCENT, linewidth=1, linestyle="--")
    axes.annotate(f"p = {explanation.fraction:g}", (0.01 * neurons, level + 1.5), color=ACCENT, fontsize=10)
    axes.set(xlim=(0, neurons), ylim=(0, 100))
    axes.set_xlabel("neurons of the layer, strongest first (dots: those chosen)")
    axes.set_ylabel(f"share of the {_name(explanation)}, %")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right", frameon=False, fontsize=10)
    _title(figure, _neurons_finding(explanation))
    return figure


def _curve(axes: Axes, chosen: Chosen, shade: np.ndarray) -> None:
    """A layer's cumulative score, with a dot for the chosen neurons (below it, if they are not the strongest)."""
    scores = chosen.scores.double().sort(descending=True).values.numpy()
    held = np.concatenate([[0], scores.cumsum() / max(scores.sum(), 1e-30)])
    label = f"layer {chosen.layer}: {len(chosen.neurons):,} chosen"
    axes.plot(range(len(held)), 100 * held, color=shade, linewidth=1.8, label=label)
    dot = {"color": shade, "markersize": 8, "markeredgecolor": "white", "clip_on": False}
    axes.plot(len(chosen.neurons), 100 * chosen.share_of_score, "o", **dot)


def _neurons_finding(explanation: Explanation) -> str:
    shares = [chosen.share_of_neurons for chosen in explanation.layers]
    held = [chosen.share_of_score for chosen in explanation.layers]
    if min(shares) == 1:
        needed = [float(smallest_set(c.scores, explanation.fraction).double().mean()) for c in explanation.layers]
        return (
            f"All neurons may change; {_range(needed)} % of them hold\n"
            f"{100 * explanation.fraction:.0f} % of the {_name(explanation)}"
        )
    at_random = ", chosen at random," if explanation.score == "random" else ""
    return f"{_range(shares)} % of a layer's neurons{at_random} hold\n{_range(held)} % of the {_name(explanation)}"


def _layers(explanation: Explanation) -> Figure:
    """Where each fact's score is."""
    facts = explanation.facts[:ROWS]
    shares = 100 * np.array([[site.share for site in located.sites] for located in facts])
    height = max(4.0, 1.9 + 0.27 * len(facts))
    figure, axes = _figure(height)
    image = axes.imshow(shares, cmap=COLOURS, aspect="auto")
    if shares.shape[1] <= 12:
        middle = (shares.min() + shares.max()) / 2
        for (row, column), share in np.ndenumerate(shares):
            ink = "white" if share < middle else "black"
            axes.text(column, row, f"{share:.1f}", ha="center", va="center", fontsize=9, color=ink)
    axes.set_xticks(range(shares.shape[1]), [str(chosen.layer) for chosen in explanation.layers])
    axes.set_yticks(range(len(facts)), [_subject(explanation, fact) for fact in range(len(facts))], parse_math=False)
    axes.set_xlabel("layer")
    _bar(figure, axes, image, f"share of the fact's {_name(explanation)}, %", height)
    _title(figure, _layers_finding(explanation))
    return figure


def _layers_finding(explanation: Explanation) -> str:
    strongest = [max(located.sites, key=lambda site: site.share).layer for located in explanation.facts]
    layer = max(sorted(set(strongest)), key=strongest.count)
    count, facts = strongest.count(layer), len(strongest)
    shown = f" (the first {ROWS} are shown)" if facts > ROWS else ""
    sites = np.array([[site.share for site in located.sites] for located in explanation.facts])
    if facts > 1 and np.ptp(sites, axis=0).max() < 1e-3:
        return f"{_name(explanation)} is the same for all {facts} facts{shown}"
    if facts == 1:
        return f"The fact is strongest in layer {layer}"
    return f"Layer {layer} is the strongest for {count} of {facts} facts{shown}"


def _clusters(explanation: Explanation) -> Figure:
    """How much of their neuron sets facts share, cluster by cluster, against what chance would have them share."""
    order = [member for cluster in explanation.clusters for member in _anchor_first(cluster)]
    matrix = explanation.distances.double().numpy()[np.ix_(order, order)]
    np.fill_diagonal(matrix, np.nan)
    figure, axes = _figure(7.0)
    furthest = float(np.nanmax(np.abs(matrix - explanation.chance), initial=0.05))
    colours = colormaps["PuOr"].with_extremes(bad="#cccccc")
    image = axes.imshow(matrix, cmap=colours, norm=CenteredNorm(explanation.chance, furthest), aspect="auto")
    edge, rows = -0.5, []
    for cluster in explanation.clusters:
        size = len(cluster.members)
        axes.add_patch(Rectangle((edge, edge), size, size, fill=False, edgecolor=INK, linewidth=1.5, clip_on=False))
        rows.append(round(edge + 0.5))
        edge += size
    rows = _apart(rows, len(order)) if len(order) > ROWS else list(range(len(order)))
    anchors = {cluster.anchor for cluster in explanation.clusters if len(cluster.members) > 1}
    stars = ["★ " if order[row] in anchors else "" for row in rows]
    names = [star + _subject(explanation, order[row]) for star, row in zip(stars, rows, strict=True)]
    axes.set_yticks(rows, names, parse_math=False)
    axes.set_xticks([])
    axes.set_xlabel("the same facts, in the same order (box: a cluster, ★: its anchor)")
    label = f"Jaccard distance (0: the same neurons, 1: none shared, {explanation.chance:.2f}: chance)"
    _bar(figure, axes, image, label, 7.0).ax.set_ylim(top=min(1, explanation.chance + furthest))
    _title(figure, _clusters_finding(explanation))
    return figure


def _anchor_first(cluster: Cluster) -> list[int]:
    return sorted(cluster.members, key=lambda member: (member != cluster.anchor, member))


def _clusters_finding(explanation: Explanation) -> str:
    within, between = explanation.distance_within, explanation.distance_between
    counted = f"{_count(len(explanation.facts), 'fact')} in {_count(len(explanation.clusters), 'cluster')}"
    if within is None or between is None:
        return counted
    return (
        f"{counted}: mean distance {within:.2f} inside a cluster,\n"
        f"{between:.2f} between clusters, {explanation.chance:.2f} by chance"
    )


def _apart(rows: Sequence[int], facts: int) -> list[int]:
    """Those of the rows whose names have room, where 40 names fill the picture."""
    chosen: list[int] = []
    for row in rows:
        if not chosen or row - chosen[-1] >= facts / ROWS:
            chosen.append(row)
    return chosen


def _subject(explanation: Explanation, fact: int) -> str:
    subject = visible(explanation.facts[fact].fact.subject, space=" ")
    return subject if len(subject) <= 28 else f"{subject[:27]}…"


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=10)
    return figure, axes


def _bar(figure: Figure, axes: Axes, image: AxesImage, label: str, height: float) -> Colorbar:
    """The image's colour bar, of the same breadth whatever the height; the image loses its frame."""
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=4 * height)
    bar.set_label(label)
    for part in (axes, bar.ax):
        part.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return bar


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _name(explanation: Explanation) -> str:
    return NAMES.get("rs" if explanation.score == "random" else explanation.score, explanation.score)


def _range(shares: list[float]) -> str:
    """In percent."""
    low, high = round(100 * min(shares)), round(100 * max(shares))
    return f"{low}" if low == high else f"{low} to {high}"


def draw_trace(traced: Traced, folder: Path | str) -> list[Path]:
    """Write the heat map of a causal trace as `tracing-layer.png` or `tracing-ffn.png`, whole or not at all.

    Args:
        traced: the average indirect effects.
        folder: made if it is not there; a file of this name is replaced.

    Returns:
        The file, as a list of one.
    """
    file = Path(folder) / f"tracing-{traced.part}.png"
    figure = _tracing(traced)
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return [file]


def _tracing(traced: Traced) -> Figure:
    """The gain in the answer's probability, by kind of position and by layer."""
    figure, axes = _figure(3.6)
    effects = 100 * traced.effects.double().numpy()
    image = axes.imshow(effects, cmap=COLOURS, aspect="auto")
    numbers = [f" ({count})" if count != traced.facts.max() else "" for count in traced.facts.tolist()]
    names = [kind + number for kind, number in zip(TRACED, numbers, strict=True)]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    what = "layer" if traced.part == "layer" else f"middle of {traced.window} layers whose FFN outputs are put back"
    axes.set_xlabel(what)
    _bar(figure, axes, image, "average indirect effect, %", 3.6)
    _title(figure, _tracing_finding(traced, effects))
    return figure


def _tracing_finding(traced: Traced, effects: np.ndarray) -> str:
    row, layer = np.unravel_index(np.nanargmax(effects), effects.shape)
    error = 100 * float(traced.errors[row, layer])
    give = f" ± {error:.1f}" if np.isfinite(error) else ""
    part = "The state" if traced.part == "layer" else "FFN outputs"
    verb = "brings" if traced.part == "layer" else "bring"
    return (
        f"{part} at the {TRACED[row]}, layer {layer}, {verb} back {effects[row, layer]:.1f}{give} %\n"
        f"of the {100 * traced.total:.1f} % of probability that corrupting the subject takes away"
    )
