"""Lines of means over runs, with what lies between the least and the most; shared by a study's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from rlhf_lightning.evaluation.figures import COLORS, MARKERS
from rlhf_lightning.shown import wrapped
from rlhf_lightning.study.results import AXES, MEASURED, OTHERS, SEED

_WIDTH = 4.6
"""Inches of a panel."""


class LackingError(Exception):
    """What a figure needs and the study has not: says what to vary or measure."""


def panels(count: int, titles: Sequence[str] = ()) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, at most three in a row; four are a square."""
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH * columns, 3.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for axes, title in zip(drawn, titles, strict=False):
        axes.set_title(wrapped(title, _WIDTH - 1.0, 10), loc="left", fontsize=10)
    for axes in drawn:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    return figure, drawn


def at_base(table: pd.DataFrame, varied: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """The rows that agree in all axes but these and the seed.

    Where there is a choice, it is the label with the most combinations of what is varied, then with the most rows, then
    the one in the middle.

    Returns:
        The rows, and in words what they agree in.
    """
    chosen = []
    for axis in (axis for axis in (*AXES, *OTHERS, *MEASURED) if axis in table):
        if axis not in varied and axis != SEED and table[axis].nunique() > 1:
            of_label = {str(label): rows for label, rows in table.groupby(axis, sort=False)}
            worth = {label: (len(rows[[*varied]].drop_duplicates()), len(rows)) for label, rows in of_label.items()}
            best = [label for label in of_label if worth[label] == max(worth.values())]
            label = best[(len(best) - 1) // 2]
            table = of_label[label]
            told = label if axis in (*OTHERS, *MEASURED) else f"{axis.replace('_', ' ')} {label}"
            chosen += [told] if label else []
    return table, ", ".join(chosen)


def differing(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The policies that are varied over an axis.

    Raises:
        LackingError: If no two of them differ in it.
    """
    table = table[table[axis] != ""]
    if table[axis].nunique() < 2:
        raise LackingError(f"no finished policies differ in {axis}: vary a part with role policy over an axis {axis}")
    return table


def draw_lines(
    axes: Axes,
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str,
    order: Sequence[str],
    ticks: Sequence[str] | None = None,
) -> None:
    """One line a label of ``by``: means of ``y`` over rows of the same ``x``, the shade from the least to the most.

    Args:
        axes: Where to.
        table: One row a measurement.
        x: Column; a number, or where ``ticks`` are given, a label.
        y: Column.
        by: Column. Rows that do not vary over it, beside some that do, are the ``others``.
        order: Labels of ``by`` in the order of the legend.
        ticks: Labels of x from left to right.
    """
    ticks = None if ticks is None else [tick for tick in ticks if (table[x] == tick).any()]
    alone = table[by].nunique() < 2
    for number, label in enumerate(order):
        own = table[table[by] == label].dropna(subset=[y])
        if own.empty:
            continue
        places = own[x].map(ticks.index) if ticks is not None else own[x].astype(float)
        over = own[y].groupby(places).agg(["mean", "min", "max"])
        color = COLORS[number % len(COLORS)]
        few: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 5} if len(over) < 30 else {}
        axes.plot(over.index, over["mean"], color=color, label=label or (None if alone else "others"), **few)
        axes.fill_between(over.index, over["min"], over["max"], color=color, alpha=0.18, linewidth=0)
    if ticks is not None:
        axes.set_xticks(range(len(ticks)), ticks)


def percent(axes: Axes) -> None:
    """The vertical axis in percent."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def legend(axes: Axes, title: str) -> None:
    """Where anything has a name."""
    if axes.get_legend_handles_labels()[1]:
        axes.legend(title=title.replace("_", " "), fontsize=8, title_fontsize=8, frameon=False)


def named(figure: Figure, title: str, agreed: str = "") -> Figure:
    """The figure with its title, and what all its runs agree in."""
    whole = wrapped(title + (f"  ({agreed})" if agreed else ""), figure.get_figwidth(), 11)
    figure.suptitle(whole, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure
