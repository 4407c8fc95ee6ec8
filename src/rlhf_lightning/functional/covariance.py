"""Which tokens drive the policy's entropy down, and losses that hold them back (Cui et al., arXiv 2505.22617).

What is likely and has a high advantage becomes likelier still: the covariance of log-prob and advantage is, to first
order, how fast entropy falls (§3 there). Both methods act on a tiny share of the tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.masked import masked_mean
from rlhf_lightning.functional.policy_loss import clipped_policy_loss

ROUNDING = 1e-4
"""Largest |log ratio| that two computations of one log-prob may differ by, in nats."""


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Each token's part of the covariance: ``(logp_t - mean(logp)) (A_t - mean(A))``, means over all that counts.

    Source: arXiv 2505.22617, §4.2, the definition before Clip-Cov.

    Args:
        logprobs: (B, T) log-probs of the tokens, nats.
        advantages: (B, T) A_t.
        mask: (B, T) bool, True on response tokens.

    Returns:
        (B, T), 0 off the mask; its masked mean is the covariance.
    """
    parts = (logprobs - masked_mean(logprobs, mask)) * (advantages - masked_mean(advantages, mask))
    return torch.where(mask, parts, 0)


def random_marks(eligible: Tensor, *, count: int, seed: int) -> Tensor:
    """Marks ``count`` of the eligible places, each with the same chance; all of them if there are no more.

    Source: Clip-Cov's choice, arXiv 2505.22617, §4.2, with ``count = floor(r N)``.

    Args:
        eligible: Bool, any shape.
        count: How many.
        seed: The choice is a function of it, of ``count`` and of how many are eligible.

    Returns:
        Bool, the shape of ``eligible``.
    """
    places = eligible.flatten().nonzero().squeeze(1)
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
    return _marked(eligible, places[order[:count].to(places.device)])


def largest_marks(values: Tensor, mask: Tensor, *, count: int) -> Tensor:
    """Marks the ``count`` largest values among those that count; of equal ones, the first.

    Source: KL-Cov's choice, arXiv 2505.22617, §4.2, with ``count = floor(k N)``.

    Args:
        values: Any shape.
        mask: Bool, the shape of ``values``; True counts.
        count: How many.

    Returns:
        Bool, the shape of ``values``.
    """
    places = mask.flatten().nonzero().squeeze(1)
    order = values.flatten()[places].argsort(descending=True, stable=True)
    return _marked(mask, places[order[:count]])


def clip_cov_loss(
    new: Tensor, old: Tensor, advantages: Tensor, marks: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    r"""Clip-Cov's loss per token: ``clipped_policy_loss``, and 0 where a token is marked.

    Source: arXiv 2505.22617, §4.2. Deviation: the paper writes ``rho_t A_t`` for the other tokens; we keep PPO's clip
    there, as its code does.

    Args:
        new: (...) log-probs under the policy being trained, nats per token.
        old: (...) log-probs under the policy that sampled.
        advantages: (...) A_t.
        marks: (...) bool, True on tokens that are to have no gradient.
        clip_low: Largest step of the ratio below 1.
        clip_high: Largest step of the ratio above 1.

    Returns:
        (...) loss per token, to be minimised; not reduced.

    Raises:
        ValueError: If a bound is negative.
    """
    loss = clipped_policy_loss(new, old, advantages, clip_low=clip_low, clip_high=clip_high)
    return torch.where(marks, 0, loss)


def kl_cov_loss(new: Tensor, old: Tensor, advantages: Tensor, marks: Tensor, *, beta: float) -> Tensor:
    r"""KL-Cov's loss per token: ``-rho_t A_t``, and ``beta |new_t - old_t|`` more where a token is marked.

    Source: arXiv 2505.22617, §4.2. It writes ``beta KL(old || new)`` there; one sample's ``old - new`` would push
    every marked token up, and its code takes the magnitude of the log-ratio, which holds the token where it was, as we
    do. There is no clip.

    Args:
        new: (...) log-probs under the policy being trained, nats per token.
        old: (...) log-probs under the policy that sampled.
        advantages: (...) A_t.
        marks: (...) bool, True on tokens that are to be held back.
        beta: Weight of the penalty, not negative.

    Returns:
        (...) loss per token, to be minimised; not reduced. A log-ratio below 1e-4 is rounding, whose sign means
        nothing (in a first update all are): it is not penalised.

    Raises:
        ValueError: If ``beta`` is negative.
    """
    if beta < 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    log_ratio = new - old
    held = marks & (log_ratio.detach().abs() > ROUNDING)
    return -torch.exp(log_ratio) * advantages + torch.where(held, beta * log_ratio.abs(), 0)


def _marked(like: Tensor, places: Tensor) -> Tensor:
    marks = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
    marks[places] = True
    return marks.view(like.shape)
