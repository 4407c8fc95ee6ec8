"""The contracts refuse what is wrong, each for its own reason, and accept what is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.protocols import (
    AdvantageEstimator,
    KLController,
    Metric,
    ModelSource,
    PolicyLoss,
    RewardTransform,
    Scorer,
    Task,
)
from rlhf_lightning.samplers import InProcessSampler
from rlhf_lightning.testing import CONTRACTS, ContractError, check_plugin, kind_of, load_target
from rlhf_lightning.types import Advantages, Problem, Scores, StepScores


def broken(cls: type, **kwargs: object) -> dict[str, str]:
    """Reasons by name of the checks that failed."""
    return {r.name: r.why for r in check_plugin(cls, **kwargs).results if not r.passed}


class GoodAdvantage(AdvantageEstimator):
    def __call__(self, rewards):
        return Advantages(rewards.values.sum(1, keepdim=True) * rewards.mask)


class OffMask(GoodAdvantage):
    def __call__(self, rewards):
        return Advantages(rewards.values.sum(1, keepdim=True).expand_as(rewards.values))


class Padded(GoodAdvantage):
    def __call__(self, rewards):
        return Advantages(rewards.values.mean(1, keepdim=True) * rewards.mask)


class Edits(GoodAdvantage):
    def __call__(self, rewards):
        return Advantages(rewards.values.mul_(2))


class Random(GoodAdvantage):
    def __call__(self, rewards):
        return Advantages(torch.rand_like(rewards.values) * rewards.mask)


class Divides(GoodAdvantage):
    def __call__(self, rewards):
        scores = rewards.values.sum(1).view(-1, rewards.group_size)
        return Advantages((scores / scores.std(1, keepdim=True)).view(-1, 1) * rewards.mask)


class Raises(GoodAdvantage):
    def __call__(self, rewards):
        raise KeyError("oops")


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (GoodAdvantage, set()),
        (OffMask, {"mask respected"}),
        (Padded, {"padding changes nothing"}),
        (Edits, {"input not edited"}),
        (Random, {"deterministic", "padding changes nothing"}),
        (Divides, {"smallest group", "equal rewards"}),
        (Raises, set(CONTRACTS["advantage"])),
    ],
)
def test_advantages(cls, failing):
    assert set(broken(cls)) == failing


def test_an_exception_is_the_reason():
    assert broken(Raises)["shape"] == "KeyError: 'oops'"


class GoodTransform(RewardTransform):
    name = "good"

    def __call__(self, rewards):
        return replace(rewards, values=rewards.values + 1)


class Nameless(GoodTransform):
    name = ""


class Forgets(GoodTransform):
    def __call__(self, rewards):
        return replace(rewards, group_size=1)


class Tensors(GoodTransform):
    def __call__(self, rewards):
        return rewards.values


class Bulges(GoodTransform):
    def __call__(self, rewards):
        return replace(rewards, values=rewards.values / (rewards.values - rewards.values.mean()))


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (GoodTransform, set()),
        (Nameless, {"named"}),
        (Forgets, {"the rest is kept"}),
        (Bulges, {"equal rewards"}),
    ],
)
def test_reward_transforms(cls, failing):
    assert set(broken(cls)) == failing


def test_a_transform_must_return_rewards():
    assert broken(Tensors)["shape"] == "returned a Tensor, not Rewards"


class GoodLoss(PolicyLoss):
    def __call__(self, new, batch):
        ratio = torch.exp(new - batch.old_logprobs)
        return -ratio * batch.advantages, {"ratio": ratio.detach()}


class WrongSign(GoodLoss):
    def __call__(self, new, batch):
        loss, diagnostics = super().__call__(new, batch)
        return -loss, diagnostics


class Detached(GoodLoss):
    def __call__(self, new, batch):
        return super().__call__(new.detach(), batch)


class Halfdead(GoodLoss):
    def __call__(self, new, batch):
        return super().__call__(new.where(batch.advantages > 0, new.detach()), batch)


class Keeps(GoodLoss):
    def __call__(self, new, batch):
        loss, _ = super().__call__(new, batch)
        return loss, {"loss": loss}


class Summed(GoodLoss):
    def __call__(self, new, batch):
        loss, diagnostics = super().__call__(new, batch)
        return loss.sum(1), diagnostics


class Marks(GoodLoss):
    def mark(self, old, advantages, mask, *, seed):
        return mask & (advantages > 0)


class MarksPadding(GoodLoss):
    def mark(self, old, advantages, mask, *, seed):
        return advantages <= 0


class MarksByTheMean(GoodLoss):
    def mark(self, old, advantages, mask, *, seed):
        return mask & (old > old.mean())


class MarksAtRandom(GoodLoss):
    def mark(self, old, advantages, mask, *, seed):
        return mask & (torch.rand(mask.shape) < 0.5)


class MarksSequences(GoodLoss):
    def mark(self, old, advantages, mask, *, seed):
        return mask.any(1)


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (GoodLoss, set()),
        (Marks, set()),
        (MarksPadding, {"marks"}),
        (MarksByTheMean, {"marks"}),
        (MarksAtRandom, {"marks"}),
        (MarksSequences, {"marks"}),
        (WrongSign, {"gradient's sign"}),
        (Detached, {"gradient flows", "gradient's sign", "mask respected"}),
        (Halfdead, {"gradient flows"}),
        (Keeps, {"diagnostics are detached"}),
    ],
)
def test_policy_losses(cls, failing):
    assert set(broken(cls)) == failing


def test_a_loss_must_be_per_token():
    assert broken(Summed)["shape"] == "loss has shape (4,), expected (4, 5)"


class GoodController(KLController):
    def __init__(self):
        self.beta = 0.1

    @property
    def value(self):
        return self.beta

    def update(self, kl, n_sequences):
        self.beta *= 1.1 if kl > 1 else 0.9

    def state_dict(self):
        return {"beta": self.beta}

    def load_state_dict(self, state):
        self.beta = state["beta"]


class Backwards(GoodController):
    def update(self, kl, n_sequences):
        self.beta *= 0.9 if kl > 1 else 1.1


class Amnesiac(GoodController):
    def state_dict(self):
        return {"beta": 0.1}


class Runaway(GoodController):
    """Ziegler's step as it is printed: a rollout of more sequences than the horizon ends it."""

    def update(self, kl, n_sequences):
        self.beta *= 1 + min(max(kl / 6 - 1, -0.2), 0.2) * n_sequences / 1000


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (GoodController, set()),
        (Backwards, {"direction"}),
        (Amnesiac, {"resumes"}),
        (Runaway, {"bounded"}),
    ],
)
def test_kl_controllers(cls, failing):
    assert set(broken(cls)) == failing


