"""One whole step of PPO: ours, packed, against TRL's ``PPOTrainer.train()`` of version 1.12, the last that has it.

TRL runs in a process of its own (``ppo_peer``) and leaves loss, advantages and every parameter's gradient behind.
"""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from parity import ppo_case as given
from parity.cases import ROOT, T, assert_same_gradients, chosen, experience, mask, padded_logits, policy, updates
from parity.cases import summed_gradient as gradient_of
from reference import advantages as slow
from rlhf_lightning.algorithms.advantages import GAE
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.algorithms.losses import Clip, ClippedValue
from rlhf_lightning.functional import gae, last_true, masked_whiten
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.models.critics import OwnCritic
from rlhf_lightning.models.rollout_packs import pack_pieces, split_rollout
from rlhf_lightning.modules import PPOModule
from rlhf_lightning.types import Advantages, TokenRewards

EXACT = 1e-12
WHITENED = 1e-9
"""Both sides add 1e-8 to a variance, but TRL to the sample's: that is not quite a factor."""


@pytest.fixture(scope="module")
def theirs(old_peer, tmp_path_factory):
    """What TRL computed, by case and name."""
    out = tmp_path_factory.mktemp("ppo") / "trl.safetensors"
    path = os.pathsep.join([str(old_peer), str(ROOT / "src"), str(ROOT / "tests")])
    command = [sys.executable, str(ROOT / "tests" / "parity" / "ppo_peer.py"), str(out)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, torch.Tensor]] = {}
    with safe_open(out, "pt") as file:
        assert file.metadata()["trl"] == "1.12.0"
        for key in file.keys():  # noqa: SIM118
            case, _, name = key.partition("/")
            found.setdefault(case, {})[name] = file.get_tensor(key)
    return found


def module() -> PPOModule:
    made = PPOModule(
        policy=TinyLlama(),
        policy_loss=Clip(given.CLIP, given.CLIP),
        value_loss=ClippedValue(given.VALUE_CLIP),
        value_coefficient=given.VALUE_COEFFICIENT,
    )
    made.policy, made.critic = policy(), OwnCritic(given.critic())
    return made


def values_of(made: PPOModule, rollout):
    """(B, T) the critic's values at rollout time, in float64."""
    values = torch.zeros(rollout.mask.shape)
    with torch.no_grad():
        for pieces in split_rollout(rollout, range(len(rollout.prompts)), token_budget=30):
            rows, packed = pack_pieces(rollout, pieces)
            values[rows] = packed.to_rows(made.critic.values(made.policy, packed))
    return (values + given.value_noise()) * rollout.mask


def token_rewards(case: str, at):
    """(B, T) the score where ``at`` is True, less the KL penalty on every response token."""
    rollout = given.rollout_of(case)
    ref = chosen(padded_logits(policy(1), rollout), rollout)
    penalty = KLTerm("k1", Fixed(given.KL))(given.old_logprobs(case), ref) * rollout.mask
    return torch.tensor(given.SCORES)[:, None] * at - penalty


def with_state_after_the_end(rollout):
    """The rollout with one more place for each response that ended by itself: what comes after its last token."""
    counted = torch.arange(T) < (rollout.lengths + rollout.finished)[:, None]
    return dataclasses.replace(rollout, mask=counted)


def gradients(made: PPOModule, policy_loss, value_loss, factor: float):
    """By parameter, as TRL names them; ``factor`` on the policy's."""
    own = gradient_of(policy_loss, made.policy.named_parameters())
    critics = gradient_of(value_loss, made.critic.model.named_parameters())
    scaled = {f"policy.{name}": factor * grad for name, grad in own.items()}
    return scaled | {f"value_model.{name}": grad for name, grad in critics.items()}


def sample_deviation(counted) -> float:
    """TRL whitens by the sample deviation: its advantages are ours times this."""
    n = int(counted.sum())
    return ((n - 1) / n) ** 0.5


def of_trl(theirs, case: str):
    found = dict(theirs[case])
    return found.pop("loss"), found.pop("advantages"), found.pop("whitened"), found


