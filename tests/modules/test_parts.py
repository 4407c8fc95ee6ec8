"""Every estimator, loss and sampler in a whole small run: it trains, and logs what it promises."""

import math

import pytest
import torch
from conftest_modules import grpo, prompts, trainer

from rlhf_lightning.algorithms.advantages import (
    OPO,
    Group,
    Process,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)
from rlhf_lightning.algorithms.kl import Fixed, KLTerm
from rlhf_lightning.algorithms.losses import CISPO, GSPO, Clip, ClipCov, Importance, KLCov
from rlhf_lightning.algorithms.transforms import GroupNormalize, SoftOverlong, Whiten
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.protocols import Scorer
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler
from rlhf_lightning.types import Scores, StepScores


class EvenSteps(Scorer):
    """Share of even token ids; every second token ends a step, whose score is whether it is even."""

    name = "even"

    def __call__(self, rollout):
        even = ((rollout.tokens % 2 == 0) & rollout.mask).float()
        values = even.sum(1) / rollout.lengths
        ends = rollout.mask & (torch.arange(rollout.mask.shape[1]) % 2 == 1)
        return Scores(
            values, {"even": values}, torch.zeros(len(values), dtype=torch.bool), StepScores(even * ends, ends)
        )


class FirstEven(Scorer):
    """1 where the first token is even: about half of all groups of two agree."""

    name = "first"

    def __call__(self, rollout):
        values = (rollout.tokens[:, 0] % 2 == 0).float()
        return Scores(values, {"first": values}, torch.zeros(len(values), dtype=torch.bool))


PARTS = {
    "reinforce_plus_plus": {"advantage": ReinforcePlusPlus(), "kl_reward": KLTerm("k1", Fixed(0.01))},
    "reinforce_plus_plus_baseline": {"advantage": ReinforcePlusPlusBaseline(), "kl_loss": KLTerm("k2", Fixed(0.01))},
    "remax": {"advantage": ReMax(), "samples_per_prompt": 1, "prompts_per_rollout": 12},
    "opo": {"advantage": OPO()},
    "process": {"advantage": Process()},
    "gspo": {"policy_loss": GSPO(), "aggregation": "seq-mean-token-mean"},
    "cispo": {"policy_loss": CISPO()},
    "clip_cov": {"policy_loss": ClipCov(share=0.1, cov_low=0.0)},
    "kl_cov": {"policy_loss": KLCov(share=0.1)},
    "importance": {"policy_loss": Importance(Clip()), "sampler": InProcessSampler(max_new_tokens=8, dtype="bfloat16")},
    "soft_overlong": {"reward_transforms": [SoftOverlong(max_length=8, buffer=4)]},
    "dynamic": {"sampler": DynamicSampler(InProcessSampler(max_new_tokens=8), max_rounds=2)},
}


def fitted(tmp_path, record, rollouts=2, **parts):
    module = grpo(**{"scorers": [EvenSteps()], **parts})
    trainer(tmp_path, callbacks=[record], max_epochs=rollouts).fit(module, datamodule=prompts())
    return module, record.rows


@pytest.mark.parametrize("name", PARTS)
def test_it_trains(tmp_path, record, name):
    module, rows = fitted(tmp_path, record, **PARTS[name])
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["advantage/abs_mean"] > 0 and rows[0]["grad_norm/policy"] > 0
    before = grpo().generator.source.load().state_dict()
    moved = [key for key, weight in module.policy.state_dict().items() if not torch.equal(weight, before[key])]
    assert len(moved) > 10


