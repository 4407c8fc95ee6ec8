"""Step labels: worked by hand, and the binary search against looking at every prefix."""

import math
from itertools import product

import pytest
import torch

from rlhf_lightning.functional import (
    first_wrong_step,
    hard_step_labels,
    last_right_step,
    next_probe,
    search_step_labels,
    soft_step_labels,
)
from rlhf_lightning.labelling.step_methods import METHODS, Count


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


def test_where_an_answer_is_none_its_neighbours_are_asked_about():
    """Eight steps; nobody can judge the prefixes of 4 and 5, the one of 3 is good and the one of 6 bad."""
    answers, known = {1: True, 2: True, 3: True, 4: None, 5: None, 6: False, 7: False}, {}
    while (probe := next_probe(known, 8)) is not None:
        known[probe] = answers[probe]
    assert known == {i: answers[i] for i in (3, 4, 5, 6)}
    assert (last_right_step(known, 8), first_wrong_step(known, 8)) == (3, 6)
    labels = search_step_labels(6, 8, last_right=3).tolist()
    assert labels[:3] == [1.0] * 3 and labels[5:] == [0.0] * 3 and all(map(math.isnan, labels[3:5]))


@pytest.mark.parametrize("answers", product([False, True, None], repeat=5))
def test_the_search_ends_between_a_good_and_a_bad_prefix_with_nothing_known_in_between(answers):
    known: dict[int, bool | None] = {}
    while (probe := next_probe(known, 6)) is not None:
        assert probe not in known
        known[probe] = answers[probe - 1]
    low, high = last_right_step(known, 6), first_wrong_step(known, 6)
    prefixes = [True, *answers, False]  # the empty one, and the whole wrong solution
    assert prefixes[low] is True and prefixes[high] is False
    assert all(prefixes[i] is None for i in range(low + 1, high))


@pytest.mark.parametrize("method", METHODS)
def test_a_prefix_that_no_verifier_could_judge_has_no_label(method):
    """Of a wrong solution of two steps: nothing is known of the first, and the whole is wrong."""
    counts = {1: Count(rollouts=0, successes=0)}
    assert METHODS[method].wanted(counts, 2, False) == []
    assert METHODS[method].labels(counts, 2, False) == [None, 0.0]
    assert METHODS[method].labels({1: Count(4, 0)}, 2, False) == [0.0, 0.0]
