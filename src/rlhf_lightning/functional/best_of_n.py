"""What N samples of a prompt are worth, from a pool of K: the exact mean over all subsets of size N.

A pool serves every N at once (the pools are nested), and nothing depends on the order in which it was drawn. All
results are in float64; no gradient flows through a choice.
"""

from __future__ import annotations

import torch
from torch import Tensor


def best_of_n(scores: Tensor, correct: Tensor, *, n: int) -> Tensor:
    r"""Expected correctness of the highest-scored of N samples: ``sum_i C(i-1, N-1) / C(K, N) · correct_(i)``.

    ``correct_(i)`` belongs to the i-th smallest score (i from 1): of all ``C(K, N)`` subsets of the pool, it is the
    best of those whose other N - 1 members stand below it. Samples of equal score are equally likely to be chosen, so
    each counts as their average.

    Source: the paper, A.1, draws N samples and takes the one of the highest score; this is that draw's expectation
    given the pool, an unbiased estimate of the same number (a U-statistic). With ``scores = correct`` it is pass@N.

    Args:
        scores: (P, K) what chooses; never NaN.
        correct: (P, K) what counts, usually 0 or 1.
        n: N, from 1 (the mean of the pool) to K (the best of the pool).

    Returns:
        (P,) float64, in the unit of ``correct``.

    Raises:
        ValueError: If shapes differ, a score is NaN, or the pool has no N samples.
    """
    _check(correct, n)
    if scores.shape != correct.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and correct {tuple(correct.shape)} must be of one shape")
    if scores.isnan().any():
        raise ValueError("a score is NaN, so no sample is the best")
    ascending, order = scores.detach().sort(dim=1)
    chance = _chance_of_best(scores.shape[1], n).to(scores.device).expand(scores.shape)
    value = correct.detach().double().gather(1, order)
    steps = torch.nn.functional.pad(ascending[:, 1:] != ascending[:, :-1], (1, 0))
    tied = steps.cumsum(dim=1)
    return (_sum_of(tied, chance) * _sum_of(tied, value) / _sum_of(tied, torch.ones_like(value)).clamp(min=1)).sum(1)


def pass_at_n(correct: Tensor, *, n: int) -> Tensor:
    r"""Probability that at least one of N samples is right: ``1 - C(K - c, N) / C(K, N)``, c of the K being right.

    Computed as ``1 - prod_{j<N} (K - c - j) / (K - j)``, which neither overflows nor loses digits.

    Source: Chen et al., *Evaluating Large Language Models Trained on Code* (arXiv 2107.03374), Eq. 1.

    Args:
        correct: (P, K) zeros and ones.
        n: N, from 1 to K.

    Returns:
        (P,) float64 probabilities.

    Raises:
        ValueError: If a value is neither 0 nor 1, or the pool has no N samples.
    """
    _check(correct, n)
    if ((correct != 0) & (correct != 1)).any():
        raise ValueError("pass_at_n counts right samples, so correct must be 0 or 1")
    k = correct.shape[1]
    drawn = torch.arange(n, dtype=torch.float64, device=correct.device)
    wrong = k - correct.double().sum(dim=1, keepdim=True)
    return 1 - ((wrong - drawn).clamp(min=0) / (k - drawn)).prod(dim=1)


def _chance_of_best(k: int, n: int) -> Tensor:
    """(K,) ``C(i-1, N-1) / C(K, N)``, i = 1 … K: N/K for the largest, then each (i - N)/(i - 1) of the one above."""
    rank = torch.arange(k, 1, -1, dtype=torch.float64)
    ratios = torch.cat([torch.tensor([n / k], dtype=torch.float64), (rank - n).clamp(min=0) / (rank - 1)])
    return ratios.cumprod(dim=0).flip(0)


def _sum_of(tied: Tensor, values: Tensor) -> Tensor:
    """(P, K) the sum of each block of ties, in the column of the block's number."""
    return torch.zeros(values.shape, dtype=torch.float64, device=values.device).scatter_add(1, tied, values)


def _check(correct: Tensor, n: int) -> None:
    if correct.ndim != 2:
        raise ValueError(f"expected (P, K), got {tuple(correct.shape)}")
    if not 1 <= n <= correct.shape[1]:
        raise ValueError(f"cannot draw {n} of a pool of {correct.shape[1]} samples")
