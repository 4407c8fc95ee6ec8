import pandas as pd
import pytest
from matplotlib.image import imread
from tests.fits import assert_texts_fit

from rlhf_lightning.errors import DataError
from rlhf_lightning.evaluation.figures import plot_best_of_n, plot_data_scaling


def curves(generators=("sft", "rl"), lines=(("ORM", "last"), ("PRM", "last"), ("PRM", "min"))):
    rows = [
        {"generator": g, "scorer": s, "aggregation": a, "n": n, "accuracy": 0.3 + 0.05 * i + 0.01 * n}
        for g in generators
        for i, (s, a) in enumerate([("mean", None), ("majority", None), ("oracle", None), *lines])
        for n in (1, 2, 4)
    ]
    table = pd.DataFrame(rows)
    return table.assign(low=table.accuracy - 0.02, high=table.accuracy + 0.02)


def test_a_panel_a_generator_and_a_line_each():
    figure = plot_best_of_n(curves())
    assert [axes.get_title() for axes in figure.axes] == ["sft", "rl"]
    for axes in figure.axes:
        named = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        assert set(named) == {"ORM", "PRM, last", "PRM, min", "oracle (pass@N)", "majority", "mean of the pool"}
        assert list(named["ORM"].get_xdata()) == [1, 2, 4]
        assert list(named["PRM, min"].get_ydata()) == pytest.approx([0.3 + 0.25 + 0.01 * n for n in (1, 2, 4)])
        assert named["ORM"].get_color() != named["PRM, last"].get_color() == named["PRM, min"].get_color()
        assert named["PRM, last"].get_linestyle() != named["PRM, min"].get_linestyle()
        assert axes.get_xscale() == "log" and len(axes.collections) == 6
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:3] == ["ORM", "PRM, last", "PRM, min"]


def test_the_intervals_may_be_missing_and_panels_wrap(tmp_path):
    figure = plot_best_of_n(curves("abcd").drop(columns=["low", "high"]), tmp_path / "x.png")
    assert len(figure.axes) == 4
    assert not figure.axes[0].collections
    picture = imread(tmp_path / "x.png")
    assert picture.shape[0] > 800 and picture.std() > 0.05


@pytest.mark.parametrize("generators", [("sft",), ("a policy after long training, of a long name", "b"), "abcd"])
def test_titles_and_names_fit(generators):
    lines = (("a reward model of a long name, from elsewhere", "product"), ("PRM", "last"), ("PRM", "min"))
    figure = plot_best_of_n(curves(generators, lines), title="What was chosen, and how well. " * 6)
    assert_texts_fit(figure)
    named = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    assert named[0] == "a reward model of a long name, from elsewhere"


def test_percent_ticks_are_not_rounded_into_one_another():
    table = curves()
    table["accuracy"] = 0.44 + table["accuracy"] / 1000
    for axes in plot_best_of_n(table.drop(columns=["low", "high"])).axes:
        ticks = [label.get_text() for label in axes.yaxis.get_ticklabels()]
        assert len(ticks) == len(set(ticks)) > 2


def test_data_scaling_has_a_panel_an_n_and_a_line_a_series(tmp_path):
    rows = [
        (8 * s, name, n, 0.1 * s / n)
        for name in ("more prompts", "more solutions a prompt")
        for s in (1, 2, 4)
        for n in (4, 64)
    ]
    table = pd.DataFrame(rows, columns=["size", "series", "n", "accuracy"])
    figure = plot_data_scaling(table, tmp_path / "x.png")
    assert [axes.get_title() for axes in figure.axes] == ["best of 4", "best of 64"]
    handles, labels = figure.axes[1].get_legend_handles_labels()
    assert labels == ["more prompts", "more solutions a prompt"]
    assert list(handles[0].get_xdata()) == [8, 16, 32]
    assert list(handles[0].get_ydata()) == pytest.approx([0.1 / 64, 0.2 / 64, 0.4 / 64])
    assert imread(tmp_path / "x.png").std() > 0.03


def test_tables_that_cannot_be_drawn_are_refused():
    with pytest.raises(DataError, match=r"no column 'scorer'\. Did you mean 'scorers'"):
        plot_best_of_n(curves().rename(columns={"scorer": "scorers"}))
    with pytest.raises(DataError, match="no rows"):
        plot_best_of_n(curves().iloc[:0])
    with pytest.raises(DataError, match="no column 'size'"):
        plot_data_scaling(curves())