class GoodScorer(Scorer):
    name = "length"

    def __call__(self, rollout):
        values = rollout.lengths.float()
        return Scores(values, {"length": values}, torch.zeros(len(values), dtype=torch.bool))


class WholeNumbers(GoodScorer):
    def __call__(self, rollout):
        return replace(super().__call__(rollout), values=rollout.lengths)


class OneScore(GoodScorer):
    def __call__(self, rollout):
        return replace(super().__call__(rollout), values=rollout.lengths.float().mean())


@pytest.mark.parametrize(("cls", "failing"), [(GoodScorer, set()), (WholeNumbers, {"shape"}), (OneScore, {"shape"})])
def test_scorers(cls, failing):
    assert set(broken(cls)) == failing


class Steps(GoodScorer):
    def __call__(self, rollout):
        return replace(super().__call__(rollout), steps=StepScores(rollout.mask.float(), rollout.mask))


class StepsOff(GoodScorer):
    def __call__(self, rollout):
        ends = torch.ones_like(rollout.mask)
        return replace(super().__call__(rollout), steps=StepScores(ends.float(), ends))


def test_step_scores():
    assert broken(Steps) == {}
    assert broken(StepsOff) == {"shape": "a step ends off the mask"}


class Refills(InProcessSampler):
    refills = True

    def refill(self, rollout, scores, *, further, score):
        return rollout, scores, {"refill/rounds": 0.0}


