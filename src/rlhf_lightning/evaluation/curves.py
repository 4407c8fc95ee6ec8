"""From scored pools to curves: accuracy against N, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from rlhf_lightning.evaluation.bootstrap import DRAWS, bootstrap_interval
from rlhf_lightning.evaluation.majority import majority_at_n
from rlhf_lightning.evaluation.pools import Pool
from rlhf_lightning.evaluation.score_store import Grid
from rlhf_lightning.functional.best_of_n import best_of_n
from rlhf_lightning.reward_types import ResponseScore
from rlhf_lightning.scorers.judge import aggregate_scores

ORACLE, MAJORITY, MEAN = "oracle", "majority", "mean"
BASELINES = (ORACLE, MAJORITY, MEAN)
"""Lines that need no reward model: the best of N by the verifier itself (pass@N), the most frequent answer, chance."""

COLUMNS = ("generator", "scorer", "aggregation", "n", "accuracy", "low", "high", "prompts", "pool")

Line = tuple[str, str]
"""Scorer and aggregation; no aggregation for the baselines."""


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, … up to ``most``."""
    return [1 << i for i in range(most.bit_length())]


def chosen_by(scores: Grid, mode: str) -> Tensor:
    """(P, K) one number a sample; what could not be scored is never preferred to anything that was."""
    flat = [score for row in scores for score in row]
    known: list[ResponseScore] = [score for score in flat if score is not None]
    values = torch.full((len(flat),), -math.inf)
    values[torch.tensor([score is not None for score in flat])] = aggregate_scores(known, mode)
    return values.reshape(len(scores), -1)


def curve_values(pool: Pool, lines: Mapping[Line, Tensor], *, n: int, subsets: int, seed: int) -> dict[Line, Tensor]:
    """(P,) accuracy of each line at one N: the baselines' and the reward models'.

    Args:
        pool: The samples.
        lines: (P, K) what each reward model's line chooses by.
        n: N.
        subsets: Most subsets that majority votes are counted in.
        seed: Of the subsets.
    """
    correct = pool.correct
    return {
        (MEAN, ""): correct.mean(dim=1),
        (MAJORITY, ""): majority_at_n(pool.answers, correct, n=n, draws=subsets, seed=seed),
        (ORACLE, ""): best_of_n(correct, correct, n=n),
        **{line: best_of_n(scores, correct, n=n) for line, scores in lines.items()},
    }


def curve_table(
    pool: Pool, values: Mapping[int, Mapping[Line, Tensor]], *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Accuracy over prompts with its 95 % bootstrap interval, a row a line and N.

    Args:
        pool: Where the values come from.
        values: By N and line, (P,).
        draws: Resamples of the prompts, the same for all lines and N.
        seed: Of the resamples.
    """
    keys = [(n, line) for n, lines in values.items() for line in lines]
    columns = torch.stack([values[n][line] for n, line in keys], dim=1)
    low, high = bootstrap_interval(columns, draws=draws, seed=seed)
    numbers = zip(columns.mean(dim=0).tolist(), low.tolist(), high.tolist(), strict=True)
    rows = [
        (pool.generator, scorer, aggregation, n, *three, pool.prompts, pool.size)
        for (n, (scorer, aggregation)), three in zip(keys, numbers, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def difference_table(
    pool: Pool, values: Mapping[int, Mapping[Line, Tensor]], *, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """What one line gains over another on the same prompts: paired differences with 95 % intervals.

    An interval that leaves out 0 speaks for a real difference. All pairs of reward models' lines, and each against the
    majority.
    """
    rows = []
    for n, lines in values.items():
        learned = [line for line in lines if line[0] not in BASELINES]
        pairs = [*combinations(learned, 2), *((line, (MAJORITY, "")) for line in learned)]
        if not pairs:
            continue
        gains = torch.stack([lines[a] - lines[b] for a, b in pairs], dim=1)
        low, high = bootstrap_interval(gains, draws=draws, seed=seed)
        numbers = zip(pairs, gains.mean(dim=0).tolist(), low.tolist(), high.tolist(), strict=True)
        rows += [(pool.generator, n, *a, *b, *three) for (a, b), *three in numbers]
    names = ("generator", "n", "scorer", "aggregation", "against", "against_aggregation", "gain", "low", "high")
    return pd.DataFrame(rows, columns=list(names))


def n_for(pool: Pool, given: Sequence[int] | None) -> list[int]:
    """The Ns of a pool's curve."""
    return powers_of_two(pool.size) if given is None else sorted(set(given))
