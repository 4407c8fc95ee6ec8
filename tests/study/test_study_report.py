"""The report of a study that was written by hand: what it draws, what it says it lacks, and its numbers."""

import pandas as pd
import pytest
from hand_made_study import make_study
from tests.fits import assert_texts_fit

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.study import figures, reward_figures, training_figures
from rlhf_lightning.study.drawing import LackingError
from rlhf_lightning.study.paper import FINDINGS, TABLE_1, TABLE_1_TASKS
from rlhf_lightning.study.report import FIGURES, StudyReport
from rlhf_lightning.study.results import Results
from rlhf_lightning.study.state import load_study
from rlhf_lightning.study.tables import lever_table, lever_text, markdown, table_1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    make_study(folder, tasks=("easy", "hard"))
    StudyReport(str(folder)).run()
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return Results(load_study(folder))


def test_every_figure_is_drawn_and_shown(folder):
    text = (folder / "report" / "report.md").read_text()
    for name in FIGURES:
        assert (folder / "report" / f"{name}.png").stat().st_size > 10_000
        assert f"({name}.png)" in text
    assert "Not drawn" not in text
    assert all(finding in text for finding in FINDINGS.values())


def test_tables_are_kept(folder):
    assert len(pd.read_csv(folder / "report" / "policies.csv")) == 3 * (24 + 6)
    assert {"training.csv", "best_of_n.csv", "levers.csv"} <= {p.name for p in (folder / "report").iterdir()}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_fit(results, name):
    assert_texts_fit(FIGURES[name](results))


def test_lines_of_runs_that_do_not_vary_are_named(results):
    accuracy = training_figures.figure_5(results).axes[0]
    assert set(lines_of(accuracy)) == {"small", "large", "others"}


def test_only_labels_that_were_measured_have_a_tick(results):
    axes = reward_figures.figure_6_right(results).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [""]


def lines_of(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines if not line.get_label().startswith("_")}


def test_samples_against_accuracy(results):
    """Means over seeds, of PPO, as it stands before GRPO and both have as many runs: 0.3 + gain + 0.002."""
    axes = figures.figure_1_left(results).axes[0]
    drawn = lines_of(axes)
    assert drawn["small"] == pytest.approx([0.402, 0.602])
    assert drawn["before training"] == pytest.approx([0.3, 0.3])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2", "8"]


def test_gain_against_size(results):
    axes = figures.figure_1_middle(results).axes[0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.202, 0.102])


def test_tasks_have_panels(results):
    easy, hard = figures.figure_2(results).axes
    assert (easy.get_title("left"), hard.get_title("left")) == ("easy", "hard")
    assert lines_of(hard)["large"][0] - lines_of(easy)["large"][0] == pytest.approx(0.2)


def test_best_of_n_beside_training(results):
    best, trained = figures.figure_3(results).axes
    assert lines_of(best)["large"] == pytest.approx([0.4, 0.43, 0.46])
    assert lines_of(best)["small"] == pytest.approx([0.4, 0.4, 0.4])
    assert set(lines_of(trained)) == {"small", "large", "before training"}


def test_the_frontier_is_a_line_a_run(results):
    _, _, frontier, _ = training_figures.figure_4(results).axes
    assert len(frontier.lines) == 6
    assert all(line.get_xdata().tolist() == [0, 0.5, 1, 1.5] for line in frontier.lines)
    assert all(line.get_ydata().tolist() == [0, 1, 2, 3] for line in frontier.lines)


def test_data_scaling(results):
    table = reward_figures.data_table(results).set_index(["series", "size", "n"])["accuracy"]
    assert table["more prompts", 40, 16] == pytest.approx(0.4 + 0.01 * 2)
    assert table["more prompts", 80, 4] == table["more solutions a prompt", 80, 4] == pytest.approx(0.43)
    assert table["more solutions a prompt", 40, 16] == pytest.approx(0.4 + 0.02 * 2)
    assert len(table) == 2 * 2 * 2