def test_full_responses(theirs, monkeypatch):
    """Where no response ends before the limit, the recipes are one but for the whitening's deviation."""
    loss, raw, whitened, grads = of_trl(theirs, "full")
    made, rollout = module(), given.rollout_of("full")
    values = values_of(made, rollout)
    rewards = TokenRewards(token_rewards("full", last_true(rollout.mask)), rollout.mask, 4, values)
    factor = sample_deviation(rollout.mask)
    estimator = GAE(given.GAMMA, given.LAM, whiten=False)
    torch.testing.assert_close(estimator(rewards).values, raw, rtol=EXACT, atol=EXACT)
    advantages = GAE(given.GAMMA, given.LAM)(rewards)
    torch.testing.assert_close(factor * advantages.values, whitened, rtol=WHITENED, atol=WHITENED)
    batches = updates(
        experience(rollout, advantages, given.old_logprobs("full"), values=values),
        "token-mean",
        monkeypatch=monkeypatch,
    )
    assert len(batches) > 1
    policy_loss, value_loss = split_losses(made, batches, batches)
    assert factor * total(policy_loss) + total(value_loss) == pytest.approx(float(loss), rel=WHITENED)
    whole = sum(float(made.update_loss(batch).total.detach()) for batch in batches)
    assert whole == pytest.approx(total(policy_loss) + total(value_loss), rel=EXACT)
    assert_same_gradients(gradients(made, policy_loss, value_loss, factor), grads, rel=WHITENED)


def test_ragged_responses_with_the_state_after_the_end(theirs, monkeypatch):
    """TRL values the state after the end-of-sequence token too, and puts the score there: so do we here, by hand."""
    loss, raw, whitened, grads = of_trl(theirs, "ragged")
    made, rollout = module(), given.rollout_of("ragged")
    longer = with_state_after_the_end(rollout)
    values = values_of(made, longer)
    rewards = token_rewards("ragged", last_true(longer.mask))
    advantages, returns = gae(rewards, values, longer.mask, gamma=given.GAMMA, lam=given.LAM)
    torch.testing.assert_close(advantages, torch.where(longer.mask, raw, 0), rtol=EXACT, atol=EXACT)
    factor = sample_deviation(rollout.mask)
    white = masked_whiten(advantages, rollout.mask)
    torch.testing.assert_close(factor * white, whitened, rtol=WHITENED, atol=WHITENED)
    old = given.old_logprobs("ragged")
    both = [
        updates(experience(one, Advantages(white, returns), old, values=values), "token-mean", monkeypatch=monkeypatch)
        for one in (rollout, longer)
    ]
    policy_loss, value_loss = split_losses(made, *both)
    assert factor * total(policy_loss) + total(value_loss) == pytest.approx(float(loss), rel=WHITENED)
    assert_same_gradients(gradients(made, policy_loss, value_loss, factor), grads, rel=WHITENED)


def test_without_the_state_after_the_end_ours_is_another_estimate(theirs):
    """With gamma or lambda below 1 advantages differ; with both 1 the value after the end cancels out."""
    _, raw, _, _ = of_trl(theirs, "ragged")
    made, rollout = module(), given.rollout_of("ragged")
    longer = with_state_after_the_end(rollout)
    values = values_of(made, longer)
    at_last, after = (token_rewards("ragged", last_true(one.mask)) for one in (rollout, longer))
    ours, _ = gae(at_last, values * rollout.mask, rollout.mask, gamma=given.GAMMA, lam=given.LAM)
    assert float((ours - raw)[rollout.mask].abs().max()) > 1e-2
    one, _ = gae(at_last, values * rollout.mask, rollout.mask, gamma=1.0, lam=1.0)
    two, _ = gae(after, values, longer.mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(one[rollout.mask], two[rollout.mask], rtol=EXACT, atol=EXACT)


def test_their_gae_is_the_slow_double_sum(theirs):
    """TRL's loop and the reference agree too, so that none of the three stands alone."""
    _, raw, _, _ = of_trl(theirs, "full")
    rollout = given.rollout_of("full")
    values, rewards = values_of(module(), rollout), token_rewards("full", last_true(rollout.mask))
    assert bool(mask(given.CASES["full"]).all())
    for row in range(len(raw)):
        want = slow.gae(rewards[row].tolist(), values[row].tolist(), given.GAMMA, given.LAM)
        assert raw[row].tolist() == pytest.approx(want, rel=EXACT, abs=EXACT)


def split_losses(made: PPOModule, of_policy, of_values):
    """The policy's terms of some micro-batches and the critic's of others (or the same), with gradient."""
    policy_loss, value_loss = [], []
    for batch in of_policy:
        logprobs, _ = made.critic.with_logprobs(
            made.policy, batch.packed, temperature=batch.temperature, chunk_size=made.logits_chunk
        )
        policy_loss.append(made.updater.objective(batch.packed.to_rows(logprobs), batch).total)
    for batch in of_values:
        value_loss.append(made.updater.value_objective(made.critic.values(made.policy, batch.packed), batch).total)
    return policy_loss, value_loss


def total(losses) -> float:
    return float(sum(losses).detach())
