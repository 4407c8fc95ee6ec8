"""Advantage estimators on token rewards worked by hand."""

import pytest
import torch

from rlhf_lightning.advantages import RLOO, Group, GroupCenter, Reinforce
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
