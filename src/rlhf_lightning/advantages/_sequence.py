"""What the group estimators share: one number a sequence, spread over its tokens."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.types import Advantages, TokenRewards


def sequence_rewards(rewards: TokenRewards) -> Tensor:
    """(B,) sum of each sequence's token rewards (the response's reward, less its KL penalty where there is one)."""
    return (rewards.values * rewards.mask).sum(dim=1)


def spread(per_sequence: Tensor, rewards: TokenRewards) -> Advantages:
    """Gives every token of a sequence the sequence's advantage."""
    return Advantages(values=per_sequence[:, None] * rewards.mask)
