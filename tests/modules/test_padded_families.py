"""Whole runs on families that do not run packed: SFT, GRPO, PPO, reward models, and what is made of them."""

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer
from lightning.pytorch.callbacks import Callback
from reward_fakes import FakeRewardData
from tests.families import Family, plain_logprobs, write

from rlhf_lightning.algorithms.losses import Importance
from rlhf_lightning.callbacks import RewardModelExport
from rlhf_lightning.data.demonstrations import DemonstrationData
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import LoRA
from rlhf_lightning.models.prepare import skeleton
from rlhf_lightning.models.reward_folder import RewardModelFolder
from rlhf_lightning.models.scalar import scalar_head
from rlhf_lightning.models.scoring import score_groups
from rlhf_lightning.models.sources import Folder
from rlhf_lightning.modules import RewardModel, SFTModule
from rlhf_lightning.scorers import RewardModelScorer

LFM2 = {"layer_types": ["conv", "conv", "full_attention"], "num_hidden_layers": 3}
ALL = [
    "mamba",
    *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gemma2", "falcon_h1", "bloom", "lfm2", "qwen3_next")),
]


def family(kind):
    return Family(kind, **(LFM2 if kind == "lfm2" else {}))


def few(kind, **changed):
    sizes = {"prompts_per_rollout": 2, "samples_per_prompt": 2, "updates_per_rollout": 1, "scorers": [EvenTokens()]}
    return {"policy": family(kind), **sizes, **changed}


class Seen(Callback):
    """The first rollout, and the weights before and after the first update."""

    def on_experience(self, trainer, module, experience):
        self.experience = experience
        self.before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}


def by_plain_forwards(model, rollout):
    """(b, T) log-probs of a rollout's responses, each by the forward of its sequence alone."""
    found = torch.zeros(rollout.mask.shape)
    for i, (tokens, mask) in enumerate(zip(rollout.tokens, rollout.mask, strict=True)):
        response = tokens[mask].tolist()
        prompt = list(rollout.prompts[i // rollout.group_size].tokens)
        found[i, : len(response)] = plain_logprobs(model, prompt, response)
    return found


@pytest.mark.parametrize("kind", ALL)
def test_grpo_takes_the_step_of_plain_forwards(tmp_path, kind):
    """SGD at 1 moves the weights by the gradient of −Σ A·log π / tokens, computed by hand from plain forwards."""
    seen = Seen()
    module = grpo(
        **few(kind, prompts_per_rollout=3, samples_per_prompt=3), max_grad_norm=None,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0), aggregation="token-mean",
    )  # fmt: skip
    trainer(tmp_path, callbacks=[seen]).fit(module, datamodule=prompts())
    rollout, advantages = seen.experience.rollout, seen.experience.advantages.values
    assert advantages.abs().max() > 0.1
    model = family(kind).load()
    want = by_plain_forwards(model, rollout)
    torch.testing.assert_close(rollout.logprobs * rollout.mask, want.detach() * rollout.mask, rtol=0, atol=1e-2)
    (-(advantages * want * rollout.mask).sum() / rollout.mask.sum()).backward()
    after = dict(module.policy.named_parameters())
    moved = torch.cat([(seen.before[name] - after[name]).detach().flatten() for name in after])
    step = torch.cat([
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in dict(model.named_parameters()).values()
    ])  # fmt: skip
    assert (moved - step).norm() <= 2e-2 * step.norm()


KINDS = {
    "adapters, checkpointing": {"lora": LoRA(rank=2), "gradient_checkpointing": True},
    "overlap": {"policy_loss": Importance(), "overlap": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", KINDS)
@pytest.mark.parametrize("kind", ["mamba", "gemma2", "falcon_h1", "bloom", "lfm2"])
def test_grpo_runs(tmp_path, record, kind, way):
    module = grpo(**few(kind, **KINDS[way]))
    trainer(tmp_path, callbacks=[record], max_epochs=2).fit(module, datamodule=prompts())
    assert len(record.rows) == 2 and record.rows[0]["grad_norm/policy"] > 0
    assert record.rows[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-3)
    assert all(row["update/skipped"] == 0 for row in record.rows)


CRITICS = {
    "own": {},
    "shared": {"shared_backbone": True, "value_coefficient": 0.1},
    "adapters": {"lora": LoRA(rank=2), "gradient_checkpointing": True},
}


@pytest.mark.parametrize("critic", ["shared", *(pytest.param(c, marks=pytest.mark.slow) for c in ("own", "adapters"))])
@pytest.mark.parametrize("kind", ALL)
def test_ppo_runs(tmp_path, record, kind, critic):
    module = ppo(**few(kind, **CRITICS[critic]))
    trainer(tmp_path, callbacks=[record], max_epochs=2).fit(module, datamodule=prompts())
    assert record.rows[0]["value/mean"] == 0.0 and record.rows[1]["value/mean"] != 0.0
    assert min(record.rows[0]["grad_norm/critic"], record.rows[0]["grad_norm/policy"]) > 0
    said = module.describe()
    assert ("policy: padded" if critic == "shared" else "policy, critic: padded") in said


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("lora", [None, pytest.param(LoRA(rank=2), marks=pytest.mark.slow)])
def test_a_reward_model_is_trained_written_read_and_drives_a_policy(tmp_path, record, kind, lora):
    trained = RewardModel(
        family(kind), "process", batch_size=4, updates_per_epoch=2, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        lora=lora,
    )  # fmt: skip
    data = FakeRewardData()
    trainer(tmp_path, callbacks=[RewardModelExport(tmp_path)]).fit(trained, datamodule=data)
    assert "reward model: padded" in trained.describe() and scalar_head(trained.model).weight.abs().max() > 1e-3
    groups = data.held_out_groups()[:3]
    read = RewardModelFolder(str(tmp_path / "reward_model"), context_length=256).load()
    for ours, own in zip(*(score_groups(m, groups, process=True, token_budget=400) for m in (trained.model, read)),
                         strict=True):  # fmt: skip
        for one, other in zip(ours, own, strict=True):
            assert one.final == pytest.approx(other.final, abs=1e-3)
            assert list(one.steps) == pytest.approx(list(other.steps), abs=1e-3)
    module = grpo(
        policy=family("llama"), scorers=[RewardModelScorer(str(tmp_path / "reward_model"))],
        prompts_per_rollout=2, samples_per_prompt=2, updates_per_rollout=1,
    )  # fmt: skip
    trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
    assert record.rows[-1]["score/reward_model"] != 0.0
    assert "policy: packed forward\nreward_model: padded forward" in module.describe()


@pytest.mark.parametrize("kind", ALL)
def test_sft_learns_and_the_folder_is_read_again(tmp_path, record, kind):
    from rlhf_lightning.models.export import export_policy

    write(family(kind), tmp_path / "start")
    module = SFTModule(
        Folder(str(tmp_path / "start"), context_length=256), batch_size=4, updates_per_epoch=2,
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3),
    )  # fmt: skip
    data = DemonstrationData(task=ChainedArithmetic(held_out=16))
    trainer(tmp_path, callbacks=[record], max_epochs=2).fit(module, datamodule=data)
    assert "policy: padded" in module.describe()
    export_policy(module.policy, module.tokenizer, tmp_path / "out")
    read = Folder(str(tmp_path / "out"), context_length=256).load()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, module.policy.eval()(ids).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_an_encoder_decoder_is_refused_in_a_line_before_weights(kind):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with pytest.raises(ConfigError, match=f"model type {kind} is no causal language model but an encoder-decoder"):
        skeleton(CONFIG_MAPPING[kind]())
