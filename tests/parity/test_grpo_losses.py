"""Our policy losses against those inside TRL's ``GRPOTrainer`` and ``RLOOTrainer``, on random log-probs (float64)."""

import pytest
import torch

from parity import peers
from parity.cases import G, T, mask, random, rollout
from rlhf_lightning.functional import (
    aggregate,
    cispo_loss,
    clipped_policy_loss,
    group_center,
    group_normalize,
    kl_k2,
    kl_k3,
    leave_one_out,
    sequence_policy_loss,
)

B = 12
REL = 1e-12
HALVES = slice(0, 5), slice(5, 12)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, peer):
    """One trainer for all losses: its attributes are what its configuration would have set."""
    made = peers.make("GRPO", tmp_path_factory.mktemp("grpo"), made=rollout(), rewards={}, reference_seed=1, beta=0.04)
    return made


def inputs(seed: int = 0, spread: float = 0.3):
    new = random(B, T, seed=seed).requires_grad_()
    old = new.detach() + random(B, T, seed=seed + 1, scale=spread)
    ref = new.detach() + random(B, T, seed=seed + 2, scale=0.5)
    return new, old, ref, random(B, seed=seed + 3)


def configure(trainer, monkeypatch, **changed):
    defaults = {"loss_type": "dapo", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.28}
    defaults |= {"importance_sampling_level": "token", "use_bias_correction_kl": False}
    for name, value in {**defaults, **changed}.items():
        monkeypatch.setattr(trainer.args if name in ("delta", "use_bias_correction_kl") else trainer, name, value)


def assert_same(ours, theirs, new):
    (got,), (want,) = torch.autograd.grad(ours, new), torch.autograd.grad(theirs, new)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=REL)
    assert float(want.norm()) > 1e-3
    assert float((got - want).norm()) <= REL * float(want.norm())


def theirs_of(trainer, new, old, ref, advantages, counted=None):
    counted = mask() if counted is None else counted
    return peers.loss_of(trainer, new, peers.prepared(counted, advantages, old, ref))


MODES = {
    "dapo": ("token-mean", None),
    "bnpo": ("token-mean", None),
    "grpo": ("seq-mean-token-mean", None),
    "luspo": ("seq-mean-token-sum", None),
    "dr_grpo": ("constant", float(B * T)),
}


