"""What happens while policies train: the paper's Figures 4 and 5."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_lightning.evaluation.figures import COLORS
from rlhf_lightning.study.drawing import LackingError, at_base, differing, draw_lines, legend, named, panels, percent
from rlhf_lightning.study.results import ALGORITHM, REWARD_MODEL, SAMPLES, Results

REWARD_LABEL = "reward, before transforms"
KL_LABEL = "KL to the SFT model, nats a response"


def figure_4(results: Results) -> Figure:
    """Training reward by samples a prompt, and of each algorithm reward, KL against reward, and response length."""
    table = results.training
    by_samples, agreed = at_base(differing(table, SAMPLES), [SAMPLES])
    by_algorithm, agreed_too = at_base(differing(table, ALGORITHM), [ALGORITHM])
    titles = [f"(a) {agreed}", *(f"({letter}) {agreed_too}" for letter in "bcd")]
    figure, (a, b, c, d) = panels(4, titles)
    _over_rollouts(a, by_samples, "reward", SAMPLES, results.labels(SAMPLES))
    _over_rollouts(b, by_algorithm, "reward", ALGORITHM, results.labels(ALGORITHM))
    _frontier(c, by_algorithm, results.labels(ALGORITHM))
    _over_rollouts(d, by_algorithm, "length", ALGORITHM, results.labels(ALGORITHM))
    for axes in (a, b):
        axes.set_ylabel(REWARD_LABEL)
    d.set_ylabel("response length, tokens")
    return named(figure, "While policies train")


def figure_5(results: Results) -> Figure:
    """Held-out accuracy and reward against prompts seen, over all runs, a line a reward model."""
    table = results.training
    if table.empty or table.groupby("piece")["accuracy"].count().max() < 3:
        raise LackingError("accuracy is measured too seldom: give HeldOutEval a smaller `every`")
    figure, (accuracy, reward) = panels(2, ["held-out accuracy", REWARD_LABEL])
    for axes, column in ((accuracy, "accuracy"), (reward, "reward")):
        draw_lines(axes, table, x="prompts_seen", y=column, by=REWARD_MODEL, order=results.labels(REWARD_MODEL))
        axes.set(xlabel="prompts seen", ylabel=axes.get_title(loc="left"))
    percent(accuracy)
    legend(accuracy, f"{table['piece'].nunique()} runs, reward model")
    return named(figure, "More prompts")


def _over_rollouts(axes: Axes, table: pd.DataFrame, column: str, by: str, order: list[str]) -> None:
    draw_lines(axes, table, x="rollout", y=column, by=by, order=order)
    axes.set_xlabel("rollout")
    legend(axes, by)


def _frontier(axes: Axes, table: pd.DataFrame, order: list[str]) -> None:
    """A line a run: what reward it has bought with how much KL."""
    table = table.dropna(subset=["kl", "reward"])
    for number, label in enumerate(order):
        color = COLORS[number % len(COLORS)]
        drawn = [
            axes.plot(run["kl"], run["reward"], color=color, linewidth=0.8, marker=".", markersize=4)[0]
            for _, run in table[table[ALGORITHM] == label].groupby("piece")
        ]
        if drawn:
            drawn[0].set_label(label)
    axes.set(xlabel=KL_LABEL, ylabel=REWARD_LABEL)
    legend(axes, ALGORITHM)