def test_the_first_update_of_gspo_starts_at_ratio_one(tmp_path, record):
    _, (row,) = fitted(tmp_path, record, 1, policy_loss=GSPO(), updates_per_rollout=1)
    assert row["ratio/mean"] == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "plan"),
    [
        (ClipCov(share=0.25, cov_low=-99.0, cov_high=99.0), {}),
        (KLCov(share=0.25), {"updates_per_rollout": 1}),  # a later update's rounding may change who is at the limit
    ],
)
def test_a_share_of_the_tokens_is_marked_whatever_the_token_budget(tmp_path, record, loss, plan):
    weights = {}
    for budget in (100_000, 60):
        module, rows = fitted(tmp_path, record, 1, policy_loss=loss, token_budget=budget, **plan)
        assert 0.2 < rows[-1]["covariance/marked"] <= 0.25
        weights[budget] = module.policy.state_dict()
    assert record.rows[0]["covariance/marked"] == record.rows[1]["covariance/marked"]
    for name, tensor in weights[60].items():
        # Adam's first step blows rounding up where a gradient is nearly 0; other marks differ by several 1e-3
        torch.testing.assert_close(tensor, weights[100_000][name], atol=1e-4, rtol=0)


def test_importance_measures_a_sampler_of_another_dtype(tmp_path, record):
    _, rows = fitted(tmp_path, record, **PARTS["importance"])
    for row in rows:
        assert row["importance/token_ratio_min"] < 1 < row["importance/token_ratio_max"]
        assert 0.9 < row["importance/sequence_effective_share"] < 1
        assert row["importance/weight"] == pytest.approx(1.0, abs=0.05)
        assert row["ratio/mean"] == pytest.approx(1.0, abs=0.1)


def test_importance_does_nothing_to_an_exact_sampler(tmp_path, record):
    plain, _ = fitted(tmp_path, record, 1)
    weighted, rows = fitted(tmp_path, record, 1, policy_loss=Importance(Clip(), level="sequence"))
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(weighted.policy.state_dict()[name], tensor)
    assert rows[-1]["importance/weight"] == 1.0 and rows[-1]["importance/cut"] == 0.0
    assert "importance/token_ratio_max" not in rows[-1]


def test_remax_compares_with_the_greedy_response(tmp_path, record):
    """A sampler that is greedy itself has nothing to gain over it."""
    _, (row,) = fitted(tmp_path, record, 1, advantage=ReMax(), sampler=InProcessSampler(max_new_tokens=8, top_k=1))
    assert row["advantage/abs_mean"] == 0.0
    assert "time/baseline" in row


def test_dynamic_sampling_leaves_fewer_dead_groups(tmp_path, record):
    settings = {"scorers": [FirstEven()], "prompts_per_rollout": 12, "samples_per_prompt": 2}
    fitted(tmp_path, record, 1, **settings)
    fitted(tmp_path, record, 1, sampler=PARTS["dynamic"]["sampler"], **settings)
    plain, dynamic = record.rows
    assert plain["reward/dead_groups"] * 12 == pytest.approx(dynamic["refill/dead_before"])
    assert dynamic["reward/dead_groups"] * 12 == pytest.approx(dynamic["refill/dead_after"])
    assert 0 <= dynamic["refill/dead_after"] < dynamic["refill/dead_before"]
    assert dynamic["refill/replaced"] == dynamic["refill/dead_before"] - dynamic["refill/dead_after"]
    assert dynamic["refill/prompts"] >= dynamic["refill/replaced"]


@pytest.mark.parametrize("name", ["dynamic", "clip_cov"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, record, name):
    def fresh():
        return grpo(scorers=[FirstEven()], samples_per_prompt=2, **PARTS[name])

    whole = fresh()
    trainer(tmp_path, callbacks=[record], max_epochs=3).fit(whole, datamodule=prompts())
    half = trainer(tmp_path, max_epochs=2)
    half.fit(fresh(), datamodule=prompts())
    half.save_checkpoint(tmp_path / "c.ckpt", False)
    resumed = fresh()
    again = trainer(tmp_path, callbacks=[record], max_epochs=3)
    again.fit(resumed, datamodule=prompts(), ckpt_path=tmp_path / "c.ckpt", weights_only=True)
    for key, tensor in whole.policy.state_dict().items():
        assert torch.equal(resumed.policy.state_dict()[key], tensor)
    counted = [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/"))} for row in record.rows]
    assert counted[2] == counted[3]
    assert any(row.get("refill/replaced") or row.get("covariance/marked") for row in counted)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"advantage": OPO(), "samples_per_prompt": 1}, r"samples_per_prompt is 1.*OPO.*at least 2"),
        ({"sampler": DynamicSampler(), "samples_per_prompt": 1, "advantage": ReMax()}, "DynamicSampler.*at least 2"),
        ({"advantage": Process(), "kl_reward": KLTerm()}, "Process reads step scores alone, so kl_reward would do"),
        ({"advantage": Process(), "reward_transforms": [Whiten()]}, "so reward_transforms would do nothing"),
        ({"advantage": ReMax(), "reward_transforms": [GroupNormalize()]}, "ReMax compares.*GroupNormalize would"),
        ({"advantage": ReMax(), "reward_transforms": [Whiten()]}, "Whiten would shift"),
        ({"kl_loss": KLTerm("k1")}, "gradient of k1 is 0 in the mean.*take k3 or k2"),
        ({"sampler": InProcessSampler(temperature=0.0)}, "temperature is 0.0, but a policy trains on samples"),
    ],
)
def test_parts_that_do_not_go_together_are_refused_before_anything_loads(parts, said):
    with pytest.raises(ConfigError, match=said):
        grpo(**parts)


