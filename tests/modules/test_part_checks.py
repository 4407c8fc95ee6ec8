"""Parts that undo each other: what is refused truly does nothing, by experiment, and what still acts is let through."""

import logging

import pytest
import torch
from conftest_modules import grpo, ppo, prompts, trainer

from rlhf_lightning.algorithms.advantages import (
    OPO,
    RLOO,
    Group,
    GroupCenter,
    Process,
    Reinforce,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
)
from rlhf_lightning.algorithms.kl import KLTerm
from rlhf_lightning.algorithms.losses import Importance, KLCov
from rlhf_lightning.algorithms.transforms import (
    AsymmetricShrink,
    ClipRewards,
    GroupNormalize,
    LengthPenalty,
    MissingEosPenalty,
    SoftOverlong,
    Whiten,
)
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.labelling.sample import SampleSolutions
from rlhf_lightning.labelling.steps import LabelSteps
from rlhf_lightning.models import TinyLlama
from rlhf_lightning.modules.part_checks import check_steps, check_steps_are_scored
from rlhf_lightning.pipeline import transform
from rlhf_lightning.protocols import RewardTransform
from rlhf_lightning.samplers import DynamicSampler, InProcessSampler
from rlhf_lightning.scorers import RewardModelScorer, VerifierScorer, combine
from rlhf_lightning.testing import check_advantage, check_reward_transform
from rlhf_lightning.types import Rewards, TokenRewards

G = 4
STEPS = [
    ClipRewards(-1, 1),
    ClipRewards(),
    GroupNormalize(),
    Whiten(),
    Whiten(shift_mean=False),
    AsymmetricShrink(),
    LengthPenalty(0.1, free_tokens=3),
]
ESTIMATORS = [
    Group(),
    GroupCenter(),
    RLOO(),
    OPO(),
    Reinforce(),
    ReinforcePlusPlus(),
    ReinforcePlusPlusBaseline(),
]


def advantages(steps, estimator, kl=0.0):
    """Of sixteen responses of different lengths with random rewards, the KL penalty ``kl`` times noise."""
    make = torch.Generator().manual_seed(3)
    lengths = torch.arange(16) % 5 + 2
    scores = torch.randn(16, generator=make) + torch.randn(4, generator=make).repeat_interleave(G)
    finished = torch.arange(16) % 3 > 0
    rewards, _ = transform(steps, Rewards(scores, G, lengths, finished))
    mask = torch.arange(6) < lengths[:, None]
    values = torch.randn(16, 6, generator=make) * mask * kl
    values[torch.arange(16), lengths - 1] += rewards.values
    return estimator(TokenRewards(values, mask, G)).values


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("kl", [0.0, 0.3], ids=["", "kl in the reward"])
def test_a_step_is_refused_where_leaving_it_out_changes_nothing(estimator, kl):
    for number, step in enumerate(STEPS):
        for before in ([], [GroupNormalize()]):
            steps = [*before, step]
            idle = [
                torch.allclose(
                    advantages(steps, estimator, kl), advantages(steps[:i] + steps[i + 1 :], estimator, kl), atol=1e-4
                )
                for i in range(len(steps))
            ]
            try:
                check_steps(steps, estimator, KLTerm() if kl else None, group_size=G)
                refused = ""
            except ConfigError as error:
                refused = str(error)
            # nobody can say before whether all scores will be within a clip's range, or whether groups will be dead:
            # as long as none is, normalized groups have the rollout's mean and deviation at 0 and 1 already
            by_chance = isinstance(step, Whiten) if before else isinstance(step, ClipRewards)
            assert not refused or any(idle) or "bad responses weigh less" in refused, (number, before, refused)
            assert refused or not any(idle) or by_chance, (number, before, idle)


@pytest.mark.parametrize("estimator", [Group(), GroupCenter(), RLOO(), OPO(), ReinforcePlusPlusBaseline()])
@pytest.mark.parametrize("after", [[], [LengthPenalty(), ClipRewards(-2, 2)]], ids=["last", "before others"])
def test_shrinking_is_refused_where_each_group_is_centred_again(estimator, after):
    """However much the bad ones are shrunk, each group's advantages add up to 0: what was to weigh less does not."""
    said = f"asymmetric_shrink makes .* {type(estimator).__name__} after it takes each group's mean off.*reinforce"
    with pytest.raises(ConfigError, match=said):
        grpo(reward_transforms=[ClipRewards(-1, 1), GroupNormalize(), AsymmetricShrink(), *after], advantage=estimator)


def test_shrinking_rewards_of_two_kinds_changes_nothing_before_a_group_estimator():
    rewards = Rewards(torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0]), G, torch.ones(8), torch.ones(8))
    mask = torch.ones(8, 1, dtype=torch.bool)
    shrunk = AsymmetricShrink(0.25)(rewards).values
    plain, after = (Group()(TokenRewards(v[:, None], mask, G)).values for v in (rewards.values, shrunk))
    torch.testing.assert_close(after, plain, atol=1e-5, rtol=0)
    kept = Reinforce()(TokenRewards(shrunk[:, None], mask, G)).values
    assert kept.sum() > 0 == Reinforce()(TokenRewards(rewards.values[:, None] * 0, mask, G)).values.sum()


