"""What parts give is looked at where it comes in: the part is named, the number counted, the run's end tells."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from conftest_modules import EvenTokens, grpo, ppo, prompts, trainer

from rlhf_lightning.algorithms.metrics import Means
from rlhf_lightning.border import check_any_succeeded, checked_rollout, checked_scores
from rlhf_lightning.data.tasks.arithmetic import ChainedArithmetic
from rlhf_lightning.errors import ConfigError, PartError
from rlhf_lightning.protocols import AdvantageEstimator, Metric, PolicyLoss, RewardTransform, Scorer
from rlhf_lightning.samplers._choice import choose
from rlhf_lightning.scorers import VerifierScorer, combine
from rlhf_lightning.types import Advantages, Problem, Prompt, Rewards, Rollout, SamplingParams, Scores, StepScores


def rollout(count=4, width=2):
    one = torch.ones(count, width)
    made = tuple(Prompt(Problem(str(i), "q"), "sums", "q", (1,), i) for i in range(count))
    return Rollout(made, one.long(), one.bool(), -one, one[:, 0].bool(), ("x",) * count, SamplingParams())


class Says(Scorer):
    """Gives what it is told to."""

    failure_score = -2.0

    def __init__(self, given, name="odd"):
        self.given, self.name = given, name

    def __call__(self, rollout):
        return self.given(len(rollout.texts)) if callable(self.given) else self.given


def scores(*values, **changed):
    given = torch.tensor(values)
    settings = {"values": given, "parts": {"own": given}, "failed": torch.zeros(len(values), dtype=torch.bool)}
    return Scores(**{**settings, **changed})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "scorer odd gave None, not Scores"),
        ([1.0, 2.0, 3.0, 4.0], "scorer odd gave a list of 4, not Scores"),
        (torch.ones(4), r"scorer odd gave a Tensor of shape \(4,\), not Scores"),
        (scores(1.0, 2.0, 3.0), r"scorer odd gave values of shape \(3,\), not \(4,\)"),
        (scores(1.0, 2.0, 3.0, 4.0, values=[1.0] * 4), "scorer odd gave values as a list of 4, not as a tensor"),
        (scores(1.0, 2.0, 3.0, 4.0, failed=torch.zeros(1).bool()), r"scorer odd gave failed of shape \(1,\)"),
        (scores(1.0, 2.0, 3.0, 4.0, parts={"p": torch.ones(2)}), r"scorer odd gave part 'p' of shape \(2,\)"),
        (scores(1.0, 2.0, 3.0, 4.0, parts=None), "scorer odd gave parts as None, not as a dict"),
        (scores(1.0, 2.0, 3.0, 4.0, values=torch.ones(4) * 1j), "scorer odd gave values as complex numbers"),
        (scores(1.0, 2.0, 3.0, 4.0, values=torch.ones(4, device="meta")), "scorer odd gave values as a tensor on meta"),
        (scores(1.0, 2.0, 3.0, 4.0, values=torch.ones(4).to_sparse()), "scorer odd gave values as torch.sparse_coo"),
        (
            scores(1.0, 2.0, 3.0, 4.0, steps=StepScores(torch.ones(4, 3), torch.ones(4, 3).bool())),
            r"scorer odd gave step scores of shape \(4, 3\), not \(4, 2\)",
        ),
    ],
)
def test_another_kind_of_thing_names_the_scorer(given, said):
    with pytest.raises(PartError, match=said):
        combine([EvenTokens(), Says(given)])(rollout())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_a_failed_one_and_spoils_no_other(value, caplog):
    """2 · (−2) + 1 · 0 for the second, whose score counts as the failure score; a weight of 0 is no way in."""
    mixed = combine([Says(scores(1.0, value, 3.0, 4.0)), Says(scores(0.0, 0.0, 0.0, value), "other")], [2.0, 0.0])
    with caplog.at_level(logging.WARNING):
        found = mixed(rollout())
    assert found.values.tolist() == [2.0, -4.0, 6.0, 8.0]
    assert found.parts["odd"].tolist() == [1.0, -2.0, 3.0, 4.0]
    assert found.failed.tolist() == found.nonfinite.tolist() == [False, True, False, True]
    assert "scorer odd gave" in found.reason and f"{value} as the value" in found.reason
    assert "1 of 4 scores are not finite and count as -2" in caplog.text


def test_step_scores_that_are_not_finite_fail_their_response():
    steps = StepScores(torch.tensor([[1.0, 2.0], [math.nan, 2.0]]), torch.ones(2, 2).bool())
    found = combine([Says(scores(1.0, 2.0, steps=steps))])(rollout(2))
    assert found.steps.values.tolist() == [[1.0, 2.0], [0.0, 0.0]] and found.steps.ends.tolist() == [[1, 1], [0, 0]]
    assert found.values.tolist() == [1.0, -2.0] and found.failed.tolist() == [False, True]


def test_a_part_that_is_only_logged_fails_nothing_but_is_counted():
    found = combine([Says(scores(1.0, 2.0, parts={"aside": torch.tensor([math.nan, 1.0])}))])(rollout(2))
    assert found.values.tolist() == [1.0, 2.0] and found.failed.tolist() == [False, False]
    assert found.nonfinite.tolist() == [True, False] and found.parts["odd/aside"].tolist() == [-2.0, 1.0]


def test_sums_beyond_float32_are_looked_at_too():
    mixed = combine([Says(scores(3e38, 1.0))], [2.0])
    found = checked_scores(mixed, mixed(rollout(2)), rollout(2))
    assert found.values.tolist() == [-4.0, 2.0] and found.failed.tolist() == [True, False]


@pytest.mark.parametrize("weights", [[math.nan], [math.inf]])
def test_weights_and_failure_scores_are_numbers(weights):
    with pytest.raises(ConfigError, match="scorer odd: weight must be a finite number"):
        combine([Says(None)], weights)
    with pytest.raises(ConfigError, match="scorer verifier: failure_score must be a finite number, got nan"):
        combine([VerifierScorer(failure_score=math.nan)])


# ---- logits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {}, {"temperature": 0.5, "top_k": 2}, {"top_p": 0.5}], ids=str
)
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_logits_that_are_not_finite_give_no_probability(odd, settings):
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, odd, 1.0]])
    tokens, probs = choose(logits, torch.tensor([0.3, 0.3]), SamplingParams(**settings))
    assert probs[0] > 0 and math.isnan(probs[1])
    assert 0 <= int(tokens[1]) < 3


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_model_of_nan_weights_ends_with_the_cause(tmp_path, temperature):
    module = grpo()
    load = module.load_trained

    def broken():
        load()
        with torch.no_grad():
            module.policy.lm_head.weight[3] = math.nan

    module.load_trained = broken
    run = trainer(tmp_path)
    with pytest.raises(PartError, match=r"sampler in_process: the model's logits are not finite.*response 0"):
        run.fit(module, prompts()) if temperature else run.validate(module, prompts())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"logprobs": torch.full((4, 2), math.nan)}, "logits are not finite"),
        ({"tokens": torch.full((4, 2), -1)}, "a negative token id"),
        ({"mask": torch.zeros(4, 2).bool()}, "a response without a token"),
        ({"texts": ("x",) * 3}, "3 responses to 4 prompts, not 4 to 4"),
        ({"finished": torch.ones(2).bool()}, r"finished of shape \(2,\)"),
    ],
)
def test_what_samplers_give_is_looked_at(changed, said):
    assert checked_rollout(object(), rollout(), 4, 1).texts == ("x",) * 4
    with pytest.raises(PartError, match=f"sampler Says.*{said}"):
        checked_rollout(Says(None), replace(rollout(), **changed), 4, 1)
    with pytest.raises(PartError, match="sampler Says gave None"):
        checked_rollout(Says(None), None, 4, 1)


# ---- in a run --------------------------------------------------------------------------------------------------------


class OneIsNaN(EvenTokens):
    """As :class:`EvenTokens`, but for the first response of all."""

    failure_score = 0.25

    def __call__(self, rollout):
        found = super().__call__(rollout)
        found.values[0] = math.nan
        return found


@pytest.mark.parametrize("advantage", ["ReinforcePlusPlus", "Group"])
def test_one_nan_of_24_costs_one_response(tmp_path, record, advantage):
    import rlhf_lightning.algorithms.advantages as advantages

    module = grpo(scorers=[OneIsNaN()], advantage=getattr(advantages, advantage)())
    seen = []
    run = trainer(tmp_path, callbacks=[record, _Keep(seen)])
    run.fit(module, prompts())
    row = record.rows[0]
    assert row["update/skipped"] == 0 and row["rollout/nonfinite"] == 0
    assert row["score/failed"] == row["score/nonfinite"] == pytest.approx(1 / 24)
    assert seen[0].rewards[0] == 0.25 and seen[0].advantages.values.isfinite().all()


class _Keep:
    def __new__(cls, seen):
        from lightning.pytorch.callbacks import Callback

        class Keep(Callback):
            def on_experience(self, trainer, pl_module, experience):
                seen.append(experience)

        return Keep()


class Transform(RewardTransform):
    name = "mine"

    def __call__(self, rewards):
        return self.given(rewards)


class Estimator(AdvantageEstimator):
    def __call__(self, rewards):
        return self.given(rewards)


class Loss(PolicyLoss):
    def __call__(self, new, batch):
        return self.given(new)


class Number(Metric):
    name = "mine"

    def __call__(self, rollout, scores):
        return None


def giving(part, given):
    part.given = given
    return part


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"reward_transforms": [giving(Transform(), lambda r: r.values)]}, "reward transform mine gave a Tensor"),
        (
            {"reward_transforms": [giving(Transform(), lambda r: Rewards(r.values[:1], 4, r.lengths, r.finished))]},
            r"reward transform mine gave rewards of shape \(1,\), not \(24,\)",
        ),
        ({"advantage": giving(Estimator(), lambda r: r.values)}, "advantage Estimator gave a Tensor"),
        (
            {"advantage": giving(Estimator(), lambda r: Advantages(r.values[:, :1]))},
            r"advantage Estimator gave advantages of shape \(24, 1\)",
        ),
        ({"policy_loss": giving(Loss(), lambda new: (new.sum(), {}))}, r"loss/policy: Loss gave losses of shape \(\)"),
        ({"policy_loss": giving(Loss(), lambda new: None)}, "loss/policy: Loss gave None, not .losses, diagnostics."),
        ({"policy_loss": giving(Loss(), lambda new: -new)}, "loss/policy: Loss gave a Tensor"),
        ({"policy_loss": giving(Loss(), lambda new: (-new, None))}, "loss/policy: Loss gave a tuple of 2, not"),
        (
            {"policy_loss": giving(Loss(), lambda new: (-new.detach(), {}))},
            "loss/policy: Loss gave .* without a gradient",
        ),
        ({"policy_loss": giving(Loss(), lambda new: (-new, {"x": 1.0}))}, "loss/policy: Loss gave x as a float"),
        ({"metrics": [Number()]}, "metric mine gave None, not a number"),
    ],
)
def test_plug_ins_that_give_another_thing_are_named(tmp_path, changed, said):
    with pytest.raises(PartError, match=said):
        trainer(tmp_path).fit(grpo(scorers=[EvenTokens()], **changed), prompts())


@pytest.mark.parametrize(
    "changed",
    [
        {"reward_transforms": [giving(Transform(), lambda r: replace(r, values=(r.values * 2).long()))]},
        {"reward_transforms": [giving(Transform(), lambda r: replace(r, values=(r.values * 1).requires_grad_()))]},
        {"advantage": giving(Estimator(), lambda r: Advantages((r.values * 2).long()))},
        {"advantage": giving(Estimator(), lambda r: Advantages((r.values * 1).requires_grad_()))},
        {"scorers": [Says(lambda n: scores(*[float(i % 2) for i in range(n)], values=torch.arange(n) % 2))]},
        {"scorers": [Says(lambda n: scores(*[0.0] * n, values=(torch.arange(n) % 2.0).requires_grad_()))]},
    ],
)
def test_whole_numbers_and_numbers_with_a_gradient_are_numbers(tmp_path, changed):
    module = grpo(**{"scorers": [EvenTokens()], **changed})
    trainer(tmp_path).fit(module, prompts())
    assert module.trainer.callback_metrics["update/skipped"] == 0


def spoiled(values):
    return values.index_fill(0, torch.tensor([0]), math.nan)


@pytest.mark.parametrize(
    ("changed", "said", "odd"),
    [
        (
            {"reward_transforms": [giving(Transform(), lambda r: replace(r, values=spoiled(r.values)))]},
            "reward transform mine gave rewards that are not finite: 1 of 24, first nan",
            None,
        ),
        (
            {"advantage": giving(Estimator(), lambda r: Advantages(spoiled(r.values)))},
            "advantage Estimator gave advantages that are not finite",
            None,
        ),
        ({"policy_loss": giving(Loss(), lambda new: (new * math.nan, {}))}, "loss/policy was not finite on", 0.0),
    ],
)
def test_plug_ins_that_give_nan_are_named_and_counted(tmp_path, record, caplog, changed, said, odd):
    module = grpo(scorers=[EvenTokens()], **changed)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, callbacks=[record]).fit(module, prompts())
    assert said in caplog.text
    assert record.rows[0]["update/skipped"] in (0.5, 1.0)
    found = record.rows[0]["rollout/nonfinite"]
    assert found == odd if odd is not None else found > 0
    assert "the gradient of policy is not finite" in caplog.text


def test_a_critic_that_gives_nan_is_named(tmp_path, record, caplog):
    module = ppo(scorers=[EvenTokens()])
    load = module.load_trained

    def broken():
        load()
        with torch.no_grad():
            module.value_model.root.score.weight[0, 0] = math.inf

    module.load_trained = broken
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, callbacks=[record]).fit(module, prompts())
    assert "critic gave values that are not finite" in caplog.text and record.rows[0]["rollout/nonfinite"] > 0


# ---- nothing but failures --------------------------------------------------------------------------------------------


class Raises(ChainedArithmetic):
    """A verifier that always fails, in the way it is told to."""

    trusted_fast = True

    def __init__(self, error, **settings):
        super().__init__(**settings)
        self.error = error

    def verify(self, problem, response):
        raise self.error


def test_a_first_rollout_in_which_all_failed_ends_the_run_with_the_cause(tmp_path):
    from rlhf_lightning.data.prompts import PromptData

    data = PromptData(task=Raises(ModuleNotFoundError("No module named 'sums'"), held_out=16))
    with pytest.raises(PartError, match=r"every one of the first rollout's 24 scores failed.*No module named 'sums'"):
        trainer(tmp_path).fit(grpo(), data)


def test_a_configuration_error_of_a_verifier_ends_the_run(tmp_path):
    from rlhf_lightning.data.prompts import PromptData

    data = PromptData(task=Raises(ConfigError("math-verify is not installed"), held_out=16))
    with pytest.raises(ConfigError, match="task chained_arithmetic: math-verify is not installed"):
        trainer(tmp_path).fit(grpo(), data)


def test_one_that_did_not_fail_is_enough():
    check_any_succeeded(scores(0.0, 0.0, failed=torch.tensor([True, False])))
    with pytest.raises(PartError, match="its scorer gave no reason"):
        check_any_succeeded(scores(0.0, failed=torch.tensor([True])))


def test_means_of_what_is_logged_stay_numbers():
    """A NaN among a loss's diagnostics is left out of the mean by torchmetrics: the count says that it was there."""
    means = Means()
    means.over_tokens({"x": torch.tensor([[1.0, math.nan]])}, torch.ones(1, 2).bool())
    assert means.pop()["x"] == 1.0
