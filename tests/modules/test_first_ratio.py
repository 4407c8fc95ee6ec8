"""Before an update's first step the ratio of new to old policy is 1, to the last bit in 16 bits too."""

from functools import partial
from itertools import product

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer

from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import GSPO, Clip, Importance
from rlhf_lightning.models import Folder, LoRA
from rlhf_lightning.models.sources import EMBEDDED
from rlhf_lightning.samplers import InProcessSampler

STILL = partial(torch.optim.AdamW, lr=0.0)
NARROW = partial(Folder, str(EMBEDDED / "arithmetic"), dtype="bfloat16")
WIDE = partial(Folder, str(EMBEDDED / "arithmetic"))
MIXED = {"policy": WIDE, "precision": "bf16-mixed"}
WHOLE = {"policy": NARROW, "train_in_16_bits": True}
ADAPTED = {"policy": NARROW, "lora": LoRA(rank=2)}
KINDS = {"mixed": MIXED, "bf16 weights": WHOLE, "bf16 base": ADAPTED, "mixed lora": {**MIXED, "lora": LoRA(rank=2)}}


def run(tmp_path, make, *, policy=WIDE, precision="32-true", epochs=1, watch=lambda module: None, **changed):
    """A rollout of 24 responses in 2 updates of several micro-batches; what each says of its old numbers, at once."""
    settings = {"policy": policy(), "scorers": [EvenTokens()], "optimizer": STILL, "token_budget": 90}
    if make is ppo:
        settings["critic_lr"] = 0.0
    module = make(**{**settings, **changed})
    gaps = []
    batches = []
    update_loss = module.update_loss

    def watched(batch):
        loss = update_loss(batch)
        batches.append(batch)
        gaps.extend((name, values.detach()) for name, values in loss.tokens.items())
        return loss

    module.update_loss = watched
    record = []
    watch(module)
    fitted = trainer(tmp_path, max_epochs=epochs, precision=precision)
    from lightning.pytorch.callbacks import Callback

    class Rows(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            record.append(dict(pl_module.rollout_metrics))

    fitted.callbacks.append(Rows())
    fitted.fit(module, datamodule=prompts())
    return module, batches, gaps, record


def worst(batches, gaps, name, old):
    seen = [values for label, values in gaps if label == name]
    assert len(seen) == len(batches) >= 4
    return max(
        float((new - getattr(batch, old))[batch.packed.mask].abs().max())
        for new, batch in zip(seen, batches, strict=True)
    )


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", KINDS)
def test_the_ratio_is_exactly_one_in_16_bits(tmp_path, name, checkpointing):
    more = {"gradient_checkpointing": checkpointing, "kl_loss": KLTerm("k3"), "epochs_per_rollout": 2}
    _, batches, gaps, (row,) = run(tmp_path, grpo, **KINDS[name], **more)
    assert worst(batches, gaps, "logprobs", "old_logprobs") == 0.0
    assert worst(batches, gaps, "logprobs", "ref_logprobs") == 0.0
    assert row["ratio/q01"] == row["ratio/q99"] == 1.0 and row["kl/ref_k3_per_token"] == 0.0
    assert row["kl/sampler_k3_per_token"] > 0  # the sampler's are others, and not taken for them


CASES = list(product(["mixed", "bf16 base", "bf16 weights"], ["own", "shared"], ["keep", "bootstrap"]))
QUICK = {("mixed", "own", "bootstrap"), ("mixed", "shared", "keep"), ("bf16 base", "own", "keep")}


@pytest.mark.parametrize(
    ("name", "critic", "truncated"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_old_values_are_exactly_the_new_ones_in_16_bits(tmp_path, name, critic, truncated):
    def grown(module):
        make = module._make_critic

        def with_a_head():
            made = make()
            head = made.head if critic == "shared" else made.model.score
            torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
            return made

        module._make_critic = with_a_head

    more = {"truncated": truncated, "shared_backbone": critic == "shared", "kl_reward": KLTerm("k1")}
    _, batches, gaps, _ = run(tmp_path, ppo, watch=grown, **KINDS[name], **more)
    assert worst(batches, gaps, "logprobs", "old_logprobs") == 0.0
    assert worst(batches, gaps, "values", "old_values") == 0.0
    assert max(float(batch.old_values.abs().max()) for batch in batches) > 0.1


def test_a_policy_that_stands_still_clips_no_sequence_in_16_bits(tmp_path):
    """GSPO's range is some 1e-4 wide: other rows' log-probs fell out of it for more than half of the tokens."""
    _, _, _, (row,) = run(tmp_path, grpo, policy_loss=GSPO(), **MIXED)
    assert row["ratio/clipped_low"] == row["ratio/clipped_high"] == 0.0


def test_later_updates_still_start_from_the_policy_that_the_rollout_began_with(tmp_path):
    moving = partial(torch.optim.AdamW, lr=1e-3)
    _, batches, gaps, _ = run(tmp_path, grpo, optimizer=moving, updates_per_rollout=1, epochs_per_rollout=2, **MIXED)
    new = [values for name, values in gaps if name == "logprobs"]
    half = len(new) // 2
    apart = [float((a - b.old_logprobs)[b.packed.mask].abs().max()) for a, b in zip(new, batches, strict=True)]
    assert max(apart[:half]) == 0.0 and min(apart[half:]) > 0.0
    assert all(torch.equal(a.old_logprobs, b.old_logprobs) for a, b in zip(batches[:half], batches[half:], strict=True))


def test_float32_takes_the_samplers_own_and_is_one_up_to_rounding(tmp_path, monkeypatch):
    from rlhf_lightning.modules import forwards

    monkeypatch.setattr(forwards, "rollout_logprobs", lambda *a, **k: pytest.fail("computed what is known"))
    module, batches, gaps, (row,) = run(tmp_path, grpo)
    assert module.sampler.exact and "kl/sampler_k3_per_token" not in row
    assert worst(batches, gaps, "logprobs", "old_logprobs") < 2e-5


def test_another_type_of_sampler_leaves_the_ratio_exactly_one_in_float32(tmp_path):
    sampler = InProcessSampler(max_new_tokens=8, dtype="bfloat16")
    _, batches, gaps, (row,) = run(tmp_path, grpo, sampler=sampler, policy_loss=Importance(Clip()))
    assert worst(batches, gaps, "logprobs", "old_logprobs") == 0.0
    assert row["kl/sampler_k3_per_token"] > 0


def test_a_sampler_is_exact_only_where_it_is():
    sampler = InProcessSampler(max_new_tokens=8)
    for source, exact in ((WIDE(), True), (NARROW(), False)):
        sampler.bind(source.load(), source.tokenizer())
        assert sampler.exact is exact
