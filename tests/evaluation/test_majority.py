import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import best_of_n as slow
from rlhf_lightning.evaluation.majority import majority_at_n

POOLS = st.integers(1, 6).flatmap(
    lambda k: st.tuples(
        st.lists(st.sampled_from(["1", "2", "3", None]), min_size=k, max_size=k),
        st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k),
    )
)


def test_hand_worked_values():
    # three "7" (right), one "8", one "9": of the 10 pairs, 3 are two sevens (1), 6 seven and other (1/2), 1 wrong
    answers, correct = [["7", "7", "7", "8", "9"]], torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    assert majority_at_n(answers, correct, n=2).item() == pytest.approx((3 + 6 / 2) / 10)
    assert majority_at_n(answers, correct, n=5).item() == 1.0


@settings(max_examples=50, derandomize=True, deadline=None)
@given(POOLS)
def test_it_is_the_mean_over_all_subsets(pool):
    answers, correct = pool
    for n in range(1, len(answers) + 1):
        expected = slow.majority_at_n(answers, correct, n)
        assert majority_at_n([answers], torch.tensor([correct]), n=n).item() == pytest.approx(expected, abs=1e-12)


def test_one_is_the_mean_with_or_without_answers():
    answers, correct = [["1", None, "2", None], [None] * 4], torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    assert majority_at_n(answers, correct, n=1).tolist() == [0.5, 0.25]
    assert majority_at_n(answers, correct, n=4)[1].item() == 0.25


def test_drawn_subsets_come_close_to_all_and_are_the_same_each_time():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(5, (3, 16), generator=generator)
    answers = [[str(x) for x in row] for row in drawn.tolist()]
    correct = (drawn == 0).float()
    exact = majority_at_n(answers, correct, n=4, draws=1820)  # C(16, 4)
    sampled = majority_at_n(answers, correct, n=4, draws=1819)
    assert exact.tolist() != sampled.tolist()
    assert sampled.tolist() == pytest.approx(exact.tolist(), abs=0.04)  # 4 deviations of sqrt(1/4/1819)
    assert majority_at_n(answers, correct, n=4, draws=1819).tolist() == sampled.tolist()
    assert majority_at_n(answers, correct, n=4, draws=1819, seed=1).tolist() != sampled.tolist()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="1 rows of 2"):
        majority_at_n([["1"]], torch.zeros(1, 2), n=1)
    with pytest.raises(ValueError, match="cannot draw 3"):
        majority_at_n([["1", "2"]], torch.zeros(1, 2), n=3)
