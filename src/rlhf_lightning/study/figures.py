"""Accuracy of trained policies: the paper's Figures 1, 2 and 3, and what the accuracy has cost."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.shown import wrapped
from rlhf_lightning.study.drawing import LackingError, at_base, differing, draw_lines, legend, named, panels, percent
from rlhf_lightning.study.results import (
    ALL_TASKS,
    POLICY,
    PROMPTS,
    REWARD_MODEL,
    SAMPLES,
    SOLUTIONS,
    SUPERVISION,
    Results,
)

ACCURACY_LABEL = "held-out accuracy, greedy"


def figure_1_left(results: Results) -> Figure:
    """Accuracy against samples a prompt, a line a reward model, one SFT model."""
    table, agreed = at_base(_varying(results, SAMPLES, ALL_TASKS), [SAMPLES, REWARD_MODEL])
    figure, (axes,) = panels(1)
    _against_samples(results, axes, table)
    return named(figure, "More samples a prompt", agreed)


def figure_1_middle(results: Results) -> Figure:
    """Gain by training against the policy's size, a line a reward model."""
    table, agreed = at_base(_varying(results, POLICY, ALL_TASKS), [POLICY, REWARD_MODEL])
    figure, (axes,) = panels(1)
    order, ticks = results.labels(REWARD_MODEL), results.labels(POLICY)
    draw_lines(axes, table, x=POLICY, y="gain", by=REWARD_MODEL, order=order, ticks=ticks)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set(xlabel="policy", ylabel="gain in held-out accuracy")
    percent(axes)
    legend(axes, REWARD_MODEL)
    return named(figure, "Larger policies", agreed)


def figure_2(results: Results) -> Figure:
    """As the left of Figure 1, a panel a task."""
    tasks = [task for task in results.policies["task"].unique() if task != ALL_TASKS]
    if not tasks:
        raise LackingError("policies are measured on one task: give their data several (`task: [...]`)")
    figure, drawn = panels(len(tasks), tasks)
    agreed = ""
    for axes, task in zip(drawn, tasks, strict=True):
        table, agreed = at_base(_varying(results, SAMPLES, task), [SAMPLES, REWARD_MODEL])
        _against_samples(results, axes, table)
    return named(figure, "More samples a prompt, by task", agreed)


def figure_3(results: Results) -> Figure:
    """Best of N by reward models beside policies trained on as many samples a prompt."""
    table, agreed = at_base(_varying(results, SAMPLES, ALL_TASKS), [SAMPLES, REWARD_MODEL])
    chosen = results.learned
    if chosen.empty:
        raise LackingError("no reward model is measured: add a part with the command best-of-n")
    of_the_policies = chosen[(chosen[[SUPERVISION, PROMPTS, SOLUTIONS]] == "").all(axis=1)]
    chosen, agreed_too = at_base(chosen if of_the_policies.empty else of_the_policies, [REWARD_MODEL])
    titles = [f"best of N by the reward model, {agreed_too}", f"trained on N samples a prompt, {agreed}"]
    figure, (best, trained) = panels(2, [title.removesuffix(", ") for title in titles])
    order = results.labels(REWARD_MODEL)
    draw_lines(best, chosen, x="n", y="accuracy", by=REWARD_MODEL, order=order)
    _against_samples(results, trained, table)
    best.set_xscale("log", base=2)
    best.xaxis.set_major_formatter("{x:.0f}")
    best.set(xlabel="N", ylabel="accuracy of the chosen sample")
    best.sharey(trained)
    percent(best)
    legend(best, REWARD_MODEL)
    return named(figure, "What best-of-N promises, and what training keeps")


def compute(results: Results) -> Figure:
    """Accuracy against training time, a line for each way to spend more of it."""
    table = results.policies[results.policies["task"] == ALL_TASKS]
    levers = [axis for axis in (SAMPLES, REWARD_MODEL, POLICY) if table[table[axis] != ""][axis].nunique() > 1]
    if not levers:
        raise LackingError("no policies differ in samples, reward_model or policy")
    figure, drawn = panels(len(levers), [lever.replace("_", " ") for lever in levers])
    for axes, lever in zip(drawn, levers, strict=True):
        own, agreed = at_base(table[table[lever] != ""], [lever])
        means = own.groupby(lever)[["seconds", "start", "final"]].mean().reindex(results.labels(lever)).dropna()
        axes.plot(means["seconds"], means["final"], marker="o", color="#1f5fa8", label="after training")
        axes.plot(means["seconds"], means["start"], marker=".", color="0.6", linestyle=":", label="before")
        for number, (label, row) in enumerate(means.iterrows()):
            place = (4, (6, -12)[number % 2])
            axes.annotate(str(label), (row["seconds"], row["final"]), place, textcoords="offset points", fontsize=9)
        if means["seconds"].max() > 4 * means["seconds"].min() > 0:
            axes.set_xscale("log", base=2)
        else:
            axes.margins(x=0.2)
        axes.set(xlabel=f"seconds of training\n{wrapped(agreed, 4, 10)}", ylabel=ACCURACY_LABEL)
        axes.xaxis.set_major_formatter("{x:g}")
        percent(axes)
        axes.legend(fontsize=8, frameon=False)
    return named(figure, "Does more compute help?")


def _varying(results: Results, axis: str, task: str) -> pd.DataFrame:
    return differing(results.policies[results.policies["task"] == task], axis)


def _against_samples(results: Results, axes: Axes, table: pd.DataFrame) -> None:
    order, ticks = results.labels(REWARD_MODEL), results.labels(SAMPLES)
    draw_lines(axes, table, x=SAMPLES, y="final", by=REWARD_MODEL, order=order, ticks=ticks)
    axes.axhline(table["start"].mean(), color="0.5", linestyle=":", label="before training")
    axes.set(xlabel="samples a prompt", ylabel=ACCURACY_LABEL)
    percent(axes)
    legend(axes, REWARD_MODEL)
