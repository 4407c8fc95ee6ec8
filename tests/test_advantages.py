"""Advantage estimators on token rewards worked by hand."""

import pytest
import torch

from reference import advantages as slow
from rlhf_lightning.advantages import GAE, RLOO, Group, GroupCenter, Reinforce
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.types import TokenRewards


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


@pytest.mark.parametrize("estimator", [Group(), GroupCenter(), RLOO()], ids=lambda e: type(e).__name__)
def test_equal_rewards_give_exactly_nothing(estimator):
    values = torch.full((4, 3), 0.1)
    advantages = estimator(TokenRewards(values, torch.ones(4, 3, dtype=torch.bool), group_size=4)).values
    assert torch.count_nonzero(advantages) == 0


@pytest.mark.parametrize("estimator", [Group(), GroupCenter(), RLOO(), Reinforce()], ids=lambda e: type(e).__name__)
def test_padding_changes_nothing(estimator, rewards):
    padded = TokenRewards(
        torch.nn.functional.pad(rewards.values, (0, 2), value=9.0), torch.nn.functional.pad(rewards.mask, (0, 2)), 3
    )
    values = estimator(padded).values
    torch.testing.assert_close(values[:, :3], estimator(rewards).values)
    assert torch.count_nonzero(values[:, 3:]) == 0


def test_group_estimators_say_how_many_samples_they_need():
    assert (Group().min_group_size, RLOO().min_group_size, Reinforce().min_group_size) == (2, 2, 1)


def test_gamma_out_of_range():
    with pytest.raises(ConfigError, match="gamma"):
        Reinforce(gamma=1.5)


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
