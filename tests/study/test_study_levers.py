"""What more of one thing changes, all else equal."""

import math

import pandas as pd
import pytest
import torch

from rlhf_lightning.study.levers import sign_flip_probability, steps_along, verdict


def table(rows):
    return pd.DataFrame(rows, columns=["samples", "model", "seed", "value", "seconds"])


def steps(rows, **options):
    settings = {"value": "value", "others": ["model", "seed"], "cost": "seconds"}
    return steps_along(table(rows), "samples", ["1", "4", "16"], **{**settings, **options})


def test_pairs_differ_in_nothing_else():
    found = steps(
        [
            *(("1", "a", seed, 0.10, 2.0) for seed in (1, 2, 3)),
            *(("1", "b", seed, 0.50, 4.0) for seed in (1, 2, 3)),
            *(("4", "a", seed, 0.16, 6.0) for seed in (1, 2, 3)),
            *(("4", "b", seed, 0.54, 8.0) for seed in (1, 2, 3)),
            ("4", "b", 4, 0.99, 9.0),  # has no partner
        ]
    )
    assert len(found) == 1
    step = found.iloc[0]
    assert (step["less"], step["more"], step["pairs"], step["held"]) == ("1", "4", 6, "")
    assert (step["difference"], step["least"], step["most"]) == pytest.approx((0.05, 0.04, 0.06))
    assert step["times_cost"] == 2.5  # the median of three times 3 and three times 2
    assert step["p"] == 2 / 2**6  # all six point one way
    assert verdict(step) == "helps"


def test_runs_that_lack_a_label_step_over_it_and_are_named():
    """Model a has 1, 4 and 16; model b 1 and 16 alone."""
    a = [("1", "a", 1, 0.1, 1.0), ("4", "a", 1, 0.2, 1.0), ("16", "a", 1, 0.4, 1.0)]
    found = steps([*a, ("1", "b", 1, 0.5, 1.0), ("16", "b", 1, 0.6, 1.0)])
    told = found[["less", "more", "held"]].to_numpy().tolist()
    assert told == [["1", "4", "model a"], ["1", "16", "model b"], ["4", "16", "model a"]]
    assert found["difference"].tolist() == pytest.approx([0.1, 0.1, 0.2])


@pytest.mark.parametrize(
    ("differences", "probability"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),
        ([1.0, 1.0, -1.0], 8 / 8),
        ([3.0, 1.0, -1.0], 6 / 8),  # sums 5, 3, 3, 1 and their mirror images
        ([0.03, 0.03, 0.02, 0.02, 0.02, -0.01], 4 / 64),
    ],
)
def test_sign_flips_by_hand(differences, probability):
    assert sign_flip_probability(torch.tensor(differences)) == pytest.approx(probability)


def test_many_pairs_are_drawn():
    """With 20 differences of one size, as many as 5 of one sign: 2·P(Binomial(20, ½) ≤ 5) = 0.0414."""
    found = sign_flip_probability(torch.tensor([1.0] * 15 + [-1.0] * 5))
    assert found == pytest.approx(0.0414, abs=0.005)


def test_labels_that_are_not_there_are_stepped_over():
    found = steps([("1", "a", 1, 0.1, 1.0), ("16", "a", 1, 0.3, 1.0)])
    assert found[["less", "more"]].iloc[0].tolist() == ["1", "16"]


def test_five_pairs_say_nothing_of_chance():
    step = steps([(s, "a", seed, 0.1 * int(s), 1.0) for s in ("1", "4") for seed in range(5)]).iloc[0]
    assert step["pairs"] == 5
    assert math.isnan(step["p"])
    assert verdict(step) == "too few runs to tell from chance"


@pytest.mark.parametrize(
    ("differences", "said"),
    [
        ((0.1, 0.2, 0.3) * 2, "helps"),
        ((-0.1, -0.2, -0.1) * 2, "hurts"),
        ((-0.1, 0.1, 0.2, -0.2, 0.1, -0.1), "no clear difference"),
    ],
)
def test_what_is_said(differences, said):
    rows = [row for i, d in enumerate(differences) for row in (("1", "a", i, 0.5, 1.0), ("4", "a", i, 0.5 + d, 1.0))]
    assert verdict(steps(rows).iloc[0]) == said


def test_without_a_cost_there_is_none():
    step = steps([("1", "a", 1, 0.1, 1.0), ("4", "a", 1, 0.3, 2.0)], cost=None).iloc[0]
    assert math.isnan(step["times_cost"])
