"""Tables at 80 columns hold every cell's text; titles are as wide as they may be."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.callbacks.samples import as_rich
from rlhf_lightning.evaluation.tables import print_curves
from rlhf_lightning.shown import show_table, wrapped

FRAME = re.compile(r"[\s─━│┃┏┓┗┛┳┻╇┡┩┼├┤└┘┴]+")


def printed(show, width):
    out = io.StringIO()
    show(Console(file=out, width=width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    return out.getvalue()


def columns_read_down(text):
    """What stands in each place of a table from top to bottom, without its frame: folded words whole again."""
    lines = [re.split(r"[│┃]", line) for line in text.splitlines()]
    width = max(map(len, lines))
    down = ["".join(cells[i] for cells in lines if len(cells) == width) for i in range(width)]
    return [FRAME.sub("", column) for column in down]


def test_long_words_are_folded_not_cut():
    table = Table("kind", "class", "what it does")
    table.add_row("scorer", "a_package.of_mine.with_modules:" + "Class" * 8, "a text of several words that goes on")
    found = columns_read_down(printed(lambda console: show_table(console, table), 60))
    assert any("a_package.of_mine.with_modules:" + "Class" * 8 in column for column in found)
    assert any("atextofseveralwordsthatgoeson" in column for column in found)


@pytest.mark.parametrize("width", [80, 40])
def test_a_row_is_a_paragraph_where_columns_do_not_fit(width):
    sample = {"prompt": "What is 2 + [2]?", "response": "<think>It is 4.</think>", "answer": "4", "reward": 1.5}
    sample |= {"scores": {f"a_long_name_of_scorer_{i}": 0.25 * i for i in range(6)}, "advantage": -0.5}
    rows = [("best", sample), ("worst", {**sample, "reward": -8.125})]
    text = printed(lambda console: show_table(console, as_rich("Samples", rows, max_chars=100)), width)
    said = FRAME.sub("", text)
    assert "…" not in text and said.startswith("Samplesbest") and "worst" in said
    for cell in ("What is 2 + [2]?", "<think>It is 4.</think>", "reward 1.5", "-8.125", "a_long_name_of_scorer_5 1.25"):
        assert FRAME.sub("", cell) in said


def test_every_number_of_a_wide_best_of_n_is_there():
    rows = [
        {"generator": "SFT", "scorer": name, "aggregation": "min", "n": 2**i, "accuracy": 0.101 + i / 50}
        for name in ("ORM", "another reward model, of a long name")
        for i in range(11)
    ]
    table = pd.DataFrame(rows).assign(low=0.25, high=0.75, prompts=8, pool=1024)
    text = printed(lambda console: print_curves(table, console), 80)
    assert "…" not in text and text.count("25 – 75") == 2 and "interval at 1024" in text
    assert all(text.count(f"{10.1 + 2 * i:.1f}") == 2 for i in range(11))
    assert "another reward model, of a long name (min)" in " ".join(text.split())


def test_markup_of_cells_is_shown_as_before():
    table = Table("a", "b")
    table.add_row(Text("[bold]x"), "y")
    assert "[bold]x" in printed(lambda console: show_table(console, table), 80)


def test_wrapped_lines_fit_and_lose_nothing():
    title = "A title of many words " * 5 + "x" * 90
    lines = wrapped(title, 4.0, 12).split("\n")
    assert max(map(len, lines)) <= 33  # 288 points, of which a letter takes 8.64
    assert "".join(lines).replace(" ", "") == title.replace(" ", "")
    assert wrapped("short\nlines", 4.0, 12) == "short\nlines"
