"""Does more of one thing help? Steps along one axis, all else equal, and whether chance alone would do as much."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pandas as pd
import torch
from torch import Tensor

FEWEST_PAIRS = 6
"""Pairs of runs below which nothing is said about chance: even if all point the same way, the sign-flip test of five
pairs cannot come below 2/2⁵ = 6 %."""

PART = "part"
"""The column that tells the parts of a study apart."""

LEVEL = 0.05
"""Probability below which a difference is not put down to chance."""

EXACT_UP_TO = 14
DRAWS = 20_000

COLUMNS = ("axis", "less", "more", "held", "pairs", "difference", "least", "most", "p", "times_cost")


def steps_along(
    table: pd.DataFrame, axis: str, order: Sequence[str], *, value: str, others: Sequence[str], cost: str | None = None
) -> pd.DataFrame:
    """What each step from one label of an axis to the next changes, over pairs of runs that differ in nothing else.

    Args:
        table: One row a run.
        axis: The column that is stepped along.
        order: Its labels, from less to more; a step goes from one to the next that the runs in question have.
        value: The column that is compared.
        others: Columns that must agree in a pair.
        cost: A column with what a run costs, if it is known.

    Returns:
        A row a step, columns :data:`COLUMNS`: what all its pairs agree in though the table does not (``held``), the
        number of pairs, the mean, least and greatest difference, the two-sided probability ``p`` of a mean as large if
        each difference had either sign with equal chance (missing below :data:`FEWEST_PAIRS`), and the median of the
        costs' ratios.
    """
    pairs = pd.DataFrame(_pairs(table, axis, order, list(others)))
    if pairs.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    pairs = pairs.sort_values(["less", "more"], key=lambda labels: labels.map({x: i for i, x in enumerate(order)}))
    rows = []
    for (less, more), own in pairs.groupby(["less", "more"], sort=False):
        first, second = table.loc[own["first"]].reset_index(), table.loc[own["second"]].reset_index()
        difference = second[value] - first[value]
        times = (second[cost] / first[cost]).median() if cost else float("nan")
        ends = difference.mean(), difference.min(), difference.max()
        rows.append((axis, less, more, _held(table, first, others), len(own), *ends, _chance(difference), times))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def verdict(step: pd.Series) -> str:
    """What a step says, in a word or two."""
    if pd.isna(step["p"]):
        return "too few runs to tell from chance"
    if step["p"] >= LEVEL:
        return "no clear difference"
    return "helps" if step["difference"] > 0 else "hurts"


def sign_flip_probability(differences: Tensor) -> float:
    """Two-sided probability of a mean this far from 0 if each difference had either sign with equal chance.

    Exact over all 2ⁿ signs up to n = 14; beyond, from 20000 draws with a fixed seed, the observed signs among them.
    Source: Fisher, *The Design of Experiments* (1935), §21.

    Args:
        differences: (n,).
    """
    n = len(differences)
    if n <= EXACT_UP_TO:
        signs = 1 - 2 * (torch.arange(2**n).unsqueeze(1) >> torch.arange(n) & 1)
    else:
        signs = 1 - 2 * torch.randint(2, (DRAWS, n), generator=torch.Generator().manual_seed(0))
        signs[0] = 1
    means = (signs.double() @ differences.double()).abs()
    return float((means >= differences.double().sum().abs() * (1 - 1e-12)).double().mean())


def _pairs(table: pd.DataFrame, axis: str, order: Sequence[str], others: list[str]) -> Iterator[dict[str, object]]:
    """Rows of the table, by their index, that differ in the axis alone, from one label to the next they have."""
    for _, run in table.groupby(others, sort=False, dropna=False):
        at = {label: index for index, label in run[axis].items()}
        for less, more in pairwise(label for label in order if label in at):
            yield {"less": less, "more": more, "first": at[less], "second": at[more]}


def _held(table: pd.DataFrame, pairs: pd.DataFrame, others: Sequence[str]) -> str:
    """The labels that all pairs have, where the table has several; the part is said by its axes."""
    agreed = [axis for axis in others if axis != PART and table[axis].nunique() > 1 and pairs[axis].nunique() == 1]
    return ", ".join(f"{axis.replace('_', ' ')} {pairs[axis].iloc[0]}" for axis in agreed if pairs[axis].iloc[0])


def _chance(difference: pd.Series) -> float:
    if len(difference) < FEWEST_PAIRS:
        return float("nan")
    return sign_flip_probability(torch.tensor(difference.to_numpy(dtype="float64")))
