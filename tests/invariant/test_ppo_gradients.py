"""PPO's gradient, policy and critic: that of slow padded forwards, for any split into micro-batches (float64)."""

import copy
import dataclasses
import functools

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from invariant.test_packing_gradients import (
    LENGTHS,
    PROMPTS,
    TEMPERATURE,
    assert_same_gradient,
    experience,
    policy,
    rms_norm,
)
from invariant.test_packing_gradients import use_float64_weights as exact_weights
from reference import ppo as slow
from rlhf_lightning.algorithms.losses import Clip, ClippedValue
from rlhf_lightning.data.update_batches import updates_of
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.models.critics import OwnCritic, SharedHead
from rlhf_lightning.models.scalar import scalar_model
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.types import Advantages

COEFFICIENT, CLIP, VALUE_CLIP = 0.7, 0.2, 0.3


@pytest.fixture(autouse=True)
def use_float64_weights(monkeypatch):
    exact_weights(monkeypatch)


@functools.cache
def rollout():
    """The experience of the packing test, with values and returns near enough that some are clipped and some not."""
    make = torch.Generator().manual_seed(2)
    base = experience()
    values, off = (torch.randn(16, 6, dtype=torch.float64, generator=make) * base.rollout.mask for _ in range(2))
    return dataclasses.replace(base, values=values, advantages=Advantages(base.advantages.values, values + off))


@functools.cache
def module(shared: bool) -> PPOModule:
    made = PPOModule(
        policy=TinyLlama(),
        shared_backbone=shared,
        policy_loss=Clip(CLIP, CLIP),
        value_loss=ClippedValue(VALUE_CLIP),
        value_coefficient=COEFFICIENT,
    )
    made.policy = copy.deepcopy(policy())
    own = scalar_model(copy.deepcopy(policy())).double()
    for part in (made.policy, own):
        for norm in part.modules():
            if isinstance(norm, LlamaRMSNorm):
                norm.forward = functools.partial(rms_norm, norm)
    made.critic = SharedHead(made.policy) if shared else OwnCritic(own)
    head = made.critic.head if shared else own.score
    torch.nn.init.normal_(head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return made


def trained(shared: bool):
    return [*module(shared).policy.parameters(), *module(shared).critic.parameters()]


def gradient_of(losses, shared):
    parameters = trained(shared)
    total = [torch.zeros_like(p) for p in parameters]
    for loss in losses:
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        for part, grad in zip(total, grads, strict=True):
            part += 0 if grad is None else grad
    return torch.cat([part.flatten() for part in total])


def packed(shared, **more):
    settings = {"updates": 1, "token_budget": 100, "aggregation": "token-mean"} | more
    return [module(shared).update_loss(batch).total for batch in updates_of(rollout(), **settings)[0]]


def padded(shared):
    exp, made = rollout(), module(shared)
    backbone = made.policy.model if shared else made.critic.model.model
    head = (made.critic.head if shared else made.critic.model.score).weight[0]
    sequences = []
    for i, length in enumerate(LENGTHS):
        response, prompt = exp.rollout.tokens[i, :length].tolist(), PROMPTS[i // 4]
        sequences.append({
            "new": slow.log_probs(made.policy, prompt, response, TEMPERATURE),
            "values": slow.token_values(backbone, head, prompt, response),
            "old": exp.old_logprobs[i, :length].tolist(),
            "old_values": exp.values[i, :length].tolist(),
            "returns": exp.advantages.returns[i, :length].tolist(),
            "advantages": exp.advantages.values[i, :length].tolist(),
        })  # fmt: skip
    return slow.update_loss(sequences, clip=CLIP, value_clip=VALUE_CLIP, value_coefficient=COEFFICIENT)


@pytest.mark.parametrize("shared", [False, True])
def test_packed_equals_padded(shared):
    policy_term, value_term = padded(shared)
    (loss,) = packed(shared)
    assert float(loss) == pytest.approx(float(policy_term + value_term), rel=1e-9)
    assert_same_gradient(gradient_of([loss], shared), gradient_of([policy_term + value_term], shared))
    assert float(value_term) > 0.1 and abs(float(policy_term)) > 1e-3


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("budget", [40, 17, 10])
def test_any_budget_gives_the_same_gradient(shared, budget):
    cut = packed(shared, token_budget=budget)
    assert len(cut) > 1
    assert_same_gradient(gradient_of(cut, shared), gradient_of(packed(shared), shared))


def test_own_critic_leaves_the_policys_gradient_alone_and_a_shared_one_does_not():
    for shared in (False, True):
        _, value_term = padded(shared)
        grads = torch.autograd.grad(value_term, list(module(shared).policy.parameters()), allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads) == shared


def test_values_alone_have_gradient_in_the_critic_only():
    batch = updates_of(rollout(), updates=1, token_budget=100, aggregation="token-mean")[0][0]
    for shared in (False, True):
        made = module(shared)
        values = made.critic.values(made.policy, batch.packed)
        grads = torch.autograd.grad(values.sum(), trained(shared), allow_unused=True)
        reached = {id(p) for p, grad in zip(trained(shared), grads, strict=True) if grad is not None}
        assert reached and reached <= {id(p) for p in made.critic.parameters()}
        both = made.critic.with_logprobs(made.policy, batch.packed, temperature=1.0, chunk_size=7)[1]
        torch.testing.assert_close(values, both, atol=1e-12, rtol=0)


def test_masked_responses_have_no_gradient():
    """The gradient of an update without two of its groups is that of the update in which they don't count."""
    exp = rollout()
    counted = exp.rollout.mask.clone()
    counted[4:12] = False
    (half,) = packed(False, counted=counted)
    kept = [i for i in range(16) if not 4 <= i < 12]
    changed = dataclasses.replace(exp, values=exp.values.clone())
    changed.values[4:12] += 100.0
    (again,) = [module(False).update_loss(b).total for b in updates_of(changed, updates=1, token_budget=100,
                aggregation="token-mean", counted=counted)[0]]  # fmt: skip
    assert float(half) == float(again)
    batch = updates_of(exp, updates=1, token_budget=100, aggregation="token-mean", counted=counted)[0][0]
    assert batch.weights[kept].sum() == pytest.approx(1.0) and batch.weights[4:12].sum() == 0
