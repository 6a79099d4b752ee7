"""Figures made for reading: what they show is data; drawing needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ece.errors import requiring
from ece.evaluation.means import Mean
from ece.files import new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#222222", "#8a8a8a"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#b8a800")
"""Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color); the yellow darkened."""

MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":")
DPI = 150
ASIDE = 0.012
"""Of the axis: how far a label's points stand from the next label's."""


@dataclass(frozen=True)
class Lines:
    """Means against a number: a panel for each metric, a line for each label."""

    name: str
    title: str
    x: str
    """What the axis counts."""

    series: dict[str, list[tuple[float, dict[str, Mean]]]]
    panels: Sequence[str]
    unit: str = "%"
    logarithmic: bool = False
    faint: Sequence[str] = ("unedited",)
    """Labels that are drawn in grey: what others are compared with."""

    def draw(self, figure: Figure) -> None:
        """Draw it."""
        columns = 2 if len(self.panels) == 4 else min(3, len(self.panels))
        rows = math.ceil(len(self.panels) / columns)
        figure.set_size_inches(max(6.5, 4.2 * columns), 3.1 * rows + 1.1)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, metric in zip(grid, self.panels, strict=False):
            self._panel(axes, metric)
        for axes in grid[len(self.panels) :]:
            axes.set_axis_off()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)

    def _panel(self, axes: Axes, metric: str) -> None:
        _plain(axes)
        coloured = [label for label in self.series if label not in self.faint]
        for label, points in self.series.items():
            there = [(x, means[metric]) for x, means in points if metric in means]
            style: dict[str, Any] = (
                _style(coloured.index(label)) if label in coloured else {"color": FAINT, "linestyle": "--"}
            )
            axes.errorbar(
                [self._beside(x, label) for x, _ in there],
                [mean.mean for _, mean in there],
                [0 if math.isnan(mean.se) else mean.se for _, mean in there],
                label=label, capsize=2.5, linewidth=1.6, markersize=5, **style,
            )  # fmt: skip
        axes.set_title(metric.replace("_", " "), fontsize=11, color=INK)
        axes.set_xlabel(self.x)
        places = sorted({x for points in self.series.values() for x, _ in points})
        if all(float(x).is_integer() for x in places):
            axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(f"{self.unit}, ± standard error")
        if self.logarithmic:
            axes.set_xscale("log")
            axes.set_xticks(places, [f"{x:g}" for x in places])
            axes.minorticks_off()
        if self.unit == "%":
            axes.set_ylim(min(-4, axes.get_ylim()[0]), 104)  # a correlation (MCC) may be negative

    def _beside(self, x: float, label: str) -> float:
        """The place of a point: each label's a little beside the others', so that equal means are all seen."""
        places = [place for points in self.series.values() for place, _ in points]
        aside = (list(self.series).index(label) - (len(self.series) - 1) / 2) * ASIDE
        if self.logarithmic:
            return x * (max(places) / min(places)) ** aside
        return x + (max(places) - min(places)) * aside


@dataclass(frozen=True)
class Dots:
    """Means by label: a panel for each metric, a dot with its error for each label, the unedited model as a line."""

    name: str
    title: str
    rows: Sequence[tuple[str, dict[str, Mean]]]
    panels: Sequence[str]
    unit: str = "%"
    reference: str = "unedited"

    def draw(self, figure: Figure) -> None:
        """Draw it."""
        labels = [label for label, _ in self.rows if label != self.reference]
        figure.set_size_inches(2.6 * len(self.panels) + 2.2, 0.34 * len(labels) + 2.1)
        grid = figure.subplots(1, len(self.panels), squeeze=False, sharey=True)[0]
        for axes, metric in zip(grid, self.panels, strict=True):
            _plain(axes)
            axes.grid(axis="y", visible=False)
            for label, means in self.rows:
                mean = means.get(metric)
                if mean is None or math.isnan(mean.mean):
                    continue
                if label == self.reference:
                    axes.axvline(mean.mean, color=FAINT, linestyle="--", linewidth=1.4, label=label)
                    if not math.isnan(mean.se):
                        axes.axvspan(mean.mean - mean.se, mean.mean + mean.se, color=FAINT, alpha=0.15, linewidth=0)
                    continue
                place, error = labels.index(label), 0 if math.isnan(mean.se) else mean.se
                axes.errorbar(mean.mean, place, xerr=error, fmt="o", color=PALETTE[0], capsize=3, markersize=6)
            axes.set_title(metric.replace("_", " "), fontsize=11, color=INK)
            axes.set_xlabel(f"{self.unit}, ± standard error")
        grid[0].set_yticks(range(len(labels)), labels)
        grid[0].set_ylim(len(labels) - 0.5, -0.5)
        handles, names = grid[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower right", frameon=False)


@dataclass(frozen=True)
class Bars:
    """Parts of a whole by label: stacked, with the whole's error."""

    name: str
    title: str
    rows: Sequence[tuple[str, dict[str, Mean], Mean]]
    """Label, parts, whole; one without parts is drawn as a whole."""

    unit: str

    def draw(self, figure: Figure) -> None:
        """Draw it."""
        figure.set_size_inches(8.0, 0.42 * len(self.rows) + 2.0)
        axes = figure.subplots()
        _plain(axes)
        axes.grid(axis="y", visible=False)
        parts = list(dict.fromkeys(part for _, parts, _ in self.rows for part in parts))
        places = range(len(self.rows))
        left = [0.0] * len(self.rows)
        for number, part in enumerate(parts):
            widths = [found[part].mean if part in found else 0.0 for _, found, _ in self.rows]
            axes.barh(
                places, widths, 0.62, left=left, color=PALETTE[number % len(PALETTE)], edgecolor="white", label=part
            )
            left = [a + b for a, b in zip(left, widths, strict=True)]
        if bare := {place: whole.mean for place, (_, found, whole) in enumerate(self.rows) if not found}:
            axes.barh(list(bare), list(bare.values()), 0.62, color=FAINT, label="all phases" if parts else None)
        for place, (_, _, whole) in enumerate(self.rows):
            error = 0 if math.isnan(whole.se) else whole.se
            axes.errorbar(whole.mean, place, xerr=error, color=INK, capsize=3, fmt="none")
            axes.annotate(
                f"{whole.mean:.2f}", (whole.mean + error, place), (6, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, [label for label, _, _ in self.rows])
        axes.set_ylim(len(self.rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.12 * max((whole.mean for _, _, whole in self.rows), default=1))
        axes.set_xlabel(self.unit)
        if parts:
            figure.legend(loc="outside lower center", ncols=4, frameon=False)


Picture = Lines | Dots | Bars


def save(picture: Picture, file: Path) -> Path:
    """Write a PNG, there whole or not at all.

    Raises:
        UserError: matplotlib is not installed.
    """
    with requiring("a figure", "studies"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    picture.draw(figure)
    figure.suptitle(picture.title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    with new_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return file


def _style(number: int) -> dict[str, Any]:
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKS[number % len(MARKS)],
        "linestyle": DASHES[number // len(PALETTE) % len(DASHES)],
    }


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
