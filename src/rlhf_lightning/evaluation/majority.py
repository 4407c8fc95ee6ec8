"""Majority@N: how often the most frequent answer among N samples is right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

DRAWS = 2048
"""Subsets that stand for all of them where there are more; all 2016 pairs of 64 samples are looked at."""


def majority_at_n(
    answers: Sequence[Sequence[str | None]], correct: Tensor, *, n: int, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    r"""Correctness of the most frequent answer of N samples, averaged over subsets of the pool.

    In a subset, an answer is worth the mean ``correct`` of the samples that gave it; answers of equally many votes
    share, each counting alike. A sample without an answer (None) does not vote; where nobody votes, one of the samples
    is taken at random. With N = 1 it is the mean of the pool.

    All ``C(K, N)`` subsets are counted where they are at most ``draws``. Else they are prefixes of ``draws`` random
    orders of the pool, the same orders for every N and every prompt, so that curves over N don't jump by chance.

    Source: Wang et al., *Self-Consistency* (arXiv 2203.11171), §2.

    Args:
        answers: P prompts' K answers.
        correct: (P, K), usually 0 or 1.
        n: N, from 1 to K.
        draws: Most subsets that are looked at.
        seed: Of the random orders.

    Returns:
        (P,) float64.

    Raises:
        ValueError: If shapes differ, or the pool has no N samples.
    """
    prompts, k = correct.shape
    if [len(row) for row in answers] != [k] * prompts:
        raise ValueError(f"answers must be {prompts} rows of {k}, as correct is")
    if not 1 <= n <= k:
        raise ValueError(f"cannot draw {n} of a pool of {k} samples")
    subsets = _subsets(k, n, draws, seed)
    rows = [_of_prompt(row, correct[p].double().cpu(), subsets) for p, row in enumerate(answers)]
    return torch.stack(rows) if rows else torch.zeros(0, dtype=torch.float64)


def _subsets(k: int, n: int, draws: int, seed: int) -> Tensor:
    """(D, K) float64 ones where a sample is in the subset."""
    if math.comb(k, n) <= draws:
        members = torch.tensor(list(combinations(range(k), n)))
    else:
        generator = torch.Generator().manual_seed(seed)
        members = torch.rand(draws, k, generator=generator).argsort(dim=1)[:, :n]
    return torch.zeros(len(members), k, dtype=torch.float64).scatter_(1, members, 1.0)


def _of_prompt(answers: Sequence[str | None], correct: Tensor, subsets: Tensor) -> Tensor:
    given = sorted({answer for answer in answers if answer is not None})
    votes = torch.tensor([[answer == one for one in given] for answer in answers], dtype=torch.float64)
    votes = votes.reshape(len(answers), len(given))
    anyone = (subsets @ correct) / subsets.sum(dim=1)
    if not given:
        return anyone.mean()
    counts = subsets @ votes
    worth = (subsets @ (votes * correct[:, None])) / counts.clamp(min=1)
    most = counts.amax(dim=1, keepdim=True)
    winners = (counts == most).double()
    chosen = (winners * worth).sum(dim=1) / winners.sum(dim=1)
    return torch.where(most.squeeze(1) > 0, chosen, anyone).mean()
