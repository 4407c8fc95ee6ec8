"""Reward models against their data and their supervision: the paper's Figure 6."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rlhf_lightning.evaluation.figures import plot_data_scaling
from rlhf_lightning.study.drawing import LackingError, at_base, draw_lines, legend, named, panels, percent
from rlhf_lightning.study.results import PROMPTS, REWARD_MODEL, SOLUTIONS, SUPERVISION, Results

FEW = 4
"""The smaller N of Figure 6, left; the larger one is the pool's size."""


def data_table(results: Results) -> pd.DataFrame:
    """Best-of-N accuracy by size of the training set, along more prompts and along more solutions a prompt.

    Raises:
        LackingError: If no measured reward models differ in both.
    """
    table = _learned(results)
    table = table[table[PROMPTS].str.isdigit() & table[SOLUTIONS].str.isdigit()]
    if table[PROMPTS].nunique() < 2 or table[SOLUTIONS].nunique() < 2:
        raise LackingError("no measured reward models differ in both prompts and solutions, as whole numbers")
    table, _ = at_base(table, [PROMPTS, SOLUTIONS])
    most = {axis: table[axis].astype(int).max() for axis in (PROMPTS, SOLUTIONS)}
    table = table.assign(size=table[PROMPTS].astype(int) * table[SOLUTIONS].astype(int))
    table = table[table["n"].isin([FEW, table["n"].max()])]
    series = {
        "more prompts": table[table[SOLUTIONS].astype(int) == most[SOLUTIONS]],
        "more solutions a prompt": table[table[PROMPTS].astype(int) == most[PROMPTS]],
    }
    means = [
        own.groupby(["size", "n"])["accuracy"]
        .agg(accuracy="mean", low="min", high="max")
        .reset_index()
        .assign(series=name)
        for name, own in series.items()
    ]
    return pd.concat(means, ignore_index=True)


def figure_6_left(results: Results) -> Figure:
    """Best-of-N accuracy against the size of the training set."""
    return plot_data_scaling(data_table(results), title="More data for the reward model")


def figure_6_right(results: Results) -> Figure:
    """Best-of-N accuracy, at the pool's size, of outcome and process models, a panel a generator."""
    table = _learned(results)
    table = table[table[SUPERVISION] != ""]
    if table[SUPERVISION].nunique() < 2:
        raise LackingError("no measured reward models differ in supervision")
    table, agreed = at_base(table[table["n"] == table["n"].max()], [REWARD_MODEL, SUPERVISION, "generator"])
    generators = list(table["generator"].unique())
    figure, drawn = panels(len(generators), generators)
    ticks = results.labels(REWARD_MODEL)
    for axes, generator in zip(drawn, generators, strict=True):
        own = table[table["generator"] == generator]
        order = results.labels(SUPERVISION)
        draw_lines(axes, own, x=REWARD_MODEL, y="accuracy", by=SUPERVISION, order=order, ticks=ticks)
        axes.set(xlabel="reward model", ylabel=f"accuracy of the best of {table['n'].max()}")
        percent(axes)
        legend(axes, SUPERVISION)
    return named(figure, "Outcome and process supervision", agreed)


def _learned(results: Results) -> pd.DataFrame:
    if results.learned.empty:
        raise LackingError("no reward model is measured: add a part with the command best-of-n")
    return results.learned
