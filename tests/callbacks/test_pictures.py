"""Pictures say what they show: titles fit, axes are named after what is counted, proxy and truth stand side by side."""

import pandas as pd
import pytest

from rlhf_lightning.callbacks.key_metrics import KEY_METRICS, REWARD_MODEL_METRICS
from rlhf_lightning.callbacks.plots import axis_of, draw_metric, draw_proxy_and_truth


@pytest.mark.parametrize("key", [*KEY_METRICS, *REWARD_MODEL_METRICS], ids=lambda key: key.name)
def test_titles_stay_inside_the_picture(key):
    points = pd.DataFrame({"x": [0, 1], "prompts": [0, 64], "y": [0.25, 0.5]})
    figure = draw_metric(points, key, "some-run")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    box = axes._left_title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


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
    proxy, truth = figure.axes[0].get_lines()
    assert list(proxy.get_ydata()) == [0.0, 4.0] and list(truth.get_ydata()) == pytest.approx([0.0, 0.4])
    assert list(proxy.get_xdata()) == [0, 4]
    assert draw_proxy_and_truth(pd.DataFrame({"rollout": [0], "held_out/accuracy": [0.5]}), "x") is None
