"""Ratios of whole responses instead of single tokens (GSPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.masked import masked_mean, masked_sum
from rlhf_lightning.functional.policy_loss import clipped_policy_loss


def sequence_log_ratio(new: Tensor, old: Tensor, mask: Tensor, *, normalize: bool) -> Tensor:
    r"""Log of the ratio of whole responses, or of its |y|-th root.

    .. math::
        \log s = \sum_t (new_t - old_t) \quad\text{or}\quad \frac{1}{|y|} \sum_t (new_t - old_t)

    Source: the root is s_i of GSPO (Zheng et al., arXiv 2507.18071, §4.1), there to keep responses of all lengths
    within one range.

    Args:
        new: (B, T) log-probs under the policy being trained, nats per token.
        old: (B, T) log-probs to compare with.
        mask: (B, T) bool, True on response tokens.
        normalize: Whether to divide by the response's length (the geometric mean of the tokens' ratios).

    Returns:
        (B,) nats per token if normalized, else per sequence; 0 for a response without tokens.
    """
    return (masked_mean if normalize else masked_sum)(new - old, mask, 1)


def sequence_policy_loss(
    new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    r"""GSPO's loss: the clipped loss with the response's ratio on each of its tokens.

    .. math::
        s_t = \mathrm{sg}[s]\, e^{new_t - \mathrm{sg}[new_t]}, \qquad
        L_t = -\min(s_t A_t,\ \mathrm{clip}(s_t, 1 - \epsilon_{low}, 1 + \epsilon_{high}) A_t)

    with sg the value without gradient, and log s the normalised ``sequence_log_ratio``. The mean over a response's
    tokens has, where A is the same on all of them, the value and the gradient of GSPO's
    ``-min(s A, clip(s) A)``.

    Source: GSPO-token, Zheng et al., arXiv 2507.18071, §4.3. The paper's reduction is the mean over tokens, then over
    responses: ``seq-mean-token-mean``.

    Args:
        new: (B, T) log-probs under the policy being trained, nats per token.
        old: (B, T) log-probs under the policy that sampled.
        advantages: (B, T) A_t.
        mask: (B, T) bool, True on response tokens.
        clip_low: Largest step of s below 1.
        clip_high: Largest step of s above 1.

    Returns:
        (B, T) loss per token, to be minimised; not reduced.

    Raises:
        ValueError: If a bound is negative.
    """
    log_s = sequence_log_ratio(new.detach(), old, mask, normalize=True)[:, None]
    log_s_t = log_s + (new - new.detach())
    return clipped_policy_loss(log_s_t, torch.zeros_like(log_s_t), advantages, clip_low=clip_low, clip_high=clip_high)
