"""What more of one thing changes, all else equal."""

import math

import pandas as pd
import pytest

from rlhf_lightning.study.levers import steps_along, verdict


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
    assert (step["less"], step["more"], step["pairs"]) == ("1", "4", 6)
    assert step["difference"] == pytest.approx(0.05)
    assert step["times_cost"] == 2.5  # the median of three times 3 and three times 2
    assert 0.04 - 1e-9 <= step["low"] < step["difference"] < step["high"] <= 0.06 + 1e-9
    assert verdict(step) == "helps"


def test_labels_that_are_not_there_are_stepped_over():
    found = steps([("1", "a", 1, 0.1, 1.0), ("16", "a", 1, 0.3, 1.0)])
    assert found[["less", "more"]].iloc[0].tolist() == ["1", "16"]


def test_five_pairs_say_nothing_of_chance():
    step = steps([(s, "a", seed, 0.1 * int(s), 1.0) for s in ("1", "4") for seed in range(5)]).iloc[0]
    assert step["pairs"] == 5
    assert math.isnan(step["low"])
    assert math.isnan(step["high"])
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
