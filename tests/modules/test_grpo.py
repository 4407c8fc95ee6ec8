"""GRPOModule inside Lightning: what a rollout logs, what an update does, what a checkpoint holds."""

import dataclasses

import pytest
import torch
from conftest_modules import EvenTokens, grpo, prompts, trainer

from rlhf_lightning.algorithms.advantages import Reinforce
from rlhf_lightning.algorithms.kl import Adaptive, Fixed, KLTerm
from rlhf_lightning.algorithms.transforms import AsymmetricShrink, ClipRewards, GroupNormalize
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import EmbeddedArithmetic, LoRA
from rlhf_lightning.samplers import InProcessSampler

FAST = {
    "prompts_per_rollout": 16,
    "updates_per_rollout": 4,
    "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2),
}


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.policy.state_dict().items()}


def test_first_update_starts_at_ratio_one(tmp_path, record):
    module = grpo(updates_per_rollout=1, scorers=[EvenTokens()])
    trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
    assert record.rows[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-5)
    assert record.rows[0]["ratio/clipped_low"] == record.rows[0]["ratio/clipped_high"] == 0.0


def test_policy_learns_a_reward_it_can_raise(tmp_path, record):
    module = grpo(scorers=[EvenTokens()], **FAST)
    trainer(tmp_path, callbacks=[record], max_epochs=15).fit(module, datamodule=prompts())
    first, last = record.rows[0]["score/even"], record.rows[-1]["score/even"]
    assert 0.4 < first < 0.6 and last > 0.8


@pytest.mark.parametrize("budget", [40, 120])
def test_weights_do_not_depend_on_the_token_budget(tmp_path, budget):
    whole, cut = (grpo(scorers=[EvenTokens()], token_budget=b) for b in (100_000, budget))
    for module in (whole, cut):
        trainer(tmp_path).fit(module, datamodule=prompts())
    for name, tensor in weights_of(whole).items():
        # A step of Adam is 1e-3 whatever the gradient: where that is near zero, a tenth of a step is rounding.
        torch.testing.assert_close(weights_of(cut)[name], tensor, atol=1e-4, rtol=0)


def test_number_of_optimizer_steps_is_the_plans(tmp_path):
    module = grpo(scorers=[EvenTokens()], updates_per_rollout=3, epochs_per_rollout=2, token_budget=60)
    fitted = trainer(tmp_path, max_epochs=2)
    fitted.fit(module, datamodule=prompts())
    assert fitted.global_step == 2 * 3 * 2
    assert module.prompts_seen == 12


def test_the_papers_recipe_is_logged_step_by_step(tmp_path, record):
    recipe = [ClipRewards(-0.5, 0.5), GroupNormalize(), AsymmetricShrink(0.5)]
    module = grpo(scorers=[EvenTokens()], reward_transforms=recipe, advantage=Reinforce())
    trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
    row = record.rows[0]
    assert row["reward/after_clip_mean"] <= 0.5
    assert row["reward/after_group_normalize_mean"] == pytest.approx(0.0, abs=1e-5)
    assert row["reward/after_asymmetric_shrink_mean"] > row["reward/after_group_normalize_mean"]


def test_kl_is_zero_at_the_start_and_grows(tmp_path, record):
    module = grpo(scorers=[EvenTokens()], kl_loss=KLTerm("k3", Fixed(0.1)))
    trainer(tmp_path, callbacks=[record], max_epochs=3).fit(module, datamodule=prompts())
    measured = [row["kl/ref_k3_per_token"] for row in record.rows]
    assert abs(measured[0]) < 1e-8 < measured[1] < measured[2]
    assert all(row["kl/beta_loss"] == 0.1 for row in record.rows)


def test_kl_in_the_reward_comes_off_the_token_rewards(tmp_path, record):
    """With a huge beta and k1, the policy is pulled back to the reference instead of towards the reward."""
    free = grpo(scorers=[EvenTokens()], **FAST)
    held = grpo(scorers=[EvenTokens()], kl_reward=KLTerm("k1", Fixed(100.0)), **FAST)
    moved = {}
    for name, module in {"free": free, "held": held}.items():
        trainer(tmp_path, callbacks=[record], max_epochs=10).fit(module, datamodule=prompts())
        moved[name] = record.rows[-1]["score/even"]
    assert moved["held"] < 0.65 < moved["free"]


