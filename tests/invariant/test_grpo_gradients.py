"""A whole GRPO step, from rewards to gradients: that of slow padded forwards, token by token (float64)."""

import pytest
import torch

from parity.cases import (
    G,
    assert_same_gradients,
    chosen,
    experience,
    padded_logits,
    policy,
    random,
    rollout,
    summed_gradient,
    updates,
)
from reference import grpo as slow
from rlhf_lightning.algorithms.advantages import Group
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.algorithms.losses import Clip
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules import GRPOModule
from rlhf_lightning.types import TokenRewards

LOW, HIGH, BETA, EPS, TEMPERATURE = 0.2, 0.28, 0.04, 1e-6, 0.8
REWARDS = [0.25, 1.5, -0.5, 2.0, 1.0, 0.5, 1.0, 0.0, 0.0, 3.0, 0.0, 0.75]


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def old_logprobs(made):
    """Off the policy, so that some ratios are clipped and some are not."""
    return (chosen(padded_logits(policy(), made), made) + random(*made.tokens.shape, seed=4, scale=0.3)) * made.mask


def by_hand(model, mode: str):
    made = rollout(temperature=TEMPERATURE)
    old, lengths = old_logprobs(made), made.lengths.tolist()
    groups = [
        {
            "prompt": prompt.tokens,
            "responses": [made.tokens[i, : lengths[i]].tolist() for i in range(first, first + G)],
            "old": [old[i, : lengths[i]].tolist() for i in range(first, first + G)],
            "rewards": REWARDS[first : first + G],
        }
        for first, prompt in zip(range(0, len(REWARDS), G), made.prompts, strict=True)
    ]
    losses = slow.update_loss(model, policy(1), groups, temperature=TEMPERATURE, low=LOW, high=HIGH, beta=BETA, eps=EPS)
    if mode == "token-mean":
        return sum(sum(row) for row in losses) / sum(map(len, losses))
    return sum(sum(row) / len(row) for row in losses) / len(losses)


def packed(model, mode: str, token_budget: int, monkeypatch):
    made = rollout(temperature=TEMPERATURE)
    module = GRPOModule(policy=TinyLlama(), policy_loss=Clip(LOW, HIGH), kl_loss=KLTerm("k3", Fixed(BETA)))
    module.policy = model
    rewards = torch.zeros(made.tokens.shape)
    rewards[torch.arange(len(REWARDS)), made.lengths - 1] = torch.tensor(REWARDS)
    advantages = Group(EPS)(TokenRewards(rewards, made.mask, G))
    ref = chosen(padded_logits(policy(1), made), made)
    batches = updates(experience(made, advantages, old_logprobs(made), ref), mode, token_budget, monkeypatch)
    return [module.update_loss(batch).total for batch in batches]


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize("token_budget", [200, 30, 12])
def test_packed_is_the_formula_token_by_token(mode, token_budget, monkeypatch):
    model = policy()
    want = by_hand(model, mode)
    losses = packed(model, mode, token_budget, monkeypatch)
    assert (len(losses) == 1) == (token_budget == 200)
    assert float(sum(losses).detach()) == pytest.approx(float(want.detach()), rel=1e-10)
    named = list(model.named_parameters())
    assert_same_gradients(summed_gradient(losses, named), summed_gradient([want], named), rel=1e-10)
