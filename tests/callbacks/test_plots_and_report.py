import pandas as pd
import pytest
from PIL import Image

from rlhf_lightning.callbacks.plots import draw_metric, draw_run, points_of
from rlhf_lightning.callbacks.report import as_markdown, metrics_table, status_of, time_table
from rlhf_lightning.runs import load_run
from rlhf_lightning.runs.key_metrics import KEY_METRICS, describe

REWARD, ACCURACY, KL, LENGTH = KEY_METRICS


def test_a_key_metric_takes_the_best_column_there_is():
    assert REWARD.column_in(["reward/mean", "reward/raw_mean", "reward/after_clip_mean"]) == "reward/raw_mean"
    assert REWARD.column_in(["reward/after_clip_mean"]) is None
    assert KL.column_in(["kl/ref_k1", "kl/beta"]) == "kl/ref_k1"


def test_points_are_scaled_and_skip_rows_without_a_value():
    metrics = pd.DataFrame({"rollout": [0, 1, 2], "prompts_seen": [0, 8, 16], "held_out/accuracy": [0.5, None, 0.75]})
    points = points_of(metrics, ACCURACY)
    assert points.values.tolist() == [[0.0, 0.0, 50.0], [2.0, 16.0, 75.0]]
    assert points_of(metrics, KL).empty
    assert points_of(metrics.drop(columns="rollout"), ACCURACY).empty


def test_a_picture_has_rollouts_below_prompts_above_and_its_end_values():
    points = pd.DataFrame({"x": [0, 1, 2], "prompts": [0, 100, 200], "y": [31.25, 50.0, 81.0]})
    axes = draw_metric(points, ACCURACY, "some-run").axes[0]
    (top,) = axes.child_axes
    assert (axes.get_xlabel(), top.get_xlabel()) == ("rollout", "prompts seen")
    assert axes.get_ylabel() == "held-out accuracy (%)" and ACCURACY.title in axes.get_title("left")
    assert {"31.2 %", "81.0 %"} <= {text.get_text() for text in axes.texts}
    labels = {label.get_text(): tick for label, tick in zip(top.get_xticklabels(), top.get_xticks(), strict=True)}
    assert labels["80"] == pytest.approx(0.8) and labels["200"] == pytest.approx(2.0)


def test_a_long_run_gets_a_running_mean_and_a_short_one_none():
    def legend(n: int):
        points = pd.DataFrame({"x": range(n), "prompts": range(n), "y": [float(i % 2) for i in range(n)]})
        return draw_metric(points, REWARD, "r").axes[0].get_legend()

    assert legend(19) is None
    assert [text.get_text() for text in legend(20).get_texts()] == ["each measurement", "running mean of 5"]


@pytest.mark.parametrize("rows", [1, 2])
def test_metrics_that_were_not_logged_get_no_picture_and_the_report_says_so(tmp_path, rows):
    table = "rollout,reward/raw_mean\n" + "".join(f"{i},0.5\n" for i in range(rows))
    (tmp_path / "metrics.csv").write_text(table)
    assert [path.name for path in draw_run(tmp_path)] == ["reward.png"]
    with Image.open(tmp_path / "plots" / "reward.png") as picture:
        assert min(picture.size) > 400 and len(picture.convert("RGB").getcolors(1 << 20)) > 10
    report = as_markdown(load_run(tmp_path), "finished")
    assert "(plots/reward.png)" in report
    assert "No picture of KL: the run logged no kl/ref_k1_per_token or kl/ref_k1." in report


def test_a_reward_model_is_shown_its_own_metrics_those_that_it_has(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "rollout,loss/reward,held_out/auroc,grad_norm/backbone\n0,0.7,0.5,0.1\n1,0.2,0.9,0.2\n"
    )
    assert [path.name for path in draw_run(tmp_path)] == ["loss.png", "held_out_auroc.png"]
    report = as_markdown(load_run(tmp_path), "finished")
    assert "No picture" not in report and "| held-out AUROC |  | 0.500 | 0.900 | 0.900 | 1 |" in report
    assert "| loss | nats | 0.700 | 0.200 | 0.200 | 1 |" in report and "| gradient norm |  | 0.100 | 0.200 |" in report
    assert describe({"loss/reward": 0.2, "held_out/pairwise_accuracy": 0.75}) == [
        "loss 0.200 nats",
        "held-out pairs 75.0 %",
    ]


def test_the_table_of_metrics_knows_which_way_is_better():
    metrics = pd.DataFrame(
        {"rollout": [0, 1, 2], "reward/raw_mean": [0.1, 0.9, 0.5], "response/truncated": [0.5, 0.25, 0.75]}
    )
    assert metrics_table(metrics).rows == (
        ("reward", "", "0.100", "0.500", "0.900", "1"),
        ("truncated", "%", "50.0", "75.0", "25.0", "1"),
    )


def test_a_run_without_key_metrics_reports_all_it_has():
    metrics = pd.DataFrame({"step": [9, 19], "epoch": [0, 1], "loss": [2.0, 1.5], "memory/peak_rss_gib": [1.0, 1.0]})
    assert metrics_table(metrics).rows == (("loss", "", "2.0000", "1.5000", "", ""),)


def test_time_and_tokens_per_second_by_phase():
    metrics = pd.DataFrame(
        {
            "rollout": [0, 1],
            "time/rollout": [1.0, 3.0],
            "speed/rollout_tokens_per_s": [100.0, 20.0],
            "time/update": [60.0, 36.0],
        }
    )
    assert time_table(metrics).rows == (
        ("update", "1 min 36 s", "96%", ""),
        ("rollout", "4.0 s", "4%", "40"),
        ("all phases", "1 min 40 s", "100%", ""),
    )
    assert status_of(metrics, None) == "finished after 2 rollouts"
    assert status_of(metrics[:1], KeyError("x")) == "interrupted by KeyError after 1 rollout"