def test_adaptive_beta_is_kept_in_the_checkpoint(tmp_path):
    module = grpo(scorers=[EvenTokens()], kl_loss=KLTerm("k3", Adaptive(0.1, target=1e-6, horizon=10)))
    fitted = trainer(tmp_path, max_epochs=2)
    fitted.fit(module, datamodule=prompts())
    fitted.save_checkpoint(tmp_path / "c.ckpt", False)
    again = grpo(scorers=[EvenTokens()], kl_loss=KLTerm("k3", Adaptive(0.1, target=1e-6, horizon=10)))
    trainer(tmp_path, max_epochs=2).fit(again, datamodule=prompts(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    assert again.kl.loss.beta == module.kl.loss.beta != 0.1


def test_checkpoint_holds_no_frozen_model_and_loads_without_pickle(tmp_path):
    module = grpo(scorers=[EvenTokens()], kl_loss=KLTerm())
    fitted = trainer(tmp_path)
    fitted.fit(module, datamodule=prompts())
    fitted.save_checkpoint(tmp_path / "c.ckpt", False)
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert module.reference.model is not None
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"policy"}
    assert saved["rlhf"]["rollout_index"] == 1


def test_lora_checkpoint_holds_adapters_only(tmp_path, record):
    module = grpo(scorers=[EvenTokens()], kl_loss=KLTerm(), lora=LoRA(rank=2))
    fitted = trainer(tmp_path, callbacks=[record], max_epochs=2)
    fitted.fit(module, datamodule=prompts())
    fitted.save_checkpoint(tmp_path / "c.ckpt", False)
    saved = torch.load(tmp_path / "c.ckpt", weights_only=True)["state_dict"]
    assert saved and all("lora_" in name for name in saved)
    assert module.reference.model is None
    assert abs(record.rows[0]["kl/ref_k3_per_token"]) < 1e-8 < record.rows[1]["kl/ref_k3_per_token"]


def test_decoding_at_another_precision_recomputes_the_old_logprobs(tmp_path, record):
    sampler = InProcessSampler(max_new_tokens=8, dtype="bfloat16")
    module = grpo(scorers=[EvenTokens()], updates_per_rollout=1, sampler=sampler)
    trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
    assert not sampler.exact
    assert record.rows[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-6)


def test_mixed_precision_starts_at_ratio_one(tmp_path, record):
    """The update runs under autocast, the sampler does not: its log-probs are not taken for the old ones."""
    module = grpo(scorers=[EvenTokens()], updates_per_rollout=1, kl_loss=KLTerm())
    trainer(tmp_path, callbacks=[record], precision="bf16-mixed").fit(module, datamodule=prompts())
    assert module.sampler.exact
    assert record.rows[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    assert abs(record.rows[0]["kl/ref_k3_per_token"]) < 1e-8


def test_resuming_with_another_seed_is_refused(tmp_path):
    module = grpo(scorers=[EvenTokens()])
    fitted = trainer(tmp_path)
    fitted.fit(module, datamodule=prompts())
    fitted.save_checkpoint(tmp_path / "c.ckpt", False)
    with pytest.raises(ConfigError, match=r"seed is 1, but this run's is 2"):
        trainer(tmp_path, max_epochs=2).fit(
            grpo(seed=2), datamodule=prompts(), ckpt_path=tmp_path / "c.ckpt", weights_only=True
        )


def test_weights_that_the_sampler_does_not_have_are_an_error(tmp_path):
    class Stale(InProcessSampler):
        def __call__(self, *args, **kwargs):
            return dataclasses.replace(super().__call__(*args, **kwargs), weights_version=-1)

    module = grpo(scorers=[EvenTokens()], sampler=Stale(max_new_tokens=8))
    with pytest.raises(RuntimeError, match="version -1, but the policy is at version 0"):
        trainer(tmp_path).fit(module, datamodule=prompts())


def test_validate_measures_the_embedded_policy(tmp_path):
    module = grpo(policy=EmbeddedArithmetic(), sampler=InProcessSampler(max_new_tokens=16))
    (measured,) = trainer(tmp_path).validate(module, datamodule=prompts(), verbose=False)
    assert 0.05 < measured["held_out/accuracy"] < 0.8
    assert measured["held_out/truncated"] == 0.0


def test_predict_gives_one_response_a_prompt(tmp_path):
    module = grpo(policy=EmbeddedArithmetic(), sampler=InProcessSampler(max_new_tokens=16))
    batches = trainer(tmp_path).predict(module, datamodule=prompts())
    answers = [answer for batch in batches for answer in batch]
    assert len(answers) == 16
    assert all(a["prompt"].endswith("=") and "\n=" in a["response"] for a in answers)


def test_one_sample_with_group_advantages_is_refused_before_anything_loads():
    with pytest.raises(ConfigError, match=r"samples_per_prompt is 1.*Group.*at least 2"):
        grpo(samples_per_prompt=1)
