"""Pictures say what they show: titles fit, axes are named after what is counted, proxy and truth stand side by side."""

import pandas as pd
import pytest
from tests.fits import assert_texts_fit

from rlhf_lightning.callbacks.plots import draw_metric, draw_proxy_and_truth
from rlhf_lightning.runs.key_metrics import KEY_METRICS, REWARD_MODEL_METRICS, axis_of


@pytest.mark.parametrize("key", [*KEY_METRICS, *REWARD_MODEL_METRICS], ids=lambda key: key.name)
def test_titles_stay_inside_the_picture(key):
    points = pd.DataFrame({"x": [0, 1], "prompts": [0, 64], "y": [0.25, 0.5]})
    assert_texts_fit(draw_metric(points, key, "some-run"))


def test_a_long_name_of_a_run_goes_into_lines():
    points = pd.DataFrame({"x": [0, 1], "prompts": [0, 64000], "y": [0.25, 0.5]})
    figure = draw_metric(points, KEY_METRICS[0], "a-name-of-the-longest-kind" * 8)
    assert_texts_fit(figure)
    assert figure.get_supxlabel().replace("\n", "") == "run " + "a-name-of-the-longest-kind" * 8


def test_a_rounded_zero_has_no_sign():
    kl = next(key for key in KEY_METRICS if key.name == "KL")
    assert kl.digits(-1e-9) == "0.0000" and kl.digits(-1e-3) == "-0.0010"


def test_a_reward_models_axis_counts_epochs():
    points = pd.DataFrame({"x": [0, 1], "prompts": [0, 64], "y": [0.25, 0.5]})
    metrics = pd.DataFrame({"rollout": [0], "time/update": [1.0]})
    assert axis_of(metrics) == "epoch" and axis_of(metrics.assign(**{"time/rollout": 1.0})) == "rollout"
    axes = draw_metric(points, REWARD_MODEL_METRICS[0], "rm", axis_of(metrics)).axes[0]
    assert axes.get_xlabel() == "epoch"


def test_proxy_and_truth_by_hand():
    """Proxy: (3 - 1)/0.5 = 4 deviations; truth: (0.7 - 0.5)/0.5 = 0.4. The gap is what lies between."""
    held = {"held_out/proxy": [1.0, 3.0], "held_out/proxy_std": [0.5, 9.0], "held_out/accuracy": [0.5, 0.7]}
    figure = draw_proxy_and_truth(pd.DataFrame({"rollout": [0, 4], **held}), "some-run")
    assert_texts_fit(figure)
    proxy, truth = figure.axes[0].get_lines()
    assert list(proxy.get_ydata()) == [0.0, 4.0] and list(truth.get_ydata()) == pytest.approx([0.0, 0.4])
    assert list(proxy.get_xdata()) == [0, 4]
    assert draw_proxy_and_truth(pd.DataFrame({"rollout": [0], "held_out/accuracy": [0.5]}), "x") is None
