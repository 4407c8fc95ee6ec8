"""best_of_n and pass_at_n."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import best_of_n as slow
from rlhf_lightning.functional import best_of_n, pass_at_n

POOLS = st.integers(1, 7).flatmap(
    lambda k: st.tuples(
        st.lists(st.integers(0, 3).map(float), min_size=k, max_size=k),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k),
    )
)


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_hand_worked_values():
    # subsets of two: {.1,.5} -> right, {.1,.9} -> wrong, {.5,.9} -> wrong; then a tie of a right and a wrong one
    scores, correct = tensor([0.5, 0.1, 0.9], [2.0, 2.0, 1.0]), tensor([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert best_of_n(scores, correct, n=2).tolist() == pytest.approx([1 / 3, (0.5 + 1 + 0) / 3])
    assert pass_at_n(correct, n=2).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert pass_at_n(tensor([1, 1, 0, 0, 0]), n=3).tolist() == pytest.approx([1 - 1 / 10])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(POOLS)
def test_they_are_the_mean_over_all_subsets(pool: tuple[list[float], list[float]]):
    scores, correct = pool
    for n in range(1, len(scores) + 1):
        assert best_of_n(tensor(scores), tensor(correct), n=n).item() == pytest.approx(
            slow.best_of_n(scores, correct, n), abs=1e-12
        )
        assert pass_at_n(tensor(correct), n=n).item() == pytest.approx(slow.pass_at_n(correct, n), abs=1e-12)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(POOLS)
def test_choosing_by_correctness_itself_is_pass_at_n(pool: tuple[list[float], list[float]]):
    correct = tensor(pool[1])
    for n in range(1, correct.shape[1] + 1):
        assert best_of_n(correct, correct, n=n).item() == pytest.approx(pass_at_n(correct, n=n).item(), abs=1e-12)


def test_one_is_the_mean_and_all_is_the_argmax():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 64, generator=generator)
    correct = (torch.rand(9, 64, generator=generator) < 0.3).float()
    assert torch.allclose(best_of_n(scores, correct, n=1), correct.double().mean(1))
    best = correct.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
    assert best_of_n(scores, correct, n=64).tolist() == best.tolist()


def test_equal_scores_choose_at_random_and_equal_worth_is_what_one_gets():
    correct = tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    for n in range(1, 6):
        assert best_of_n(torch.full((1, 5), 0.3), correct, n=n).item() == pytest.approx(0.6)
        assert best_of_n(tensor([1.0, 2.0, 3.0, 4.0, 5.0]), torch.ones(1, 5), n=n).item() == pytest.approx(1.0)
        assert pass_at_n(torch.zeros(1, 5), n=n).item() == 0.0
        assert pass_at_n(torch.ones(1, 5), n=n).item() == 1.0


def test_other_prompts_and_the_order_of_the_pool_change_nothing():
    scores, correct = tensor([3.0, 1.0, 2.0, 2.0], [9.0, 9.0, 9.0, 9.0]), tensor([0.0, 1.0, 1.0, 0.0], [1.0] * 4)
    order = torch.tensor([2, 0, 3, 1])
    for n in range(1, 5):
        alone = best_of_n(scores[:1], correct[:1], n=n)
        assert best_of_n(scores, correct, n=n)[0].item() == pytest.approx(alone.item())
        assert best_of_n(scores[:1, order], correct[:1, order], n=n).item() == pytest.approx(alone.item())


def test_large_pools_neither_overflow_nor_lose_the_total():
    # the chances add up to 1: everything is right
    scores = torch.arange(5000, dtype=torch.float64)[None]
    for n in (1, 2, 700, 2500, 4999, 5000):
        assert best_of_n(scores, torch.ones(1, 5000), n=n).item() == pytest.approx(1.0, abs=1e-12)
    # only the second best is right: chosen when the best is left out and it is in, n (K - n) / (K (K - 1))
    second = (scores == 4998).double()
    assert best_of_n(scores, second, n=2500).item() == pytest.approx(2500 * 2500 / (5000 * 4999), rel=1e-12)
    ones = torch.zeros(1, 5000)
    ones[0, 7] = 1.0
    assert pass_at_n(ones, n=64).item() == pytest.approx(64 / 5000, rel=1e-12)


def test_scores_may_be_infinite_and_worth_any_number():
    assert best_of_n(tensor([-math.inf, math.inf]), tensor([0.25, 0.75]), n=2).item() == 0.75


@pytest.mark.parametrize("n", [0, 4])
def test_subsets_that_cannot_be_are_refused(n: int):
    with pytest.raises(ValueError, match=f"cannot draw {n} of a pool of 3"):
        best_of_n(torch.zeros(1, 3), torch.zeros(1, 3), n=n)
    with pytest.raises(ValueError, match=f"cannot draw {n} of a pool of 3"):
        pass_at_n(torch.zeros(1, 3), n=n)


def test_values_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        best_of_n(torch.zeros(1, 2), torch.zeros(1, 3), n=1)
    with pytest.raises(ValueError, match="NaN"):
        best_of_n(torch.tensor([[math.nan, 0.0]]), torch.zeros(1, 2), n=1)
    with pytest.raises(ValueError, match="0 or 1"):
        pass_at_n(torch.tensor([[0.5, 0.0]]), n=1)
    with pytest.raises(ValueError, match=r"\(P, K\)"):
        pass_at_n(torch.zeros(3), n=1)