class Forgetful(Refills):
    """Replaces the responses and keeps the scores of those before."""

    def refill(self, rollout, scores, *, further, score):
        turned = replace(rollout, mask=rollout.mask.flip(0), tokens=rollout.tokens.flip(0))
        return replace(turned, mask=turned.mask[:, :1], tokens=turned.tokens[:, :1]), replace(scores), {}


class Shrinks(Refills):
    def refill(self, rollout, scores, *, further, score):
        return replace(rollout, prompts=rollout.prompts[:1]), scores, {}


class LogsNothingFinite(Refills):
    def refill(self, rollout, scores, *, further, score):
        return rollout, scores, {"refill/rounds": float("nan")}


def test_samplers_that_refill():
    assert broken(Refills) == {}
    assert broken(Forgetful)["refill"].startswith("scores are not those of the responses")
    assert broken(Shrinks)["refill"] == "1 groups of 4 after refill, there were 2 of 2"
    assert broken(LogsNothingFinite)["refill"] == "not finite: refill/rounds"


class GoodMetric(Metric):
    name = "mean"

    def __call__(self, rollout, scores):
        return float(scores.values.mean())


class TensorMetric(GoodMetric):
    def __call__(self, rollout, scores):
        return scores.values.mean()


def test_metrics():
    assert broken(GoodMetric) == {}
    assert "not a finite number" in broken(TensorMetric)["value"]


class GoodTask(Task):
    name = "sums"
    train, held_out = range(10), range(10, 14)

    def train_problems(self):
        return [Problem(str(n), f"{n}+1=", str(n + 1)) for n in self.train]

    def held_out_problems(self):
        return [Problem(str(n), f"{n}+1=", str(n + 1)) for n in self.held_out]

    def verify(self, problem, response):
        return float(response == problem.answer)


class Overlaps(GoodTask):
    held_out = range(9, 14)


class Shifts(GoodTask):
    starts = iter(range(100, 10_000, 10))

    def held_out_problems(self):
        start = next(self.starts)
        return [Problem(str(n), f"{n}+1=", str(n + 1)) for n in range(start, start + 4)]


class AlwaysRight(GoodTask):
    def verify(self, problem, response):
        return 1.0


@pytest.mark.parametrize(
    ("cls", "failing"),
    [
        (GoodTask, set()),
        (Overlaps, {"training and held-out problems are disjoint"}),
        (Shifts, {"held-out problems are fixed"}),
        (AlwaysRight, {"verifies"}),
    ],
)
def test_tasks(cls, failing):
    assert set(broken(cls)) == failing


class Needy(GoodAdvantage):
    def __init__(self, gamma: float) -> None:
        self.gamma = gamma


def test_arguments_are_asked_for():
    with pytest.raises(ConfigError, match=r"Needy needs arguments \(gamma\)"):
        check_plugin(Needy)
    assert broken(Needy, make=lambda: Needy(gamma=1.0)) == {}


def test_a_class_without_base_is_told_what_to_inherit_from():
    class Loose:
        name = "loose"

        def __call__(self, rewards):
            return replace(rewards, values=rewards.values * 2)

    with pytest.raises(ConfigError, match="inherits from no contract"):
        kind_of(Loose)
    assert set(broken(Loose, kind="reward_transform")) == {"inherits from RewardTransform"}


def test_kinds_are_told_by_the_base():
    assert [kind_of(c) for c in (GoodTask, GoodLoss, ModelSource)] == ["task", "policy_loss", "model_source"]


def test_a_report_can_raise():
    check_plugin(GoodLoss).raise_on_failure()
    with pytest.raises(ContractError, match=r"WrongSign breaks the policy_loss contract: gradient's sign: "):
        check_plugin(WrongSign).raise_on_failure()


def test_targets():
    assert load_target("rlhf_lightning.errors:ConfigError") is ConfigError
    with pytest.raises(ConfigError, match="does not import"):
        load_target("rlhf_lightning.errors:NoSuch")
    with pytest.raises(ConfigError, match="is not a class"):
        load_target("rlhf_lightning.registry:KINDS")
