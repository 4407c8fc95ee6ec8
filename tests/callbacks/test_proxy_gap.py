import pytest

from rlhf_lightning.callbacks import HeldOutEval
from rlhf_lightning.errors import ConfigError
from rlhf_lightning.runs.key_metrics import Start, gap_since, start_of


def measured(accuracy, proxy, std=2.0):
    return {"held_out/accuracy": accuracy, "held_out/proxy": proxy, "held_out/proxy_std": std}


def test_the_gap_by_hand():
    """From 50 % and −1 (deviation 2) to 70 % and 3: (3 + 1)/2 − 0.2/0.5 = 1.6."""
    start = start_of(measured(0.5, -1.0))
    assert gap_since(start, measured(0.7, 3.0, 9.0)) == {"held_out/gap": pytest.approx(1.6)}


def test_it_is_0_at_the_start_and_where_both_gain_alike_and_does_not_know_the_proxys_unit():
    start = start_of(measured(0.5, 0.0))
    assert gap_since(start, measured(0.5, 0.0)) == {"held_out/gap": 0.0}
    assert gap_since(start, measured(0.75, 1.0)) == {"held_out/gap": 0.0}
    scaled = start_of(measured(0.5, 7.0, 200.0))
    assert gap_since(scaled, measured(0.6, 107.0))["held_out/gap"] == pytest.approx(
        gap_since(start, measured(0.6, 1.0))["held_out/gap"]
    )


def test_a_start_at_none_right_counts_as_a_deviation_of_a_tenth():
    assert gap_since(Start(0.0, 0.0, 1.0), measured(0.1, 1.0)) == {"held_out/gap": pytest.approx(0.0)}


def test_there_is_none_without_a_proxy_or_with_one_that_says_the_same_of_all():
    assert start_of({"held_out/accuracy": 0.5}) is None
    assert gap_since(None, measured(0.5, 0.0)) == gap_since(Start(0.5, 0.0, 0.0), measured(0.5, 1.0)) == {}


def test_sizes_of_best_of():
    assert HeldOutEval(samples=16).best_of == [2, 4, 8, 16]
    assert HeldOutEval(samples=6).best_of == [2, 4] and HeldOutEval().best_of == []
    assert HeldOutEval(samples=6, best_of=[6, 1, 6]).best_of == [1, 6]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"every": 0}, "every and max_prompts must be at least 1"),
        ({"max_prompts": 0}, "every and max_prompts must be at least 1"),
        ({"samples": 4, "best_of": [2, 8]}, "best_of 8 cannot be drawn of 4 samples: .* at least 8"),
        ({"best_of": [2]}, "best_of 2 cannot be drawn of 0 samples"),
        ({"samples": -1}, "samples must not be negative"),
        ({"samples": 2, "temperature": 0.0}, "temperature must be above 0"),
        ({"best_metric": "held_out/proxy"}, "is the proxy's"),
    ],
)
def test_arguments_that_cannot_be(wrong, match):
    with pytest.raises(ConfigError, match=match):
        HeldOutEval(**wrong)


def test_its_state_comes_back():
    first, second = HeldOutEval(), HeldOutEval()
    first.best, first.start = (0.75, 4), Start(0.5, 1.0, 2.0)
    second.load_state_dict(first.state_dict())
    assert (second.best, second.start) == (first.best, first.start)
    second.load_state_dict(HeldOutEval().state_dict())
    assert second.best is None and second.start is None