def test_supervision(results):
    axes = reward_figures.figure_6_right(results).axes[0]
    assert lines_of(axes) == {"outcome": pytest.approx([0.4]), "process": pytest.approx([0.5])}


def test_table_1(results):
    table = table_1(results)
    assert table.iloc[0][["algorithm", "all tasks"]].tolist() == ["before training", pytest.approx(30.0)]
    assert len(table) == 1 + 2 * 2 * 2
    row = table[(table["samples"] == "8") & (table["algorithm"] == "GRPO") & (table["reward_model"] == "large")].iloc[0]
    assert row["all tasks"] == pytest.approx(61.2)
    assert row["hard"] - row["easy"] == pytest.approx(20.0)
    assert "policy" not in table


def test_levers(results):
    steps = lever_table(results).set_index(["measure", "axis", "more"])
    samples = steps.loc["accuracy", "samples", "8"]
    assert samples["difference"] == pytest.approx(0.2)
    assert samples["pairs"] == 12
    assert samples["times_cost"] == pytest.approx((4 * 8 + 4) / (4 * 2 + 4))
    assert steps.loc["gain by training", "policy", "l"]["difference"] == pytest.approx(-0.1)
    assert steps.loc["best of N", "prompts", "20"]["difference"] == pytest.approx(0.04)
    text = lever_text(lever_table(results))
    assert "| accuracy | samples 2 → 8 |  | 3.0× | +20.0 | +20.0 to +20.0 | 12 | 0.000 | helps |" in text
    assert "| reward model small → large |  | 1.0× | +0.0 |" in text
    assert steps.loc["best of N", "prompts", "20"]["pairs"] == 2


def test_what_is_missing_is_said(tmp_path):
    make_study(tmp_path, parts=("promised",))
    StudyReport(str(tmp_path)).run()
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.count("Not drawn: ") == len(FIGURES)
    assert "Not drawn: no finished policies differ in samples: vary a part with role policy" in text
    assert "Not drawn: no measured reward models differ in both prompts and solutions, as whole numbers" in text
    assert "Not made: no finished policies differ in algorithm" in text
    assert not list((tmp_path / "report").glob("*.png"))


def test_a_picture_that_is_lacking_now_is_taken_away(tmp_path):
    make_study(tmp_path, parts=("sizes",))
    StudyReport(str(tmp_path)).run()
    assert (tmp_path / "report" / "figure_1_middle.png").is_file()
    for seed in (1, 2, 3):
        (tmp_path / "state" / "sizes" / f"policy-l_seed-{seed}.json").unlink()
    StudyReport(str(tmp_path)).run()
    assert not (tmp_path / "report" / "figure_1_middle.png").exists()


def test_nothing_finished_is_told(tmp_path):
    make_study(tmp_path, parts=("sizes",))
    for file in (tmp_path / "state").rglob("*.json"):
        file.unlink()
    with pytest.raises(ConfigError, match="nothing to report yet"):
        StudyReport(str(tmp_path)).run()


def test_one_task_has_no_panels(tmp_path):
    make_study(tmp_path, parts=("grid",))
    with pytest.raises(LackingError, match="measured on one task"):
        figures.figure_2(Results(load_study(tmp_path)))


def test_the_papers_averages_are_those_of_its_columns():
    """A row's average, as printed, is the mean of its five tasks (or that cut off), so no number was copied wrong."""
    for key, (*tasks, average) in TABLE_1.items():
        assert sum(tasks) / 5 == pytest.approx(average, abs=0.07), key
    assert len(TABLE_1_TASKS) == 6


def test_markdown():
    table = pd.DataFrame({"a": ["x", "y"], "b": [1.25, 2.0], "c": [3, 4]})
    assert markdown(table) == "| a | b | c |\n| --- | --- | --- |\n| x | 1.2 | 3 |\n| y | 2.0 | 4 |"
