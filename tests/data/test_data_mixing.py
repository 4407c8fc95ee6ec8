from collections import Counter

import pytest

from rlhf_lightning.data.order import Mixture


def test_the_proportions_of_the_paper_hold_in_every_batch_of_ten():
    mixture = Mixture([0.4, 0.3, 0.3])
    for batch in range(50):
        sources = [source for source, _ in mixture.take(10 * batch, 10)]
        assert Counter(sources) == {0: 4, 1: 3, 2: 3}


def test_two_sources_alternate_as_worked_by_hand():
    # floor(n/3 + 1/2) for n = 1..6 is 0, 1, 1, 1, 2, 2: source 0 stands at positions 1 and 4
    assert Mixture([1, 2]).take(0, 6) == [(1, 0), (0, 0), (1, 1), (1, 2), (0, 1), (1, 3)]


@pytest.mark.parametrize("weights", [[1.0], [0.4, 0.3, 0.3], [0.05, 0.9, 0.05], [5, 1, 1, 1, 0.1], [1e-3, 1]])
def test_every_window_has_the_proportions(weights):
    shares = [weight / sum(weights) for weight in weights]
    sources = [source for source, _ in Mixture(weights).take(0, 2000)]
    for size in (1, 7, 10, 64, 500):
        for start in range(0, 1500, 13):
            found = Counter(sources[start : start + size])
            assert all(abs(found[i] - size * share) < 2.5 for i, share in enumerate(shares))


def test_positions_stand_alone_and_each_source_counts_on():
    mixture = Mixture([0.5, 0.2, 0.3])
    whole = mixture.take(0, 300)
    assert [mixture.take(i, 1)[0] for i in range(300)] == whole
    assert mixture.take(100, 50) == whole[100:150]
    for source in range(3):
        assert [nth for which, nth in whole if which == source] == list(range(mixture.counts(300)[source]))


def test_far_positions_are_exact():
    assert Mixture([0.4, 0.3, 0.3]).counts(10**15) == (4 * 10**14, 3 * 10**14, 3 * 10**14)


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [float("nan")], [float("inf"), 1]])
def test_proportions_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="positive"):
        Mixture(weights)