@pytest.mark.parametrize("loss_type", MODES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_clipped_loss_and_k3_by_aggregation(trainer, monkeypatch, loss_type, beta):
    configure(trainer, monkeypatch, loss_type=loss_type, beta=beta)
    new, old, ref, advantages = inputs()
    mode, denominator = MODES[loss_type]
    per_token = clipped_policy_loss(new, old, advantages[:, None], clip_low=0.2, clip_high=0.28)
    ours = aggregate(per_token + beta * kl_k3(new, ref), mask(), mode=mode, denominator=denominator)
    assert_same(ours, theirs_of(trainer, new, old, ref, advantages), new)


def test_dual_clip_is_delta(trainer, monkeypatch):
    configure(trainer, monkeypatch, delta=1.5)
    new, old, ref, advantages = inputs(spread=1.0)
    kwargs = {"clip_low": 0.2, "clip_high": 0.28}
    held, free = (clipped_policy_loss(new, old, advantages[:, None], dual_clip=c, **kwargs) for c in (1.5, None))
    assert bool((held != free)[mask()].any())
    assert_same(aggregate(held, mask(), mode="token-mean"), theirs_of(trainer, new, old, ref, advantages), new)


@pytest.mark.parametrize(("loss_type", "mode"), [("dapo", "token-mean"), ("grpo", "seq-mean-token-mean")])
def test_gspo_is_the_sequence_level(trainer, monkeypatch, loss_type, mode):
    bounds = {"epsilon_low": 0.05, "epsilon_high": 0.1}
    configure(trainer, monkeypatch, loss_type=loss_type, importance_sampling_level="sequence", **bounds)
    new, old, ref, advantages = inputs()
    per_token = sequence_policy_loss(new, old, advantages[:, None], mask(), clip_low=0.05, clip_high=0.1)
    assert_same(aggregate(per_token, mask(), mode=mode), theirs_of(trainer, new, old, ref, advantages), new)


def test_cispo_with_the_bound_counted_from_zero(trainer, monkeypatch):
    """TRL's epsilon_high is the largest weight itself, ours the largest step above 1; neither has a lower bound."""
    configure(trainer, monkeypatch, loss_type="cispo", epsilon_high=1.4)
    new, old, ref, advantages = inputs(spread=1.0)
    per_token = cispo_loss(new, old, advantages[:, None], clip_low=1.0, clip_high=0.4)
    assert bool((torch.exp(new.detach() - old) > 1.4)[mask()].any())
    ours = aggregate(per_token, mask(), mode="token-mean")
    assert_same(ours, theirs_of(trainer, new, old, ref, advantages), new)


class TestDifferences:
    """Each where it comes from, and by how much."""

    def test_bnpo_weighs_micro_batches_alike_and_dapo_does_not(self, trainer, monkeypatch):
        new, old, _, advantages = inputs()
        per_token = clipped_policy_loss(new, old, advantages[:, None], clip_low=0.2, clip_high=0.28)
        ours = aggregate(per_token, mask(), mode="token-mean")
        found = {}
        monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 2)
        for loss_type in ("bnpo", "dapo"):
            configure(trainer, monkeypatch, loss_type=loss_type)
            monkeypatch.setattr(trainer.args, "steps_per_generation", 2)
            halves = []
            for rows in HALVES:
                half = peers.prepared(mask()[rows], advantages[rows], old[rows])
                half["num_items_in_batch"] = mask().sum()
                halves.append(peers.loss_of(trainer, new[rows], half))
            found[loss_type] = sum(halves)
        assert_same(ours, found["dapo"], new)
        assert float(found["bnpo"].detach()) != pytest.approx(float(ours.detach()), rel=1e-6)
        parts = [aggregate(per_token[rows], mask()[rows], mode="token-mean") for rows in HALVES]
        assert float(found["bnpo"].detach()) == pytest.approx(float(sum(parts).detach()) / 2, rel=REL)

    def test_their_k3_times_the_ratio_has_on_policy_the_gradient_of_our_k2(self, trainer, monkeypatch):
        """``use_bias_correction_kl`` is on by default in TRL; its value remains k3's."""
        configure(trainer, monkeypatch, beta=0.04, use_bias_correction_kl=True)
        new, _, ref, advantages = inputs()
        old = new.detach()
        theirs = theirs_of(trainer, new, old, ref, advantages)
        surrogate = clipped_policy_loss(new, old, advantages[:, None], clip_low=0.2, clip_high=0.28)
        ours = {k: aggregate(surrogate + 0.04 * k(new, ref), mask(), mode="token-mean") for k in (kl_k2, kl_k3)}
        assert float(theirs.detach()) == pytest.approx(float(ours[kl_k3].detach()), rel=REL)
        (want,) = torch.autograd.grad(theirs, new)
        found = {k: torch.autograd.grad(loss, new, retain_graph=True)[0] for k, loss in ours.items()}
        off = {k: float((gradient - want).norm() / want.norm()) for k, gradient in found.items()}
        assert off[kl_k2] <= REL and off[kl_k3] > 1e-3

    def test_sequences_without_counted_tokens_are_in_their_mean_and_not_in_ours(self, trainer, monkeypatch):
        configure(trainer, monkeypatch, loss_type="grpo")
        new, old, ref, advantages = inputs()
        counted = mask() & (torch.arange(B) % 4 > 0)[:, None]
        per_token = clipped_policy_loss(new, old, advantages[:, None], clip_low=0.2, clip_high=0.28)
        ours = aggregate(per_token, counted, mode="seq-mean-token-mean")
        assert_same(ours * 9 / 12, theirs_of(trainer, new, old, ref, advantages, counted), new)


class TestAdvantages:
    """Rewards are multiples of 1/4, since TRL holds them in float32."""

    @staticmethod
    def rewards():
        return torch.tensor([0.25, 1.5, -0.5, 2.0, 1.0, 1.0, 1.0, 1.0, 0.0, 3.0, 0.0, 0.75])

    def theirs(self, tmp_path, name, **changed):
        made = rollout()
        given = peers.by_response(made, self.rewards())
        trainer = peers.make(name, tmp_path, made=made, rewards=given, **changed)
        examples = [{"prompt": prompt.text} for prompt in made.prompts for _ in range(G)]
        trainer.model.train()
        return trainer._generate_and_score_completions(examples)["advantages"]

    def test_group_advantages_but_for_the_sample_deviation(self, tmp_path):
        """Theirs divides by the deviation with G - 1, and adds 1e-4; a factor, and an eps to match."""
        factor = ((G - 1) / G) ** 0.5
        ours = factor * group_normalize(self.rewards(), group_size=G, eps=1e-4 * factor)
        torch.testing.assert_close(ours, self.theirs(tmp_path, "GRPO"), rtol=REL, atol=1e-12)

    def test_dr_grpo(self, tmp_path):
        ours = group_center(self.rewards(), group_size=G)
        torch.testing.assert_close(ours, self.theirs(tmp_path, "GRPO", scale_rewards="none"), rtol=REL, atol=1e-12)

    def test_rloo(self, tmp_path):
        ours = leave_one_out(self.rewards(), group_size=G)
        torch.testing.assert_close(ours, self.theirs(tmp_path, "RLOO", beta=0.0), rtol=REL, atol=1e-12)
