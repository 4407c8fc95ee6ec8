"""A small GRPO run whose responses real vLLM draws, and the real small model behind it."""

import sys
from pathlib import Path

import pytest
import torch
from own_forward import SMALL, TOLERANCE, draw, errors

from rlhf_lightning.algorithms.losses import Clip, Importance
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.samplers import InProcessSampler, VLLMSampler

sys.path += [str(Path(__file__).parents[1] / "modules")]

from conftest_modules import EvenTokens, grpo, prompts, trainer
from lightning.pytorch.callbacks import Callback


class Watch(Callback):
    """Each rollout's weights versions, metrics and log-probs, and whether they are the policy's own."""

    def __init__(self):
        self.versions, self.rows, self.worst = [], [], []

    def on_experience(self, trainer, module, experience):
        rollout = experience.rollout
        self.versions.append(rollout.weights_version)
        self.worst.append(float((experience.old_logprobs - rollout.logprobs).abs().max()))

    def on_train_epoch_end(self, trainer, module):
        self.rows.append(dict(module.rollout_metrics))


def run(folder, sampler, loss):
    watch = Watch()
    module = grpo(
        policy=TinyLlama(hidden=64, layers=2, heads=2), sampler=sampler, scorers=[EvenTokens()], policy_loss=loss,
        optimizer=lambda p: torch.optim.AdamW(p, lr=5e-3),
    )  # fmt: skip
    trainer(folder, callbacks=[watch], max_epochs=8).fit(module, datamodule=prompts())
    return watch


def test_a_policy_trains_on_what_vllm_draws(tmp_path):
    sampler = VLLMSampler(max_new_tokens=8, **SMALL)
    try:
        watch = run(tmp_path, sampler, Importance(Clip()))
    finally:
        sampler.close()
    assert watch.versions == list(range(0, 16, 2))  # two updates a rollout
    assert 0 < max(watch.worst) < TOLERANCE  # the weights of now, at another engine's rounding
    for row in watch.rows:
        assert abs(row["kl/sampler_k1_per_token"]) < TOLERANCE
        assert row["importance/weight"] == pytest.approx(1, abs=TOLERANCE)
    ours = run(tmp_path, InProcessSampler(max_new_tokens=8), Clip())
    assert "kl/sampler_k1_per_token" not in ours.rows[0]
    for one in (watch, ours):  # both learn
        rewards = [row["reward/raw_mean"] for row in one.rows]
        assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.1


@pytest.mark.slow
def test_smollm2_draws_and_syncs():
    from rlhf_lightning.models.sources import SmolLM2

    source = SmolLM2()
    model, tokenizer = source.load(), source.tokenizer()
    sampler = VLLMSampler(max_new_tokens=16, max_model_len=256, kv_cache_gb=0.5, eager=True)
    sampler.bind(model, tokenizer)
    try:
        sampler.sync(1)
        first = draw(sampler, tokenizer)
        assert errors(model, first).max() < 5e-4
        with torch.no_grad():  # the head is tied to the embedding
            model.get_input_embeddings().weight.mul_(1.05)
        sampler.sync(2)
        second = draw(sampler, tokenizer)
        assert errors(model, second).max() < 5e-4 < errors(model, first).max()
        assert second.weights_version == 2
    finally:
        sampler.close()