@pytest.mark.parametrize("temperature", [0.0, math.nan])
@pytest.mark.parametrize("wrap", [lambda sampler: sampler, DynamicSampler])
def test_a_greedy_sampler_is_refused_before_anything_loads(wrap, temperature):
    sampler = wrap(InProcessSampler(max_new_tokens=8))
    object.__setattr__(sampler.params, "temperature", temperature)
    with pytest.raises(ConfigError, match=f"temperature is {temperature}, but a policy trains on samples"):
        grpo(sampler=sampler)


def test_process_without_step_scores_is_an_error_that_says_so(tmp_path):
    with pytest.raises(ConfigError, match="none of the scorers gives step scores"):
        trainer(tmp_path).fit(grpo(advantage=Process(), scorers=[FirstEven()]), datamodule=prompts())


def test_group_estimators_take_the_same_rollout(tmp_path, record):
    """The estimator changes the advantages, not what is drawn."""
    for advantage in (Group(), OPO()):
        fitted(tmp_path, record, 1, advantage=advantage)
    assert record.rows[0]["score/even"] == record.rows[1]["score/even"]
    assert record.rows[0]["advantage/abs_mean"] != record.rows[1]["advantage/abs_mean"]


def test_the_first_update_moves_nothing_and_later_ones_are_seen_in_the_ratios(tmp_path, record):
    """One update: all ratios are 1. Two passes of two: three of four steps start from moved weights."""
    trainer(tmp_path, callbacks=[record]).fit(grpo(scorers=[EvenSteps()], updates_per_rollout=1), datamodule=prompts())
    slow = record.rows[0]
    assert slow["ratio/q01"] == pytest.approx(1, abs=1e-5) and slow["ratio/q99"] == pytest.approx(1, abs=1e-5)
    assert abs(slow["kl/old_k3_per_token"]) < 1e-8
    trainer(tmp_path, callbacks=[record]).fit(grpo(scorers=[EvenSteps()], epochs_per_rollout=2), datamodule=prompts())
    fast = record.rows[1]
    assert fast["ratio/q01"] < 0.999 and fast["ratio/q99"] > 1.001 and fast["ratio/q50"] == pytest.approx(1, abs=0.05)
    assert fast["kl/old_k3_per_token"] > 1e-8


def test_entropy_is_that_of_the_whole_distribution(tmp_path, record):
    """A policy whose head is 0 draws evenly: log V nats a token."""
    module = grpo(scorers=[EvenSteps()], measure_entropy=True)
    module.generator.source = _Even()
    trainer(tmp_path, callbacks=[record]).fit(module, datamodule=prompts())
    vocabulary = module.policy.config.vocab_size
    assert record.rows[0]["policy/entropy"] == pytest.approx(math.log(vocabulary), abs=1e-4)


class _Even(TinyLlama):
    def __init__(self):
        super().__init__(hidden=32, layers=2, heads=2)

    def load(self):
        model = super().load()
        with torch.no_grad():
            model.get_output_embeddings().weight.zero_()
        return model
