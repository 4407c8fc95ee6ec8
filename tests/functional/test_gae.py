"""gae and discounted_returns against the double sums of the paper."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from reference import advantages as slow
from rlhf_lightning.functional import discounted_returns, gae

REWARDS = [[0.1, -0.2, 0.0, 1.0], [0.5, 2.0], [-1.0]]
VALUES = [[0.3, 0.1, -0.4, 0.8], [1.0, 0.2], [0.7]]


def padded(rows: list[list[float]], left: int = 0, right: int = 0, fill: float = math.nan) -> torch.Tensor:
    width = max(map(len, rows))
    full = [[fill] * left + row + [fill] * (width - len(row) + right) for row in rows]
    return torch.tensor(full, dtype=torch.float64)


def counted(rows: list[list[float]], left: int = 0, right: int = 0) -> torch.Tensor:
    return ~padded(rows, left, right).isnan()


def flat(rows: list[list[float]]) -> list[float]:
    return [x for row in rows for x in row]


def test_hand_worked_gae():
    # delta = [1 + 0.5·4 - 2, 3 + 0 - 4] = [1, -1]; A = [1 + 0.5·0.5·(-1), -1]; R = A + V
    rewards, values = torch.tensor([[1.0, 3.0, 8.0]]), torch.tensor([[2.0, 4.0, 16.0]])
    result, returns = gae(rewards, values, torch.tensor([[True, True, False]]), gamma=0.5, lam=0.5)
    assert result.tolist() == [[0.75, -1.0, 0.0]]
    assert returns.tolist() == [[2.75, 3.0, 0.0]]


def test_hand_worked_returns():
    result = discounted_returns(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]), gamma=0.5)
    assert result.tolist() == [[3.0, 4.0, 4.0]]


@settings(max_examples=25, derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=7),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gae_is_the_double_sum(pairs: list[tuple[float, float]], gamma: float, lam: float):
    rewards, values = [list(column) for column in zip(*pairs, strict=True)]
    result, returns = gae(padded([rewards]), padded([values]), counted([rewards]), gamma=gamma, lam=lam)
    expected = slow.gae(rewards, values, gamma, lam)
    assert result[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, values, strict=True)], abs=1e-9)


def test_returns_are_the_sums():
    result = discounted_returns(padded(REWARDS), counted(REWARDS), gamma=0.9)
    expected = [slow.discounted_return(row, t, 0.9) for row in REWARDS for t in range(len(row))]
    assert result[counted(REWARDS)].tolist() == pytest.approx(expected)


def test_lambda_zero_is_the_temporal_difference():
    result, _ = gae(padded(REWARDS), padded(VALUES), counted(REWARDS), gamma=0.9, lam=0.0)
    expected = [
        slow.temporal_difference(r, v, t, 0.9) for r, v in zip(REWARDS, VALUES, strict=True) for t in range(len(r))
    ]
    assert result[counted(REWARDS)].tolist() == pytest.approx(expected)


def test_lambda_one_makes_the_returns_the_discounted_returns():
    mask = counted(REWARDS)
    _, returns = gae(padded(REWARDS), padded(VALUES), mask, gamma=0.9, lam=1.0)
    expected = [slow.discounted_return(row, t, 0.9) for row in REWARDS for t in range(len(row))]
    assert returns[mask].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 3), (2, 0), (1, 2)])
def test_padding_changes_nothing(left: int, right: int):
    mask = counted(REWARDS, left, right)
    result, returns = gae(padded(REWARDS, left, right), padded(VALUES, left, right), mask, gamma=0.9, lam=0.8)
    expected = flat([slow.gae(r, v, 0.9, 0.8) for r, v in zip(REWARDS, VALUES, strict=True)])
    assert result[mask].tolist() == pytest.approx(expected)
    assert result[~mask].eq(0).all()
    assert returns[~mask].eq(0).all()


def test_holes_are_stepped_over():
    mask = torch.tensor([[True, False, True, False, False, True, True]])
    rewards, values = torch.full((1, 7), math.nan), torch.full((1, 7), math.nan)
    rewards[mask], values[mask] = torch.tensor(REWARDS[0]), torch.tensor(VALUES[0])
    result, _ = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    assert result[mask].tolist() == pytest.approx(slow.gae(REWARDS[0], VALUES[0], 0.9, 0.8), abs=1e-6)


def test_gradient():
    mask = counted(REWARDS, left=1, right=1)
    rewards = padded(REWARDS, 1, 1, fill=0.5).requires_grad_()
    values = padded(VALUES, 1, 1, fill=0.5).requires_grad_()
    assert gradcheck(lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.8), (rewards, values))
    assert gradcheck(lambda r: discounted_returns(r, mask, gamma=0.9), rewards)


def test_no_tokens_at_all():
    nothing = torch.zeros(2, 0)
    result, returns = gae(nothing, nothing, nothing.bool(), gamma=1.0, lam=1.0)
    assert result.shape == returns.shape == (2, 0)


@pytest.mark.parametrize(("gamma", "lam", "name"), [(1.1, 0.5, "gamma"), (0.5, -0.1, "lam"), (math.nan, 1, "gamma")])
def test_factors_out_of_range_are_refused(gamma: float, lam: float, name: str):
    with pytest.raises(ValueError, match=f"{name} must be in"):
        gae(padded(REWARDS), padded(VALUES), counted(REWARDS), gamma=gamma, lam=lam)


def test_hand_worked_bootstrap():
    # delta = [1 + 0.5·4 - 2, 3 + 0.5·8 - 4] = [1, 3]; A = [1 + 0.5·0.5·3, 3]; R = A + V; the second row's is 0
    rewards, values = torch.tensor([[1.0, 3.0, 9.0]] * 2), torch.tensor([[2.0, 4.0, 16.0]] * 2)
    mask, after = torch.tensor([[True, True, False]] * 2), torch.tensor([8.0, 0.0])
    result, returns = gae(rewards, values, mask, gamma=0.5, lam=0.5, bootstrap=after)
    assert result.tolist() == [[1.75, 3.0, 0.0], [0.75, -1.0, 0.0]]
    assert returns.tolist() == [[3.75, 7.0, 0.0], [2.75, 3.0, 0.0]]


@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 0), (0, 3), (1, 2)])
def test_bootstrap_is_the_double_sum_wherever_padding_stands(left, right):
    after = [2.0, -1.5, 0.3]
    given = [padded(rows, left, right, fill=7.0) for rows in (REWARDS, VALUES)]
    mask = counted(REWARDS, left, right)
    result, _ = gae(*given, mask, gamma=0.9, lam=0.7, bootstrap=torch.tensor(after, dtype=torch.float64))
    for row, found, place in zip(range(3), result, mask, strict=True):
        expected = slow.gae(REWARDS[row], VALUES[row], 0.9, 0.7, after[row])
        assert found[place].tolist() == pytest.approx(expected, abs=1e-12)
        assert not found[~place].any()


def test_no_limit_is_seen_where_the_response_would_have_gone_on():
    """With the value after a limit, the tokens before it get what the whole response gives them up to there (λ = 0)."""
    rewards, values, ones = padded([[0.1, -0.2, 0.0, 1.0]]), padded([[0.3, 0.1, -0.4, 0.8]]), torch.ones(1, 4).bool()
    whole, _ = gae(rewards, values, ones, gamma=0.9, lam=0.0)
    cut, _ = gae(rewards[:, :2], values[:, :2], ones[:, :2], gamma=0.9, lam=0.0, bootstrap=values[:, 2])
    torch.testing.assert_close(cut, whole[:, :2])


def test_gradients_reach_the_bootstrap():
    after = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    rewards, values, mask = padded(REWARDS, fill=0.0), padded(VALUES, fill=0.0), counted(REWARDS)
    assert gradcheck(lambda x: gae(rewards, values, mask, gamma=0.9, lam=0.7, bootstrap=x), (after,))
