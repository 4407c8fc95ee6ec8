"""PPOModule inside Lightning: critics of each kind, warm-up, what a rollout logs, what a checkpoint holds."""

import math

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer

from rlhf_lightning.algorithms.advantages import GAE, Reinforce
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import ClippedValue
from rlhf_lightning.algorithms.transforms import GroupNormalize
from rlhf_lightning.data.prompts import PromptData
from rlhf_lightning.data.update_batches import TRUNCATIONS
from rlhf_lightning.errors import ConfigError, ModelSourceError, NonFiniteError
from rlhf_lightning.models import LoRA, TinyLlama
from rlhf_lightning.models.critics import SharedHead
from rlhf_lightning.models.reward_folder import RewardCard, RewardModelFolder, save_reward_model
from rlhf_lightning.models.scalar import scalar_model
from rlhf_lightning.models.sources import Folder
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.types import Rewards

KINDS = {
    "own": {},
    "shared": {"shared_backbone": True, "value_coefficient": 0.1},
    "adapters": {"lora": LoRA(rank=4)},
    "adapters on their own backbone": {"lora": LoRA(rank=4), "critic": TinyLlama(hidden=16, layers=1, heads=2, seed=7)},
    "checkpointing": {"gradient_checkpointing": True},
    "adapters with checkpointing": {"lora": LoRA(rank=4), "gradient_checkpointing": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def fit(module, path, callbacks=(), data: PromptData | None = None, **more):
    fitted = trainer(path, callbacks=list(callbacks), **more)
    fitted.fit(module, datamodule=data or prompts())
    return fitted


def weights(part):
    return {name: tensor.clone() for name, tensor in part.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@every_kind
def test_both_learn(tmp_path, record, kind):
    module = ppo(scorers=[EvenTokens()], **KINDS[kind])
    fit(module, tmp_path, [record], max_epochs=3)
    first, last = record.rows[0], record.rows[-1]
    assert first["ratio/mean"] == pytest.approx(1.0, abs=0.05)
    assert first["value/mean"] == 0.0 and last["value/mean"] > 0.05
    assert last["loss/value"] < first["loss/value"]
    assert min(first["grad_norm/critic"], last["grad_norm/policy"]) > 0
    assert last["learning_rate/critic"] == 3e-3 and last["learning_rate/policy"] == 1e-3
    assert last["update/skipped"] == 0.0


def test_policy_learns_a_reward_it_can_raise(tmp_path, record):
    fast = {"prompts_per_rollout": 16, "updates_per_rollout": 4}
    module = ppo(scorers=[EvenTokens()], optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2), **fast)
    fit(module, tmp_path, [record], max_epochs=15)
    assert 0.4 < record.rows[0]["score/even"] < 0.6 and record.rows[-1]["score/even"] > 0.8
    assert record.rows[-1]["value/mean"] == pytest.approx(record.rows[-1]["score/even"], abs=0.15)


@every_kind
def test_warm_up_leaves_the_policy_as_it_was(tmp_path, record, kind):
    decaying = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5)}
    module = ppo(scorers=[EvenTokens()], critic_warmup_rollouts=2, warmup_updates=3, **decaying, **KINDS[kind])
    started: dict = {}
    module.on_train_start = lambda: started.update(policy=weights(module.policy), critic=weights(module.critic))
    fitted = fit(module, tmp_path, [record], max_epochs=2)
    assert same(weights(module.policy), started["policy"])
    assert not same(weights(module.critic), started["critic"])
    assert record.rows[1]["grad_norm/policy"] == 0.0 and "loss/policy" not in record.rows[1]
    (optimizer,) = fitted.optimizers
    assert not any(optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates["policy"] == pytest.approx(1e-2 / 4) and rates["critic"] == pytest.approx(3e-3)


def test_after_warm_up_the_policy_trains(tmp_path, record):
    module = ppo(scorers=[EvenTokens()], critic_warmup_rollouts=1)
    fit(module, tmp_path, [record], max_epochs=2)
    assert "loss/policy" in record.rows[1] and record.rows[1]["grad_norm/policy"] > 0


@pytest.mark.parametrize("kind", ["own", "shared", "adapters"])
def test_resumed_is_the_same_bit_for_bit(tmp_path, kind):
    def new():
        more = {"critic_warmup_rollouts": 1, "warmup_updates": 5, "kl_reward": KLTerm()}
        return ppo(scorers=[EvenTokens()], **more, **KINDS[kind])

    whole, half, resumed = new(), new(), new()
    fit(whole, tmp_path, max_epochs=4)
    fit(half, tmp_path, max_epochs=2).save_checkpoint(tmp_path / "c.ckpt", False)
    trainer(tmp_path, max_epochs=4).fit(resumed, datamodule=prompts(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert same(weights(resumed.policy), weights(whole.policy))
    assert same(weights(resumed.critic), weights(whole.critic))
    assert not same(weights(half.critic), weights(whole.critic))


@pytest.mark.parametrize(
    ("kind", "kept"), [("own", "critic.model."), ("shared", "critic.head."), ("adapters", "critic.model.")]
)
def test_checkpoint_holds_both_and_nothing_frozen(tmp_path, kind, kept):
    module = ppo(scorers=[EvenTokens()], kl_reward=KLTerm(), **KINDS[kind])
    fit(module, tmp_path).save_checkpoint(tmp_path / "c.ckpt", False)
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    names = set(saved["state_dict"])
    assert any(name.startswith("policy.") for name in names) and any(name.startswith(kept) for name in names)
    assert not any(name.startswith("reference.") for name in names)
    assert kind != "adapters" or all("lora_" in name or name == "critic.model.score.weight" for name in names)
    expected = "a head on the policy" if kind == "shared" else module.generator.source.identity()
    assert saved["rlhf"]["identity"]["critic"] == expected


def test_resuming_with_another_critic_is_refused(tmp_path):
    fit(ppo(scorers=[EvenTokens()]), tmp_path).save_checkpoint(tmp_path / "c.ckpt", False)
    with pytest.raises(ConfigError, match=r"checkpoint's critic is .*a head on the policy"):
        trainer(tmp_path, max_epochs=2).fit(
            ppo(shared_backbone=True), datamodule=prompts(), ckpt_path=tmp_path / "c.ckpt", weights_only=True
        )


def test_adapters_share_the_frozen_weights_and_the_reference_is_the_policy_without_them(tmp_path, record):
    module = ppo(scorers=[EvenTokens()], kl_reward=KLTerm(), lora=LoRA(rank=4))
    fit(module, tmp_path, [record], max_epochs=2)
    frozen = {id(p) for p in module.policy.parameters() if not p.requires_grad}
    backbone = {id(p) for p in module.critic.parameters() if not p.requires_grad}
    assert backbone and backbone <= frozen
    trained = [{id(p) for p in part.parameters() if p.requires_grad} for part in (module.policy, module.critic)]
    assert all(trained) and not trained[0] & trained[1]
    assert module.reference.model is None
    assert abs(record.rows[0]["kl/ref_k3_per_token"]) < 1e-8 < record.rows[1]["kl/ref_k3_per_token"]


def test_checkpointed_activations_give_the_same_weights(tmp_path):
    for lora in ({}, {"lora": LoRA(rank=4)}):
        plain, again = (ppo(scorers=[EvenTokens()], gradient_checkpointing=c, **lora) for c in (False, True))
        for module in (plain, again):
            fit(module, tmp_path)
        for name, tensor in weights(plain.critic).items():
            torch.testing.assert_close(weights(again.critic)[name], tensor, atol=1e-5, rtol=0)


def test_one_sample_a_prompt_is_enough_for_a_critic(tmp_path, record):
    module = ppo(scorers=[EvenTokens()], samples_per_prompt=1, prompts_per_rollout=16)
    fit(module, tmp_path, [record], max_epochs=2)
    assert record.rows[1]["advantage/mean"] == pytest.approx(0.0, abs=1e-5)
    assert record.rows[1]["advantage/abs_mean"] > 0.1
    assert record.rows[1]["value/mean"] != 0.0


def test_group_normalized_rewards_come_before_gae(tmp_path):
    seen = []

    class Watching(GAE):
        def __call__(self, rewards):
            seen.append(rewards)
            return super().__call__(rewards)

    module = ppo(scorers=[EvenTokens()], reward_transforms=[GroupNormalize()], advantage=Watching())
    fit(module, tmp_path)
    (given,) = seen
    last = given.mask.sum(1) - 1
    placed = given.values[torch.arange(len(last)), last]
    assert torch.equal(given.values.sum(1), placed)
    groups = placed.view(6, 4)
    torch.testing.assert_close(groups.mean(1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(groups.std(1, correction=0), torch.ones(6), atol=1e-3, rtol=0)
    assert torch.count_nonzero(given.baseline) == 0  # a head of zeros


def test_with_a_critic_of_zeros_it_is_reinforce(tmp_path, record):
    """gamma = lambda = 1 and V = 0: the advantage is the return, so the policy's first update is REINFORCE's."""
    with_critic = ppo(scorers=[EvenTokens()], advantage=GAE(lam=1.0, whiten=False), updates_per_rollout=1)
    without = grpo(scorers=[EvenTokens()], advantage=Reinforce(), updates_per_rollout=1)
    for module in (with_critic, without):
        fit(module, tmp_path, [record])
    assert same(weights(with_critic.policy), weights(without.policy))
    assert record.rows[0]["advantage/mean"] == record.rows[1]["advantage/mean"]


@pytest.fixture
def reward_model(tmp_path):
    source = TinyLlama(hidden=32, layers=2, heads=2)
    model = scalar_model(source.load())
    torch.nn.init.constant_(model.score.weight, 0.05)
    save_reward_model(model, source.tokenizer(), RewardCard(), tmp_path / "rm")
    return tmp_path / "rm"


@pytest.mark.parametrize("kind", [Folder, RewardModelFolder])
def test_a_reward_model_as_critic_keeps_its_head(tmp_path, record, reward_model, kind):
    module = ppo(scorers=[EvenTokens()], critic=kind(str(reward_model)), critic_lr=0.0)
    fit(module, tmp_path, [record])
    assert torch.equal(module.critic.model.score.weight, torch.full((1, 32), 0.05))
    assert record.rows[0]["value/mean"] != 0.0


class FirstIs(RewardTransform):
    """Puts a value in place of the first reward."""

    name = "first_is"

    def __init__(self, value):
        self.value = value

    def __call__(self, rewards):
        values = rewards.values.clone()
        values[0] = self.value
        return Rewards(values, rewards.group_size, rewards.lengths, rewards.finished)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path, record, value, whiten):
    bad = ppo(scorers=[EvenTokens()], reward_transforms=[FirstIs(value)], advantage=GAE(whiten=whiten))
    started: dict = {}
    bad.on_train_start = lambda: started.update(policy=weights(bad.policy), critic=weights(bad.critic))
    fitted = fit(bad, tmp_path, [record])
    assert record.rows[0]["update/skipped"] == 0.5  # the first reward is in the first of two updates
    assert not same(weights(bad.policy), started["policy"])
    assert all(bool(w.isfinite().all()) for part in (bad.policy, bad.critic) for w in weights(part).values())
    assert fitted.global_step == 2


def test_a_skipped_update_changes_nothing(tmp_path):
    bad = ppo(scorers=[EvenTokens()], reward_transforms=[FirstIs(math.nan)], updates_per_rollout=1)
    started: dict = {}
    bad.on_train_start = lambda: started.update(policy=weights(bad.policy), critic=weights(bad.critic))
    fitted = fit(bad, tmp_path)
    assert same(weights(bad.policy), started["policy"]) and same(weights(bad.critic), started["critic"])
    assert not fitted.optimizers[0].state


def test_too_many_in_a_row_end_the_run(tmp_path):
    settings = {"updates_per_rollout": 1, "max_nonfinite_in_a_row": 3}
    bad = ppo(scorers=[EvenTokens()], reward_transforms=[FirstIs(math.nan)], **settings)
    with pytest.raises(NonFiniteError, match="gradient of policy and critic was not finite in 3 updates in a row"):
        fit(bad, tmp_path, max_epochs=5)
    assert bad.rollout_index == 2


@pytest.mark.parametrize("kind", ["own", "shared", "adapters"])
def test_mixed_precision_starts_at_the_values_of_the_rollout(tmp_path, record, kind):
    """Values are those of training steps: a first update that begins elsewhere would already be clipped by a hair."""
    settings = {"updates_per_rollout": 1, "value_loss": ClippedValue(1e-6), "advantage": GAE(lam=1.0)}
    module = ppo(scorers=[EvenTokens()], **settings, **KINDS[kind])
    make = module._make_critic

    def with_a_head():
        critic = make()
        head = critic.head if kind == "shared" else critic.model.score
        torch.nn.init.constant_(head.weight, 0.1)
        return critic

    module._make_critic = with_a_head
    fit(module, tmp_path, [record], precision="bf16-mixed")
    assert record.rows[0]["value/mean"] != 0.0
    assert record.rows[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    assert record.rows[0]["value/clipped"] == 0.0


@pytest.mark.parametrize("rule", ["keep", "mask"])
def test_truncated_responses_can_be_left_out(tmp_path, rule):
    module = ppo(scorers=[EvenTokens()], truncated=rule, prompts_per_rollout=16)
    fit(module, tmp_path)
    eos = module.tokenizer.eos_token_id
    counts, ended = [], []
    for batch in module.cut(module.explore()):
        counts += (batch.weights.sum(1) > 0).tolist()
        ended += (batch.packed.to_rows(batch.packed.targets) == eos).any(1).tolist()
    assert 0 < sum(ended) < 64
    assert counts == (ended if rule == "mask" else [True] * 64)


def critics_own_forward(module, rollout, b):
    """(L + 1,) what the critic's head gives at each token of a response alone, from its prompt's last one on."""
    prompt, length = rollout.prompt_of(b), int(rollout.lengths[b])
    ids = torch.tensor([[*prompt.tokens, *rollout.tokens[b, :length].tolist()]])
    with torch.no_grad():
        hidden = module.critic.model.model(ids).last_hidden_state[0]
        return module.critic.model.score(hidden).squeeze(-1)[len(prompt.tokens) - 1 :]


def test_what_a_limit_cut_off_is_worth_what_the_critic_says(tmp_path, make_reward_model):
    """With γ = 0.5 and λ = 0 a token's target is its reward and half the next value, after the last token too."""
    critic = Folder(str(make_reward_model(tmp_path / "rm", context_length=256)))
    module = ppo(
        scorers=[EvenTokens()], critic=critic, critic_lr=0.0, truncated="bootstrap", advantage=GAE(gamma=0.5, lam=0.0),
        prompts_per_rollout=16, updates_per_rollout=1,
    )  # fmt: skip
    fit(module, tmp_path)
    experience = module.explore()
    rollout = experience.rollout
    assert 0 < int(rollout.finished.sum()) < 64
    for b in range(64):
        values, length = critics_own_forward(module, rollout, b), int(rollout.lengths[b])
        following = torch.cat([values[1:length], values[length:] * ~rollout.finished[b]])
        targets = 0.5 * following
        targets[-1] += experience.rewards[b]
        torch.testing.assert_close(experience.values[b, :length], values[:-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(experience.advantages.returns[b, :length], targets, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["own", "shared", "adapters"])
def test_nothing_follows_responses_that_ended(tmp_path, kind):
    """The same weights and samples under both rules: only what was cut off gets other targets."""
    module = ppo(scorers=[EvenTokens()], prompts_per_rollout=16, **KINDS[kind])
    fit(module, tmp_path)
    kept = module.explore()
    module.truncation = TRUNCATIONS["bootstrap"]
    going_on = module.explore()
    ended = kept.rollout.finished
    assert 0 < ended.sum() < 64
    torch.testing.assert_close(going_on.values, kept.values, atol=1e-6, rtol=0)
    last = kept.rollout.lengths[:, None] - 1
    moved = (going_on.advantages.returns - kept.advantages.returns).gather(1, last).squeeze(1).abs()
    assert moved[ended].max() < 1e-6 < moved[~ended].min()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"advantage": Reinforce()}, "Reinforce gives it no returns.*take gae, or GRPOModule"),
        ({"critic": TinyLlama(), "shared_backbone": True}, "leave critic out"),
        ({"critic_warmup_rollouts": -1}, "critic_warmup_rollouts must not be negative, got -1"),
        ({"value_coefficient": 0.0}, "value_coefficient must be above 0"),
        ({"critic_lr": -1.0}, "critic_lr must not be negative"),
        ({"max_nonfinite_in_a_row": 0}, "max_nonfinite_in_a_row must be at least 1, got 0"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        ppo(**settings)


def test_gae_without_a_critic_is_refused():
    with pytest.raises(ConfigError, match=r"GAE needs the values of a critic.*take PPOModule"):
        grpo(advantage=GAE())


class OtherTokens(TinyLlama):
    def tokenizer(self):
        tokenizer = super().tokenizer()
        tokenizer.add_tokens(["carry"])
        return tokenizer

    def load(self):
        raise AssertionError("a model was loaded")


def test_critic_of_another_vocabulary_is_refused_before_it_loads(tmp_path):
    with pytest.raises(ConfigError, match=r"critic: its tokenizer is not the policy's.*first that differs is 'carry'"):
        fit(ppo(critic=OtherTokens()), tmp_path)


def test_reward_folder_without_head_is_refused(tmp_path):
    source = TinyLlama(hidden=32, layers=1, heads=2)
    source.load().save_pretrained(tmp_path / "lm")
    source.tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(ModelSourceError, match="no scalar head"):
        RewardModelFolder(str(tmp_path / "lm"))


def test_shared_head_is_one_layer(tmp_path):
    module = ppo(scorers=[EvenTokens()], shared_backbone=True)
    fit(module, tmp_path)
    assert isinstance(module.critic, SharedHead)
    assert [tuple(p.shape) for p in module.critic.parameters()] == [(1, 32)]


def test_bootstrapping_without_a_critic_is_refused():
    with pytest.raises(ConfigError, match=r"truncated: bootstrap .* advantage Group does not read: take PPOModule"):
        grpo(truncated="bootstrap")


def test_bootstrapping_needs_room_for_the_last_token(tmp_path):
    longest = max(len(prompt.tokens) for prompt in _bound_prompts())
    for rule, room in {"keep": longest + 7, "bootstrap": longest + 8}.items():
        fit(ppo(scorers=[EvenTokens()], truncated=rule, token_budget=room), tmp_path)
        with pytest.raises(ConfigError, match=f"make it at least {room}"):
            fit(ppo(scorers=[EvenTokens()], truncated=rule, token_budget=room - 1), tmp_path)


def _bound_prompts():
    data = prompts()
    data.bind_tokenizer(TinyLlama().tokenizer(), context_length=256, max_new_tokens=8)
    return data.train_prompts(0, 6)
