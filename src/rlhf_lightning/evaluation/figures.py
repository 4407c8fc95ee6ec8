"""Figures of best-of-N: accuracy against N (paper, Figures 6 to 10), and against the size of the training set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.curves import BASELINES, MAJORITY, MEAN, ORACLE
from rlhf_lightning.functional.step_scores import STEP_AGGREGATIONS
from rlhf_lightning.registry import did_you_mean
from rlhf_lightning.shown import wrapped

COLORS = ("#1f5fa8", "#c2410c", "#0f766e", "#7c3aed", "#b45309", "#be185d", "#4d7c0f", "#334155")
"""A reward model each."""

MARKERS = "osD^vPX*"

STYLES = dict(zip(STEP_AGGREGATIONS, ("-", "--", "-.", ":"), strict=True))
"""An aggregation of step scores each."""

_BASELINE_STYLE: dict[str, dict[str, object]] = {
    ORACLE: {"color": "0.25", "linestyle": (0, (6, 2)), "label": "oracle (pass@N)"},
    MAJORITY: {"color": "0.45", "linestyle": "-", "marker": "x", "markersize": 5, "label": "majority"},
    MEAN: {"color": "0.6", "linestyle": ":", "label": "mean of the pool"},
}

_WIDTH, _HEIGHT = 5.2, 4.2
"""Inches a panel."""

_LEGEND = 2.2
"""Inches of the legend."""


def plot_best_of_n(table: pd.DataFrame, path: str | Path | None = None, *, title: str = "Best of N") -> Figure:
    """One panel a generator, one line a reward model (and aggregation), beside oracle, majority and mean.

    Colours tell reward models apart, dashes and markers the aggregations of step scores; the shade is the interval.

    Args:
        table: As ``best_of_n.csv``: generator, scorer, aggregation, n, accuracy, and low and high where known.
        path: Where to write a PNG, if anywhere.
        title: Above all panels.

    Returns:
        The figure.

    Raises:
        DataError: If the table lacks a column, or has no rows.
    """
    _check(table, ("generator", "scorer", "aggregation", "n", "accuracy"))
    table = table.assign(aggregation=table["aggregation"].fillna(""))
    generators = list(dict.fromkeys(table["generator"]))
    figure, panels = _panels(len(generators))
    scorers = [name for name in dict.fromkeys(table["scorer"]) if name not in BASELINES]
    for axes, generator in zip(panels, generators, strict=True):
        own = table[table["generator"] == generator]
        for name in BASELINES:
            _draw(axes, own[own["scorer"] == name], "n", **_BASELINE_STYLE[name])
        for number, name in enumerate(scorers):
            _draw_scorer(axes, own[own["scorer"] == name], name, number)
        _finish(axes, str(generator), sorted(own["n"].unique()), "N, samples a prompt")
    _legend(figure, panels)
    figure.suptitle(wrapped(title, figure.get_figwidth(), 12), x=0.01, ha="left", fontweight="bold")
    return _saved(figure, path)


def plot_data_scaling(
    table: pd.DataFrame, path: str | Path | None = None, *, title: str = "Reward model against its training set"
) -> Figure:
    """Best-of-N accuracy at fixed N against the size of the training set (paper, Figure 6, left).

    One panel an N, one line a way to make the set larger.

    Args:
        table: ``size`` (solutions in the training set), ``series`` (``more prompts``, ``more solutions a prompt``),
            ``n``, ``accuracy``, and ``low`` and ``high`` where known.
        path: Where to write a PNG, if anywhere.
        title: Above all panels.

    Returns:
        The figure.

    Raises:
        DataError: If the table lacks a column, or has no rows.
    """
    _check(table, ("size", "series", "n", "accuracy"))
    ns = sorted(table["n"].unique())
    figure, panels = _panels(len(ns))
    for axes, n in zip(panels, ns, strict=True):
        own = table[table["n"] == n]
        for number, name in enumerate(dict.fromkeys(table["series"])):
            look = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)], "label": str(name)}
            _draw(axes, own[own["series"] == name], "size", **look)
        _finish(axes, f"best of {n}", sorted(table["size"].unique()), "solutions in the training set")
    _legend(figure, panels)
    figure.suptitle(wrapped(title, figure.get_figwidth(), 12), x=0.01, ha="left", fontweight="bold")
    return _saved(figure, path)


def _draw_scorer(axes: Axes, rows: pd.DataFrame, name: str, number: int) -> None:
    modes = list(dict.fromkeys(rows["aggregation"]))
    for offset, mode in enumerate(modes):
        _draw(
            axes,
            rows[rows["aggregation"] == mode],
            "n",
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[(number + offset) % len(MARKERS)],
            linestyle=STYLES.get(mode, "-"),
            label=f"{name}, {mode}" if len(modes) > 1 else name,
        )


def _draw(axes: Axes, rows: pd.DataFrame, across: str, **look: object) -> None:
    if rows.empty:
        return
    rows = rows.sort_values(across)
    settings = {"linewidth": 1.9, "markersize": 4.5, **look}
    axes.plot(rows[across], rows["accuracy"], **settings)  # type: ignore[arg-type]
    if {"low", "high"} <= set(rows.columns):
        axes.fill_between(rows[across], rows["low"], rows["high"], color=str(look["color"]), alpha=0.08, linewidth=0)


def _finish(axes: Axes, title: str, ticks: Sequence[float], label: str) -> None:
    axes.set_title(wrapped(title, _WIDTH - 1.0, 11), fontsize=11)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([float(tick) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy")
    axes.tick_params(labelleft=True)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.04, y=0.06)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH * columns + _LEGEND, _HEIGHT * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for unused in grid[count:]:
        unused.remove()
    return figure, grid[:count]


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels: the same line looks the same in each."""
    known: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    learned = [label for label in known if label not in {str(look["label"]) for look in _BASELINE_STYLE.values()}]
    order = [*learned, *(label for label in known if label not in learned)]
    named = [wrapped(label, _LEGEND - 0.5, 9) for label in order]
    figure.legend([known[label] for label in order], named, loc="outside right center", frameon=False, fontsize=9)


def _check(table: pd.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in table.columns:
            raise DataError(f"the table has no column {name!r}.{did_you_mean(name, map(str, table.columns))}")
    if table.empty:
        raise DataError("the table has no rows to draw")


def _saved(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure
