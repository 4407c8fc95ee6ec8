"""Step labels: worked by hand, and the binary search against looking at every prefix."""

import math
from itertools import product

import pytest
import torch

from rlhf_lightning.functional import (
    first_wrong_step,
    hard_step_labels,
    next_probe,
    search_step_labels,
    soft_step_labels,
)


def test_hard_and_soft_by_hand():
    successes, rollouts = torch.tensor([4, 3, 0, 1]), torch.tensor([4, 4, 4, 5])
    assert hard_step_labels(successes, rollouts).tolist() == [1.0, 1.0, 0.0, 1.0]
    torch.testing.assert_close(soft_step_labels(successes, rollouts), torch.tensor([1.0, 0.75, 0.0, 0.2]))


def test_without_completions_nothing_is_known():
    none = torch.tensor([0, 0])
    assert hard_step_labels(none, none).isnan().all()
    assert soft_step_labels(none, none).isnan().all()


def test_hard_is_whether_soft_is_above_zero_and_both_are_the_verdict_of_one_completion():
    successes = torch.arange(9)
    rollouts = torch.full((9,), 8)
    soft = soft_step_labels(successes, rollouts)
    assert torch.equal(hard_step_labels(successes, rollouts), (soft > 0).float())
    one = torch.tensor([0, 1, 1])
    assert torch.equal(hard_step_labels(one, torch.ones(3)), soft_step_labels(one, torch.ones(3)))
    assert torch.equal(soft_step_labels(one, torch.ones(3)), one.float())


@pytest.mark.parametrize("labels", [hard_step_labels, soft_step_labels])
def test_a_prefix_without_completions_changes_no_other_label(labels):
    successes, rollouts = torch.tensor([2, 0]), torch.tensor([3, 3])
    padded = labels(torch.cat([successes, torch.zeros(2)]), torch.cat([rollouts, torch.zeros(2)]))
    assert torch.equal(padded[:2], labels(successes, rollouts))


def searched(good: list[bool]) -> tuple[int, int]:
    """First wrong step and number of questions, for a wrong solution of len(good) + 1 steps."""
    known: dict[int, bool] = {}
    steps = len(good) + 1
    while (probe := next_probe(known, steps)) is not None:
        assert probe not in known
        known[probe] = good[probe - 1]
    return first_wrong_step(known, steps), len(known)


@pytest.mark.parametrize("steps", range(1, 18))
def test_the_search_finds_what_looking_at_every_prefix_finds(steps: int):
    for first in range(1, steps + 1):
        good = [i < first for i in range(1, steps)]
        found, asked = searched(good)
        exhaustive = next((i for i, fine in enumerate(good, start=1) if not fine), steps)
        assert found == exhaustive
        assert asked <= math.ceil(math.log2(steps))


@pytest.mark.parametrize("good", product([False, True], repeat=6))
def test_where_a_good_prefix_follows_a_bad_one_it_ends_at_an_edge(good: tuple[bool, ...]):
    found, _ = searched(list(good))
    prefixes = [True, *good, False]  # the empty one, and the whole wrong solution
    assert prefixes[found - 1]
    assert not prefixes[found]


def test_an_unfinished_search_has_no_result():
    with pytest.raises(ValueError, match="the prefix of 2 steps"):
        first_wrong_step({}, 4)


def test_search_labels_by_hand():
    assert search_step_labels(3, 4).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert search_step_labels(1, 2).tolist() == [0.0, 0.0]
    assert search_step_labels(5, 4).tolist() == [1.0, 1.0, 1.0, 1.0]
