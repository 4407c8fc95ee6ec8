"""Does more of one thing help? Steps along one axis, all else equal, with how sure one can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import torch

from rlhf_lightning.evaluation.bootstrap import bootstrap_interval

FEWEST_PAIRS = 6
"""Pairs of runs below which nothing is said about chance: even if all point the same way, a two-sided sign-flip test of
five pairs cannot come below 2/2⁵ = 6 %."""


def steps_along(
    table: pd.DataFrame, axis: str, order: Sequence[str], *, value: str, others: Sequence[str], cost: str | None = None
) -> pd.DataFrame:
    """What each step from one label of an axis to the next changes, over pairs of runs that differ in nothing else.

    Args:
        table: One row a run.
        axis: The column that is stepped along.
        order: Its labels, from less to more.
        value: The column that is compared.
        others: Columns that must agree in a pair.
        cost: A column with what a run costs, if it is known.

    Returns:
        A row a step: ``axis``, ``less``, ``more``, ``pairs``, ``difference`` (mean over pairs), ``low`` and ``high``
        (its 95 % bootstrap interval over pairs, missing below :data:`FEWEST_PAIRS`), ``times_cost`` (median).
    """
    rows = []
    present = [label for label in order if (table[axis] == label).any()]
    for less, more in pairwise(present):
        sides = (table[table[axis] == label] for label in (less, more))
        pairs = pd.merge(*sides, on=list(others), suffixes=("_less", "_more"))
        if len(pairs):
            difference = pairs[f"{value}_more"] - pairs[f"{value}_less"]
            times = (pairs[f"{cost}_more"] / pairs[f"{cost}_less"]).median() if cost else float("nan")
            rows.append((axis, less, more, len(pairs), difference.mean(), *_interval(difference), times))
    return pd.DataFrame(rows, columns=["axis", "less", "more", "pairs", "difference", "low", "high", "times_cost"])


def verdict(step: pd.Series) -> str:
    """What a step says, in a word or two."""
    if pd.isna(step["low"]):
        return "too few runs to tell from chance"
    if step["low"] > 0:
        return "helps"
    return "hurts" if step["high"] < 0 else "no clear difference"


def _interval(difference: pd.Series) -> tuple[float, float]:
    if len(difference) < FEWEST_PAIRS:
        return float("nan"), float("nan")
    low, high = bootstrap_interval(torch.tensor(difference.to_numpy(dtype="float64")))
    return float(low), float(high)
