"""One whole step of GRPO: ours, packed with each prompt once, against TRL's ``train()`` over padded rows.

Same weights, reference, prompts, responses and rewards; beta above 0; old log-probs from the policy itself. Compared
are the loss and every parameter's gradient as the optimizer sees it.
"""

import pytest
import torch

from parity import peers
from parity.cases import (
    G,
    assert_same_gradients,
    chosen,
    experience,
    padded_logits,
    policy,
    rollout,
    summed_gradient,
    updates,
)
from rlhf_lightning.algorithms.advantages import RLOO, Group, GroupCenter
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules import GRPOModule
from rlhf_lightning.types import TokenRewards

BETA, TEMPERATURE = 0.04, 0.8
REWARDS = torch.tensor([0.25, 1.5, -0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 0.0, 0.75], dtype=torch.float64)
FLOAT32_HEAD = 2e-6
"""TRL's chunked LM head sums in float32 whatever the model's type is."""


def theirs(tmp_path, monkeypatch, *, plain_head, name="GRPO", **changed):
    """TRL's loss and gradients. ``plain_head`` computes its log-probs from ordinary logits, in the model's float64."""
    made = rollout(temperature=TEMPERATURE)
    settings = {"temperature": TEMPERATURE, "beta": BETA, "epsilon_high": 0.28, **changed}
    given = peers.by_response(made, REWARDS)
    trainer = peers.make(name, tmp_path, made=made, rewards=given, reference_seed=1, **settings)
    if plain_head:
        trainer._get_per_token_logps_and_entropies = plain_logprobs
    losses = []
    backward = trainer.accelerator.backward

    def seen(loss, **kwargs):
        losses.append(loss.detach())
        backward(loss, **kwargs)

    monkeypatch.setattr(trainer.accelerator, "backward", seen)
    trainer.train()
    (gradients,) = trainer.recorder.gradients
    return float(sum(losses)), gradients


def plain_logprobs(model, input_ids, attention_mask, logits_to_keep, *_, **__):
    from trl.trainer.utils import selective_log_softmax

    responses = slice(-logits_to_keep - 1, -1)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, responses]
    logprobs = selective_log_softmax(logits / TEMPERATURE, input_ids[:, -logits_to_keep:])
    return logprobs, torch.zeros_like(logprobs), None


def ours(monkeypatch, *, advantage, aggregation, kl="k3", beta=BETA, kl_reward=None):
    made = rollout(temperature=TEMPERATURE)
    model, reference = policy(), policy(1)
    module = GRPOModule(
        policy=TinyLlama(),
        advantage=advantage,
        aggregation=aggregation,
        kl_loss=KLTerm(kl, Fixed(beta)) if beta else None,
    )
    module.policy_loss.high = 0.28
    module.policy = model
    old, ref = (chosen(padded_logits(one, made), made) for one in (model, reference))
    per_token = torch.zeros(made.tokens.shape)
    per_token[torch.arange(len(old)), made.lengths - 1] = REWARDS
    if kl_reward is not None:
        per_token -= kl_reward(old, ref) * made.mask
    advantages = advantage(TokenRewards(per_token, made.mask, G))
    batches = updates(experience(made, advantages, old, ref), aggregation, monkeypatch=monkeypatch)
    assert len(batches) > 1
    losses = [module.update_loss(batch).total for batch in batches]
    return float(sum(losses).detach()), summed_gradient(losses, model.named_parameters())


EXACT = 1e-12
HEADS = [(True, EXACT), (False, FLOAT32_HEAD)]
RECIPES = {
    "dapo": {"aggregation": "token-mean"},
    "grpo": {"aggregation": "seq-mean-token-mean"},
    "dr_grpo": {"aggregation": "constant"},
}


@pytest.mark.parametrize("loss_type", RECIPES)
def test_centred_advantages(tmp_path, monkeypatch, loss_type):
    more = {"loss_type": loss_type, "scale_rewards": "none", "use_bias_correction_kl": False}
    want, gradients = theirs(tmp_path, monkeypatch, plain_head=True, **more)
    got, own = ours(monkeypatch, advantage=GroupCenter(), **RECIPES[loss_type])
    assert got == pytest.approx(want, rel=EXACT)
    assert_same_gradients(own, gradients, rel=EXACT)


@pytest.mark.parametrize(("plain_head", "rel"), HEADS)
def test_grpos_advantages(tmp_path, monkeypatch, plain_head, rel):
    """TRL's sample deviation makes advantages smaller by a factor; ours with beta larger by it is the same step."""
    factor = ((G - 1) / G) ** 0.5
    more = {"loss_type": "grpo", "use_bias_correction_kl": False}
    want, gradients = theirs(tmp_path, monkeypatch, plain_head=plain_head, **more)
    advantage = Group(eps=1e-4 * factor)
    got, own = ours(monkeypatch, advantage=advantage, aggregation="seq-mean-token-mean", beta=BETA / factor)
    assert factor * got == pytest.approx(want, rel=rel)
    assert_same_gradients({name: factor * grad for name, grad in own.items()}, gradients, rel=rel)


def test_their_default_kl_is_our_k2(tmp_path, monkeypatch):
    want, gradients = theirs(tmp_path, monkeypatch, plain_head=True, loss_type="dapo", scale_rewards="none")
    got, own = ours(monkeypatch, advantage=GroupCenter(), aggregation="token-mean", kl="k2")
    assert_same_gradients(own, gradients, rel=EXACT)
    assert got != pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_gradient_accumulation(tmp_path, monkeypatch, loss_type):
    """In two micro-batches of one step, TRL's gradient is still that of our update."""
    more = {"loss_type": loss_type, "scale_rewards": "none", "use_bias_correction_kl": False}
    split = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}
    _, gradients = theirs(tmp_path, monkeypatch, plain_head=True, **more, **split)
    _, own = ours(monkeypatch, advantage=GroupCenter(), **RECIPES[loss_type])
    assert_same_gradients(own, gradients, rel=EXACT)


@pytest.mark.parametrize(("plain_head", "rel"), HEADS)
def test_rloo(tmp_path, monkeypatch, plain_head, rel):
    """TRL's ratio is the whole response's and ours each token's: on policy, where both are 1, one gradient."""
    _, gradients = theirs(tmp_path, monkeypatch, plain_head=plain_head, name="RLOO")
    _, own = ours(
        monkeypatch,
        advantage=RLOO(),
        aggregation="seq-mean-token-sum",
        beta=0.0,
        kl_reward=KLTerm("k1", Fixed(BETA)),
    )
    assert_same_gradients(own, gradients, rel=rel)
