"""Plateaus of curves made by hand."""

import pandas as pd
import pytest

from rlhf_lightning.callbacks import PlateauReport
from rlhf_lightning.callbacks.plateau import plateau_start, trend_of
from rlhf_lightning.errors import ConfigError

CURVES = {
    "up, then flat": ([0.1, 0.3, 0.5, 0.505, 0.49, 0.505], 2),
    "up to the end": ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None),
    "a pause, then up": ([0.1, 0.1, 0.1, 0.1, 0.1, 0.6], None),
    "up, then down": ([0.1, 0.6, 0.5, 0.4, 0.3, 0.2], 1),
    "never up": ([0.5, 0.5, 0.5, 0.5], 0),
    "flat for too short": ([0.1, 0.3, 0.5, 0.5, 0.5], None),
    "creeping adds up": ([0.1 + 0.004 * i for i in range(30)], None),
    "too short": ([0.5, 0.5], None),
    "nothing": ([], None),
}


@pytest.mark.parametrize(("values", "place"), CURVES.values(), ids=CURVES)
def test_a_plateau_begins_where_the_best_stops_rising(values, place):
    assert plateau_start(values, tolerance=0.01, patience=3) == place


def test_a_trend_is_beyond_twice_its_standard_error():
    """Halves 0, 1 and 4, 5: means 0.5 and 4.5, variances ½ each, so the error is √((½ + ½)/2) = 0.71."""
    assert (trend_of([0, 1, 4, 5]).early, trend_of([0, 1, 4, 5]).late) == (0.5, 4.5)
    assert trend_of([0, 1, 4, 5]).rising
    assert not trend_of([0, 1, 1.3, 2.3]).rising and not trend_of([4, 5, 0, 1]).rising
    assert trend_of([1, 2, 3]) is None


def run(rewards, proxy=None) -> pd.DataFrame:
    """Ten rollouts, measured at every second one and after the last; flat from rollout 4 on."""
    columns = {
        "rollout": range(11),
        "prompts_seen": [64 * i for i in range(11)],
        "held_out/accuracy": [0.3, None, 0.5, None, 0.7, None, 0.7, None, 0.705, None, 0.695],
        "reward/raw_mean": [*rewards, None],
        "time/rollout": [*[2.0] * 10, None],
        "time/evaluate": [1.0, None, 1.0, None, 1.0, None, 1.0, None, 1.0, None, 1.0],
    }
    return pd.DataFrame(columns if proxy is None else columns | {"held_out/proxy": proxy})


def text_of(metrics: pd.DataFrame, **arguments) -> str:
    return PlateauReport(**arguments).report_section(metrics).text


def test_reward_up_and_quality_flat():
    """After rollout 4: 6 rollouts, 384 prompts, 6·2 + 4·1 = 16 of 26 seconds."""
    assert text_of(run([0.1 * i for i in range(10)])) == (
        "held_out/accuracy stopped improving at rollout 4: its best value rose by 0.005 more, from 0.7; it ended at "
        "0.695. "
        "6 rollouts, 384 prompts and 16.0 s (62% of the run) came after it. Meanwhile reward/raw_mean kept rising, "
        "from 0.5 (mean of its earlier half) to 0.8 (later half): reward up, quality flat."
    )


def test_reward_up_and_quality_down():
    metrics = run([0.1 * i for i in range(10)])
    metrics.loc[10, "held_out/accuracy"] = 0.4
    assert text_of(metrics).endswith("reward up, quality down.") and "; it ended at 0.4." in text_of(metrics)


def test_a_reward_that_is_flat_too_is_no_finding():
    found = text_of(run([0.1, 0.3, 0.5, 0.6, 0.71, 0.69, 0.7, 0.72, 0.69, 0.7]))
    assert "did not rise beyond its noise" in found and "reward up" not in found


def test_the_proxy_on_held_out_responses_comes_first():
    proxy = [0, None, 1, None, 2, None, 3.1, None, 5.0, None, 6.1]
    assert "Meanwhile held_out/proxy kept rising, from 2.55" in text_of(run([0.5] * 10, proxy))


def test_what_cannot_be_told_is_said():
    metrics = run([0.5] * 10)
    assert "Too few measurements of held_out/accuracy to tell a plateau: 6, of 8" in text_of(metrics, patience=7)
    assert (
        text_of(metrics[:5], patience=2)
        == "No plateau: held_out/accuracy still improved within its last 2 measurements."
    )
    assert "logged no held_out/acuracy" in (missing := text_of(metrics, metric="held_out/acuracy"))
    assert "Did you mean held_out/accuracy?" in missing
    assert "No reward was logged" in text_of(metrics.drop(columns="reward/raw_mean"))


@pytest.mark.parametrize("wrong", [{"tolerance": 0}, {"patience": 0}])
def test_arguments_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="PlateauReport: tolerance must be above 0 and patience at least 1"):
        PlateauReport(**wrong)
