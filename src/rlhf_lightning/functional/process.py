"""Advantages from scores of reasoning steps."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional.gae import discounted_returns
from rlhf_lightning.functional.group import _all_equal
from rlhf_lightning.functional.masked import masked_mean, masked_var


def process_advantages(steps: Tensor, ends: Tensor, mask: Tensor, *, group_size: int, eps: float = 1e-6) -> Tensor:
    r"""GRPO with process supervision: step scores normalised over the group's steps, summed from each token on.

    .. math::
        \tilde r_{i,j} = \frac{r_{i,j} - \mathrm{mean}(R)}{\mathrm{std}(R) + eps}, \qquad
        A_{i,t} = \sum_{j:\ index(j) \ge t} \tilde r_{i,j}

    with R the scores of all steps of all G responses to the prompt, and index(j) the last token of step j.

    Source: DeepSeekMath (arXiv 2402.03300), §4.1.3. std is the population's, and ``eps`` is ours, as in
    ``group_normalize``; with one step a response, on its last token, the two give the same.

    Args:
        steps: (B, T) scores, looked at where a step ends.
        ends: (B, T) bool, True on the last token of each step.
        mask: (B, T) bool, True on response tokens.
        group_size: G.
        eps: Added to the standard deviation.

    Returns:
        (B, T), 0 off the mask, after a response's last step, and in groups whose steps all have the same score.

    Raises:
        ValueError: If B is not a multiple of G.
    """
    if group_size < 1 or steps.shape[0] % group_size:
        raise ValueError(f"{steps.shape[0]} responses do not make groups of {group_size}")
    shape = (steps.shape[0] // group_size, -1)
    values, counts = steps.reshape(shape), ends.reshape(shape)
    equal = _all_equal(values, counts).unsqueeze(1)
    centered = values - masked_mean(values.double(), counts, 1).unsqueeze(1)
    variance = torch.where(equal, 1, masked_var(values.double(), counts, 1).unsqueeze(1))
    scores = torch.where(counts & ~equal, centered / (variance.sqrt() + eps), 0).to(steps.dtype)
    return discounted_returns(scores.reshape(steps.shape), mask, gamma=1.0)
