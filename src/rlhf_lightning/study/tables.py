"""A study's tables: Table 1 of the paper, and what each way to spend more compute has changed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rlhf_lightning.study.drawing import LackingError, at_base
from rlhf_lightning.study.levers import steps_along, verdict
from rlhf_lightning.study.paper import TABLE_1, TABLE_1_TASKS
from rlhf_lightning.study.results import (
    ALGORITHM,
    ALL_TASKS,
    AXES,
    MEASURED,
    OTHERS,
    POLICY,
    PROMPTS,
    REWARD_MODEL,
    SAMPLES,
    SOLUTIONS,
    SUPERVISION,
    Results,
)


def table_1(results: Results) -> pd.DataFrame:
    """Accuracy in percent, means over seeds: a row an algorithm, reward model and samples a prompt, a column a task.

    Raises:
        LackingError: If no policies differ in algorithm.
    """
    table = results.policies
    table = table[table[ALGORITHM] != ""]
    if table[ALGORITHM].nunique() < 2:
        raise LackingError("no finished policies differ in algorithm: vary a part with role policy over it")
    keys = [SAMPLES, ALGORITHM, REWARD_MODEL, POLICY]
    table, _ = at_base(table, keys)
    orders = {axis: {label: number for number, label in enumerate(results.labels(axis))} for axis in keys}
    wide = (100 * table.pivot_table(index=keys, columns="task", values="final", sort=False)).reset_index()
    both = wide.groupby([axis for axis in keys if axis != ALGORITHM])[ALGORITHM].transform("nunique") > 1
    wide = wide[both].sort_values(keys, key=lambda column: column.map(orders[str(column.name)]))
    if wide.empty:
        raise LackingError("no two finished policies differ in algorithm alone")
    before = (100 * table.pivot_table(index=POLICY, columns="task", values="start")).reset_index()
    first = before.assign(**{SAMPLES: "", ALGORITHM: "before training", REWARD_MODEL: ""})[wide.columns]
    return _without_empty(pd.concat([first, wide], ignore_index=True), keys)


def paper_table_1() -> pd.DataFrame:
    """The paper's own."""
    return pd.DataFrame(
        [
            {SAMPLES: key[0], ALGORITHM: key[1], REWARD_MODEL: key[2], **dict(zip(TABLE_1_TASKS, values, strict=True))}
            for key, values in TABLE_1.items()
        ]
    )


def lever_table(results: Results) -> pd.DataFrame:
    """What each step along each axis changes: for policies held-out accuracy, for reward models best-of-N accuracy."""
    policies = results.policies[results.policies["task"] == ALL_TASKS]
    learned = results.learned
    chosen = learned[learned["n"] == learned.groupby("piece")["n"].transform("max")]
    return pd.concat(
        [
            _steps(results, policies, (SAMPLES, REWARD_MODEL, POLICY, ALGORITHM), "final", "accuracy", "seconds"),
            _steps(results, policies, (POLICY,), "gain", "gain by training", "seconds"),
            _steps(results, chosen, (PROMPTS, SOLUTIONS, REWARD_MODEL, SUPERVISION), "accuracy", "best of N", None),
        ],
        ignore_index=True,
    )


def lever_text(levers: pd.DataFrame) -> str:
    """The steps as a Markdown table, in points of accuracy."""
    if levers.empty:
        return "No two finished pieces differ in one axis alone, so nothing can be compared yet."
    rows = [
        {
            "what is measured": step["measure"],
            "more": f"{step['axis'].replace('_', ' ')} {step['less']} → {step['more']}" + " *" * bool(step["also"]),
            "held at": step["held"],
            "its time": "" if pd.isna(step["times_cost"]) else f"{step['times_cost']:.1f}×",
            "points": f"{100 * step['difference']:+.1f}",
            "least to most": f"{100 * step['least']:+.1f} to {100 * step['most']:+.1f}",
            "pairs": step["pairs"],
            "p": "" if pd.isna(step["p"]) else f"{step['p']:.3f}",
            "": verdict(step),
        }
        for _, step in levers.iterrows()
    ]
    return f"{markdown(pd.DataFrame(rows))}\n\n{_reading(int(levers['p'].notna().sum()))}"


def _reading(tests: int) -> str:
    return (
        "Means over pairs of runs that differ in nothing else. p: how often a mean as far from 0 would come about if "
        f"each pair's difference had either sign with equal chance; of {tests} such tests about {tests / 20:.1f} come "
        "below 0.05 by chance. Runs that share a reward model share its luck: this is about these reward models. Time "
        "is that of the policy's own run. * the labels stand for other options too."
    )


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; numbers that are not whole with one decimal."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _steps(
    results: Results, table: pd.DataFrame, axes: Sequence[str], value: str, measure: str, cost: str | None
) -> pd.DataFrame:
    others = [*AXES, *OTHERS, *(name for name in MEASURED if name in table)]
    found = []
    for axis in axes:
        labels = results.labels(axis)[1:]
        steps = steps_along(table, axis, labels, value=value, others=[o for o in others if o != axis], cost=cost)
        if len(steps):
            adds = {label: results.adds_options(axis, label) for label in labels}
            also = [adds[less] != adds[more] for less, more in zip(steps["less"], steps["more"], strict=True)]
            found.append(steps.assign(measure=measure, also=also))
    return pd.concat(found) if found else pd.DataFrame()


def _without_empty(table: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    return table.drop(columns=[key for key in keys if not table[key].astype(bool).any()])


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
