"""What both sides of the PPO step are given."""

import torch

from parity.cases import LENGTHS, TEXTS, G, T, chosen, padded_logits, policy, random, rollout
from rlhf_lightning.models.scalar import scalar_model
from rlhf_lightning.types import Rollout

GAMMA, LAM, CLIP, VALUE_CLIP, VALUE_COEFFICIENT, KL = 0.98, 0.9, 0.2, 0.3, 0.7, 0.05
TEMPERATURE = 0.8 + 1e-7
"""TRL adds 1e-7 to the temperature it is given."""
SCORES = (0.25, 1.5, -0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 0.0, 0.75)
CASES = {"full": [T] * len(TEXTS) * G, "ragged": LENGTHS}


def rollout_of(case: str) -> Rollout:
    return rollout(CASES[case], TEMPERATURE)


def critic():
    """A scalar model whose head is not 0."""
    made = scalar_model(policy(2))
    torch.nn.init.normal_(made.score.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return made


def behaviour_logits(case: str):
    """(B, T, V), at the temperature: near the policy's, so that some ratios are clipped and some are not."""
    made = rollout_of(case)
    logits = padded_logits(policy(), made)
    return logits + random(*logits.shape, seed=5, scale=0.2)


def old_logprobs(case: str):
    return chosen(behaviour_logits(case), rollout_of(case))


def value_noise():
    """(B, T) what the critic has moved since the rollout, so that some values are clipped and some are not."""
    return random(len(SCORES), T, seed=6, scale=0.4)
