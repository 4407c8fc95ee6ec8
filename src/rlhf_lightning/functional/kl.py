"""Estimators of KL(new || ref) per token from one sample drawn from ``new``, in nats.

Source: J. Schulman, "Approximating KL divergence" (2020), with r = p_ref / p_new of the sampled token. Take the mean
over samples for the divergence. As a penalty inside the reward any of the three will do. As a loss that is
differentiated through ``new``, only k2 has, on policy, the gradient of the divergence as its mean: the mean of k1's is
zero, and that of k3's is the gradient of KL(ref || new).
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(new: Tensor, ref: Tensor) -> Tensor:
    """``k1 = -log r = new - ref``: unbiased, of either sign.

    Args:
        new: Log-probs of the sampled tokens under the policy, any shape, nats.
        ref: The same under the reference.
    """
    return new - ref


def kl_k2(new: Tensor, ref: Tensor) -> Tensor:
    """``k2 = (log r)^2 / 2``: biased, never negative.

    Args:
        new: Log-probs of the sampled tokens under the policy, any shape, nats.
        ref: The same under the reference.
    """
    return (new - ref) ** 2 / 2


def kl_k3(new: Tensor, ref: Tensor) -> Tensor:
    """``k3 = r - 1 - log r``: unbiased, never negative; also Eq. 4 of DeepSeekMath (arXiv 2402.03300).

    Not clamped: log r above 88 overflows float32, and the infinity is there to be seen.

    Args:
        new: Log-probs of the sampled tokens under the policy, any shape, nats.
        ref: The same under the reference.
    """
    log_r = ref - new
    return torch.expm1(log_r) - log_r
