"""GRPO's loss of one update (arXiv 2402.03300, Eq. 3 and 4), by ordinary forwards, one token at a time."""

import torch
from torch import Tensor

from reference.advantages import normalized
from reference.ppo import log_probs, policy_term


def k3(new: Tensor, ref: float) -> Tensor:
    """Eq. 4: pi_ref / pi - log(pi_ref / pi) - 1."""
    quotient = torch.exp(torch.tensor(ref, dtype=new.dtype)) / torch.exp(new)
    return quotient - torch.log(quotient) - 1


def update_loss(
    policy, reference, groups: list[dict], *, temperature: float, low: float, high: float, beta: float, eps: float
) -> list[list[Tensor]]:
    """The loss of each sequence's tokens.

    Each group holds ``prompt``, and of its samples: ``responses`` (tokens), ``old`` (log-probs) and ``rewards``.
    """
    losses = []
    for group in groups:
        advantages = normalized(group["rewards"], eps)
        for response, old, advantage in zip(group["responses"], group["old"], advantages, strict=True):
            new = log_probs(policy, group["prompt"], response, temperature)
            with torch.no_grad():
                ref = [float(x) for x in log_probs(reference, group["prompt"], response, temperature)]
            losses.append(
                [
                    policy_term(n, o, advantage, low, high) + beta * k3(n, r)
                    for n, o, r in zip(new, old, ref, strict=True)
                ]
            )
    return losses
