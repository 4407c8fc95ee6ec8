"""Advantage estimators on token rewards worked by hand."""

from dataclasses import replace

import pytest
import torch

from reference import advantages as slow
from rlhf_lightning.algorithms.advantages import (
    GAE,
    OPO,
    RLOO,
    Group,
    GroupCenter,
    Process,
    Reinforce,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.types import StepScores, TokenRewards

ZERO_IF_EQUAL = [Group(), GroupCenter(), RLOO(), OPO(), ReinforcePlusPlusBaseline()]
ALL = [*ZERO_IF_EQUAL, Process(), Reinforce(), ReinforcePlusPlus(), ReMax()]


@pytest.fixture
def rewards() -> TokenRewards:
    """One group of three; a KL penalty of 0.5 on the first token of the second sequence."""
    values = torch.tensor([[0.0, 0.0, 3.0], [-0.5, 1.5, 0.0], [2.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    return TokenRewards(values, mask, group_size=3)


def test_group(rewards):
    # sequence rewards 3, 1, 2: mean 2, population variance 2/3
    scale = (2 / 3) ** 0.5
    expected = torch.tensor([[1.0, 1, 1], [-1, -1, 0], [0, 0, 0]]) / scale
    torch.testing.assert_close(Group()(rewards).values, expected, atol=1e-5, rtol=0)


def test_group_center(rewards):
    assert GroupCenter()(rewards).values.tolist() == [[1, 1, 1], [-1, -1, 0], [0, 0, 0]]


def test_rloo(rewards):
    # 3 − (1+2)/2, 1 − (3+2)/2, 2 − (3+1)/2
    assert RLOO()(rewards).values.tolist() == [[1.5, 1.5, 1.5], [-1.5, -1.5, 0], [0, 0, 0]]


def test_reinforce_sums_what_is_to_come(rewards):
    assert Reinforce()(rewards).values.tolist() == [[3, 3, 3], [1, 1.5, 0], [2, 0, 0]]


def test_reinforce_discounts(rewards):
    assert Reinforce(gamma=0.5)(rewards).values.tolist() == [[0.75, 1.5, 3], [0.25, 1.5, 0], [2, 0, 0]]


def test_paper_advantage_is_the_transformed_reward():
    """Paper §3.2: A_t equals r for GRPO, where r is normalized by the transforms."""
    mask = torch.ones(2, 4, dtype=torch.bool)
    values = torch.zeros(2, 4)
    values[:, -1] = torch.tensor([1.0, -0.5])
    assert Reinforce()(TokenRewards(values, mask, 2)).values.tolist() == [[1.0] * 4, [-0.5] * 4]


def test_reinforce_plus_plus_whitens_over_all_tokens(rewards):
    # what is to come: 3 3 3, 1 1.5, 2; mean 13.5/6 = 2.25, variance (3·0.75² + 1.25² + 0.75² + 0.25²)/6 = 3.875/6
    scale = (3.875 / 6) ** 0.5
    expected = torch.tensor([[0.75, 0.75, 0.75], [-1.25, -0.75, 0], [-0.25, 0, 0]]) / scale
    torch.testing.assert_close(ReinforcePlusPlus()(rewards).values, expected, atol=1e-5, rtol=0)


def test_reinforce_plus_plus_baseline_centers_the_group_and_whitens_over_all_tokens(rewards):
    # 1 1 1, -1 -1, 0: mean 1/6, variance 5/6 - 1/36
    scale = (5 / 6 - 1 / 36) ** 0.5
    expected = torch.tensor([[5 / 6, 5 / 6, 5 / 6], [-7 / 6, -7 / 6, 0], [-1 / 6, 0, 0]]) / scale
    torch.testing.assert_close(ReinforcePlusPlusBaseline()(rewards).values, expected, atol=1e-5, rtol=0)


def test_remax_takes_the_greedy_responses_reward_off(rewards):
    compared = replace(rewards, prompt_baseline=torch.tensor([2.0]))
    assert ReMax()(compared).values.tolist() == [[1, 1, 1], [-1, -0.5, 0], [0, 0, 0]]


def test_remax_gives_each_prompt_its_own_baseline():
    values, baseline = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([1.0, 5.0])
    rewards = TokenRewards(values, torch.ones(4, 1, dtype=torch.bool), 2, prompt_baseline=baseline)
    assert ReMax()(rewards).values.tolist() == [[0.0], [1.0], [-2.0], [-1.0]]


def test_remax_says_what_is_missing(rewards):
    with pytest.raises(ValueError, match="prompt_baseline is missing"):
        ReMax()(rewards)


def test_opo_weighs_the_mean_by_length(rewards):
    # rewards 3, 1, 2 of lengths 3, 2, 1: (9 + 2 + 2) / 6
    expected = torch.tensor([[5, 5, 5], [-7, -7, 0], [-1, 0, 0]]) / 6
    torch.testing.assert_close(OPO()(rewards).values, expected)


def test_process_sums_the_steps_that_are_to_end(rewards):
    # steps 1 and 3, 1, 3: mean 2, standard deviation 1; the responses' own rewards are not looked at
    ends = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0]], dtype=torch.bool)
    steps = StepScores(torch.tensor([[1.0, 0, 3], [0, 1, 0], [3, 0, 0]]), ends)
    advantages = Process(eps=0.0)(replace(rewards, steps=steps)).values
    assert advantages.tolist() == [[0, 1, 1], [-1, -1, 0], [1, 0, 0]]


def test_process_needs_step_scores(rewards):
    with pytest.raises(ConfigError, match="advantage process: none of the scorers gives step scores"):
        Process()(rewards)


def test_only_some_read_a_baseline_or_no_rewards():
    assert [type(e) for e in ALL if e.needs_prompt_baseline] == [ReMax]
    assert [type(e) for e in ALL if not e.reads_rewards] == [Process]


@pytest.mark.parametrize("estimator", ZERO_IF_EQUAL, ids=lambda e: type(e).__name__)
def test_equal_rewards_give_exactly_nothing(estimator):
    values = torch.full((4, 3), 0.1)
    advantages = estimator(TokenRewards(values, torch.ones(4, 3, dtype=torch.bool), group_size=4)).values
    assert torch.count_nonzero(advantages) == 0


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_padding_changes_nothing(estimator, rewards):
    pad, baseline = torch.nn.functional.pad, torch.tensor([0.5])
    steps = StepScores(rewards.values, rewards.mask)
    wide = StepScores(pad(rewards.values, (0, 2), value=9.0), pad(rewards.mask, (0, 2)))
    padded = TokenRewards(wide.values, wide.ends, 3, prompt_baseline=baseline, steps=wide)
    values = estimator(padded).values
    given = replace(rewards, prompt_baseline=baseline, steps=steps)
    torch.testing.assert_close(values[:, :3], estimator(given).values)
    assert torch.count_nonzero(values[:, 3:]) == 0


def test_group_estimators_say_how_many_samples_they_need():
    assert {e.min_group_size for e in (Group, RLOO, OPO, Process, ReinforcePlusPlusBaseline)} == {2}
    assert {e.min_group_size for e in (Reinforce, ReinforcePlusPlus, ReMax)} == {1}


def test_gamma_out_of_range():
    with pytest.raises(ConfigError, match="gamma"):
        Reinforce(gamma=1.5)


def test_negative_eps():
    with pytest.raises(ConfigError, match="advantage process: eps must not be negative, got -1"):
        Process(eps=-1)


REWARDS = [[0.1, -0.2, 0.0, 1.0], [0.5, 2.0], [-1.0]]
VALUES = [[0.3, 0.1, -0.4, 0.8], [1.0, 0.2], [0.7]]


def with_values(rewards: list[list[float]], values: list[list[float]]) -> TokenRewards:
    rows = [[row + [9.0] * (4 - len(row)) for row in table] for table in (rewards, values)]
    mask = torch.tensor([[t < len(row) for t in range(4)] for row in rewards])
    return TokenRewards(torch.tensor(rows[0]) * mask, mask, group_size=1, baseline=torch.tensor(rows[1]) * mask)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_slow_loop(gamma, lam):
    given = with_values(REWARDS, VALUES)
    found = GAE(gamma, lam, whiten=False)(given)
    for row, (rewards, values) in enumerate(zip(REWARDS, VALUES, strict=True)):
        expected = slow.gae(rewards, values, gamma, lam)
        assert found.values[row, : len(rewards)].tolist() == pytest.approx(expected, abs=1e-6)
        targets = [a + v for a, v in zip(expected, values, strict=True)]
        assert found.returns[row, : len(rewards)].tolist() == pytest.approx(targets, abs=1e-6)
        assert torch.count_nonzero(found.values[row, len(rewards) :]) == 0


def test_gae_whitens_last_and_leaves_the_returns_alone():
    given = with_values(REWARDS, VALUES)
    plain, whitened = GAE(whiten=False)(given), GAE()(given)
    flat = plain.values[given.mask]
    by_hand = (flat - flat.mean()) / flat.std(correction=0)
    torch.testing.assert_close(whitened.values[given.mask], by_hand, atol=1e-5, rtol=0)
    assert torch.equal(whitened.returns, plain.returns)


def test_gae_goes_on_after_a_limit():
    given, after = with_values(REWARDS, VALUES), [2.0, 0.0, -1.0]
    found = GAE(0.9, 0.7, whiten=False)(replace(given, bootstrap=torch.tensor(after)))
    for row, (rewards, values) in enumerate(zip(REWARDS, VALUES, strict=True)):
        expected = slow.gae(rewards, values, 0.9, 0.7, after[row])
        assert found.values[row, : len(rewards)].tolist() == pytest.approx(expected, abs=1e-6)


def test_gae_of_a_critic_of_zeros_is_reinforce(rewards):
    blind = TokenRewards(rewards.values, rewards.mask, 3, baseline=torch.zeros(3, 3))
    assert torch.equal(GAE(lam=1.0, whiten=False)(blind).values, Reinforce()(rewards).values)


def test_gae_of_a_perfect_critic_is_nothing():
    """Values that are the returns leave no surprise; the targets are the values."""
    given = with_values(REWARDS, [[slow.discounted_return(row, t, 1.0) for t in range(len(row))] for row in REWARDS])
    found = GAE(lam=0.9, whiten=False)(given)
    torch.testing.assert_close(found.values, torch.zeros(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.returns, given.baseline)


@pytest.mark.parametrize(("settings", "word"), [({"gamma": 1.1}, "gamma"), ({"lam": -0.1}, "lam")])
def test_gae_out_of_range(settings, word):
    with pytest.raises(ConfigError, match=f"{word} must be in"):
        GAE(**settings)


def test_gae_without_values():
    with pytest.raises(ConfigError, match="no critic values; it is for PPOModule"):
        GAE()(TokenRewards(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), 1))