def test_shrinking_is_for_reinforce_and_after_normalization():
    grpo(reward_transforms=[ClipRewards(-1, 1), GroupNormalize(), AsymmetricShrink()], advantage=Reinforce())
    with pytest.raises(ConfigError, match="group_normalize after it takes each group's mean off"):
        grpo(reward_transforms=[AsymmetricShrink(), GroupNormalize()], advantage=Reinforce())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: ppo(reward_transforms=[GroupNormalize(), AsymmetricShrink()]),
            "weakens that: take advantage: reinforce",
        ),
        (
            lambda: grpo(reward_transforms=[AsymmetricShrink(), Whiten()], advantage=Reinforce()),
            "whiten after it takes the mean off again",
        ),
        (
            lambda: grpo(reward_transforms=[AsymmetricShrink()], advantage=ReinforcePlusPlus()),
            "ReinforcePlusPlus after it takes the mean off again",
        ),
        (lambda: grpo(policy_loss=KLCov(), updates_per_rollout=1), "policy_loss KLCov holds back"),
        (lambda: grpo(policy_loss=Importance(KLCov()), updates_per_rollout=1), "policy_loss Importance holds back"),
        (
            lambda: grpo(sampler=DynamicSampler(), scorers=[RewardModelScorer("no/such/folder")]),
            "sampler DynamicSampler replaces groups",
        ),
        (lambda: grpo(sampler=InProcessSampler(top_k=1)), "top_k is 1"),
        (
            lambda: grpo(reward_transforms=[MissingEosPenalty()], truncated="mask"),
            "missing_eos_penalty acts on responses that were cut off",
        ),
    ],
)
def test_what_is_weakened_is_warned_of(make, said, caplog):
    with caplog.at_level(logging.WARNING):
        make()
    assert said in caplog.text


def test_what_acts_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        grpo(reward_transforms=[ClipRewards(-1, 1), GroupNormalize(), AsymmetricShrink()], advantage=Reinforce())
        grpo(policy_loss=KLCov(), sampler=DynamicSampler(), scorers=[VerifierScorer()])
        grpo(sampler=DynamicSampler(tolerance=0.1), scorers=[RewardModelScorer("no/such/folder")])
        grpo(reward_transforms=[GroupNormalize()], advantage=RLOO(), kl_reward=KLTerm())
        ppo(reward_transforms=[ClipRewards(), GroupNormalize()])
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"reward_transforms": [GroupNormalize()]}, "group_normalize does nothing before advantage Group"),
        ({"reward_transforms": [Whiten()]}, "whiten does nothing before advantage Group"),
        (
            {"reward_transforms": [GroupNormalize(), ClipRewards()], "advantage": Reinforce()},
            r"clip does nothing after.*1\.73",
        ),
        ({"reward_transforms": [LengthPenalty(free_tokens=8)]}, "length_penalty begins beyond 8 tokens.*is 8"),
        ({"reward_transforms": [SoftOverlong(20, 4)]}, "soft_overlong begins beyond 16 tokens"),
        (
            {"reward_transforms": [MissingEosPenalty()], "advantage": Reinforce(), "truncated": "mask"},
            "missing_eos_penalty acts on responses that were cut off.*so it does nothing",
        ),
    ],
)
def test_what_does_nothing_is_refused(parts, said):
    with pytest.raises(ConfigError, match=said):
        grpo(**parts)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_gradient_limit_that_leaves_nothing_is_refused(limit):
    with pytest.raises(ConfigError, match=r"max_grad_norm must be above 0, got .*null is no limit"):
        grpo(max_grad_norm=limit)


def test_lightnings_own_gradient_limit_would_be_passed_over_and_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_clip_val would do nothing.*--model\.max_grad_norm=0\.5"):
        trainer(tmp_path, gradient_clip_val=0.5).fit(grpo(), datamodule=prompts())


def test_scorers_without_any_weight_are_refused():
    with pytest.raises(ConfigError, match="scorer_weights are all 0"):
        grpo(scorers=[VerifierScorer()], scorer_weights=[0.0])


@pytest.mark.parametrize(
    ("job", "more", "said"),
    [(SampleSolutions, {}, "samples is 8"), (LabelSteps, {"demonstrations": 1}, "rollouts is 8")],
)
def test_jobs_that_draw_the_same_several_times_are_refused(job, more, said):
    greedy = InProcessSampler(temperature=0.0)
    task, source = ChainedArithmetic(held_out=4), TinyLlama(hidden=16, layers=1, heads=2)
    with pytest.raises(ConfigError, match=f"{said}, but at the sampler's temperature of 0 all of them are the same"):
        job(source, task, "out.jsonl", sampler=greedy, **more)


def test_step_scores_are_asked_for_before_anything_loads():
    with pytest.raises(ConfigError, match="none of the scorers gives step scores"):
        check_steps_are_scored(Process(), combine([VerifierScorer()]))
    check_steps_are_scored(Group(), combine([VerifierScorer()]))


class Doubled(RewardTransform):
    """A part of somebody else's, which says what it does."""

    name = "doubled"
    only = frozenset({"rollout scale"})

    def __call__(self, rewards):
        return Rewards(rewards.values * 2, rewards.group_size, rewards.lengths, rewards.finished)


class Boasting(Doubled):
    invariant_to = frozenset({"shift"})


class Misnamed(Doubled):
    only = frozenset({"stretch"})


def test_parts_of_other_packages_take_part_and_are_checked():
    with pytest.raises(ConfigError, match="doubled does nothing before advantage Group"):
        grpo(reward_transforms=[Doubled()])
    grpo(reward_transforms=[Doubled()], advantage=RLOO())
    failed = {
        cls: [r.name for r in check_reward_transform(cls) if not r.passed] for cls in (Doubled, Boasting, Misnamed)
    }
    assert failed == {Doubled: [], Boasting: ["declared"], Misnamed: ["declared"]}

    class Wrong(Reinforce):
        invariant_to = frozenset({"rollout shift"})

    assert [result.name for result in check_advantage(Wrong) if not result.passed] == ["declared"]
