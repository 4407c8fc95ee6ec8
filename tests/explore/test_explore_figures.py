import importlib.util

import pytest
from tests.fits import assert_texts_fit

from rlhf_lightning.errors import ConfigError, RunFolderError
from rlhf_lightning.runs.figures import browse_metrics, choices, plot_frontier, plot_metrics
from rlhf_lightning.runs.key_metrics import KEY_METRICS, REWARD_MODEL_METRICS

from .hand_made import METRICS, make_run


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(point) for point in line.get_xydata().tolist()] for line in axes.get_lines()}


@pytest.fixture
def runs(tmp_path):
    other = METRICS.replace("value/mean", "loss/value").replace("0.75", "1.0")
    return [make_run(tmp_path, "one"), make_run(tmp_path, "two", metrics=other)]


def test_a_panel_a_metric_and_a_line_a_run(runs):
    reward, value = plot_metrics(runs, ["reward/raw_mean", "value/mean"], against="prompts_seen").axes
    assert lines(reward) == {"one": [(0, 0.25), (64, 0.5), (128, 0.75)], "two": [(0, 0.25), (64, 0.5), (128, 1.0)]}
    assert lines(value) == {"one": [(0, 0.5), (64, 0.25)]}  # the other run has none, and the last rollout has not


def test_smoothing_is_a_running_mean_over_the_points(runs):
    (axes,) = plot_metrics(runs[0], ["reward/raw_mean"], smooth=2).axes
    assert lines(axes)["one"] == [(0, 0.25), (1, 0.375), (2, 0.625)]
    assert lines(axes)["_"] == [(0, 0.25), (1, 0.5), (2, 0.75)]


def test_key_metrics_are_drawn_when_none_is_named(runs):
    assert [axes.get_title(loc="left") for axes in plot_metrics(runs).axes] == ["reward"]


def test_the_frontier_goes_through_the_rollouts_in_their_order(runs):
    (axes,) = plot_frontier(runs).axes
    assert lines(axes)["one"] == [(0.0, 0.25), (0.5, 0.5)]
    assert [text.get_text() for text in axes.texts] == ["0", "1"] * 2
    assert "nats" in axes.get_xlabel()


def test_a_figure_shows_itself_in_a_notebook(runs):
    assert plot_frontier(runs)._repr_png_().startswith(b"\x89PNG")


def test_mistakes_are_named(runs):
    with pytest.raises(RunFolderError, match=r"no metric 'reward/raw_men'\. Did you mean 'reward/raw_mean'"):
        plot_metrics(runs, ["reward/raw_men"])
    with pytest.raises(ConfigError, match="no run to draw"):
        plot_metrics([])
    with pytest.raises(ConfigError, match="smooth must be at least 1"):
        plot_metrics(runs, smooth=0)


def test_a_run_without_key_metrics_names_what_it_has(tmp_path):
    run = make_run(tmp_path, metrics="rollout,loss/policy\n0,0.5\n")
    with pytest.raises(ConfigError, match="no key metric; name some of: rollout, loss/policy"):
        plot_metrics(run)


def test_all_metrics_can_be_chosen_and_the_key_metrics_are_at_first(runs):
    known, first = choices(runs)
    assert known == ["kl/ref_k1_per_sequence", "loss/value", "reward/raw_mean", "value/mean"]
    assert first == ["reward/raw_mean"]


def test_without_ipywidgets_there_is_a_picture_that_says_so(runs, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_lightning.runs.figures.find_spec", lambda name: None)
    assert browse_metrics(runs)._repr_png_().startswith(b"\x89PNG")
    assert "ipywidgets is not installed" in capsys.readouterr().out


@pytest.mark.skipif(importlib.util.find_spec("ipywidgets") is None, reason="ipywidgets is not installed")
def test_with_ipywidgets_there_is_a_chooser(runs):
    metrics, against, smooth, _ = browse_metrics(runs).children
    assert metrics.value == ("reward/raw_mean",) and len(metrics.options) == 4
    assert against.value == "rollout" and smooth.value == 1


def test_names_fit_and_reward_models_count_epochs(tmp_path):
    names = ["a", "b", "a-run-of-a-rather-long-name-indeed", "c", "d", "another-run-of-which-the-name-is-long" * 3]
    figure = plot_metrics([make_run(tmp_path, name) for name in names])
    assert_texts_fit(figure)
    metrics = "rollout,prompts_seen,loss,time/update\n0,0,0.5,1.0\n1,32,0.25,1.0\n"
    run = make_run(tmp_path, "rm", metrics=metrics)
    assert plot_metrics(run, ["loss"]).axes[0].get_xlabel() == "epoch"
    assert plot_metrics(run, ["loss"], against="prompts_seen").axes[0].get_xlabel() == "items seen"


@pytest.mark.parametrize("key", [*KEY_METRICS, *REWARD_MODEL_METRICS], ids=lambda key: key.name)
def test_both_titles_of_a_panel_fit(tmp_path, key):
    column = max((name.replace("*", "a_long_name") for name in key.columns), key=len)
    run = make_run(tmp_path, metrics=f"rollout,prompts_seen,{column}\n0,0,0.5\n1,32,0.25\n")
    assert_texts_fit(plot_metrics(run, [column]))
